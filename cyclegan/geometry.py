"""Sizes: what a photo is resized and padded to before a generator, the way back, and the random crops of training.

In and out: uint8 pixels (H, W, 3) for single photos; uint8 (N, 3, H, W) in, float (N, 3, size, size) in [-1, 1] out for training batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cyclegan.images import Pixels, resize

MIN_SIDE = 32
"""Below this the innermost features of a generator shrink to a single pixel, which InstanceNorm can't normalise."""


@dataclass(frozen=True, slots=True)
class SizePolicy:
    """`native` keeps a photo's size; `resize:N` brings its shorter side to N pixels and keeps its shape."""

    shorter_side: int | None

    @classmethod
    def parse(cls, text: str) -> SizePolicy:
        """Reads `native` or `resize:N`."""
        return cls(None if text == "native" else int(text.removeprefix("resize:")))

    def __str__(self) -> str:
        return "native" if self.shorter_side is None else f"resize:{self.shorter_side}"

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the translated photo."""
        if self.shorter_side is None:
            return height, width
        scale = self.shorter_side / min(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def apply(self, pixels: Pixels) -> Pixels:
        """The photo at its target size."""
        return resize(pixels, *self.target(*pixels.shape[:2]))


def pad_to_multiple(pixels: Pixels, multiple: int) -> Pixels:
    """Mirrors the lower and right edge outwards until both sides are multiples; cropping to the old size undoes it."""
    height, width = (max(MIN_SIDE, -(-side // multiple) * multiple) for side in pixels.shape[:2])
    margin = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
    return np.pad(pixels, margin, mode="symmetric") if margin != ((0, 0), (0, 0), (0, 0)) else pixels


def to_unit_range(batch: Tensor) -> Tensor:
    """Whole numbers, uint8 [0, 255] or uint16 [0, 65535], to float [-1, 1]: x / (half of the largest) - 1."""
    return batch.float().div_(torch.iinfo(batch.dtype).max / 2).sub_(1)


def from_unit_range(batch: Tensor, bits: int = 8) -> Tensor:
    """Floats [-1, 1] to whole numbers of 8 or 16 bits, rounded."""
    dtype = torch.uint8 if bits == 8 else torch.uint16
    largest = torch.iinfo(dtype).max
    return batch.float().add(1).mul(largest / 2).round().clamp(0, largest).to(dtype)


@dataclass(frozen=True, slots=True)
class Crops:
    """Where to cut each image of a batch and whether to mirror it."""

    tops: list[int]
    lefts: list[int]
    flips: list[bool]

    @classmethod
    def draw(cls, random: np.random.Generator, count: int, slack: int, flip: bool) -> Crops:
        """Random crops of `count` images that are `slack` pixels larger than the crop on each axis."""
        tops, lefts = random.integers(0, slack + 1, (2, count)).tolist()
        mirrored = random.random(count) < 0.5
        return cls(tops, lefts, (mirrored & flip).tolist())

    def part(self, start: int, stop: int) -> Crops:
        """The crops of a part of the batch."""
        return Crops(self.tops[start:stop], self.lefts[start:stop], self.flips[start:stop])

    def apply(self, images: Tensor, size: int) -> Tensor:
        """Cuts `size` x `size` out of each image: uint8 (N, 3, H, W) to float (N, 3, size, size) in [-1, 1]."""
        cut = []
        for image, top, left, flip in zip(images, self.tops, self.lefts, self.flips, strict=True):
            crop = image[:, top : top + size, left : left + size]
            cut.append(crop.flip(2) if flip else crop)
        return to_unit_range(torch.stack(cut))
