"""Sizes: what a photo is resized and padded to before a generator, the way back, and the random crops of training.

In and out: pixels (H, W, C) of 8 or 16 bits. Knows no torch, as `loading`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cyclegan.errors import InputError
from cyclegan.images import Pixels, resize

MIN_SIDE = 32
"""Below this the innermost features of a generator shrink to a single pixel, which InstanceNorm can't normalise."""


TILE = 512
"""Side in pixels of a tile where nothing else is said."""


@dataclass(frozen=True, slots=True)
class SizePolicy:
    """How large photos are translated.

    `native` keeps a photo's size; `resize:N` brings its shorter side to N pixels and keeps its shape; `tile:N` keeps its size too, and asks
    for tiles of N pixels a side.
    """

    shorter_side: int | None = None
    tile: int | None = None

    @classmethod
    def parse(cls, text: str) -> SizePolicy:
        """Reads `native`, `resize:N`, `tile` or `tile:N`."""
        kind, _, number = text.partition(":")
        if kind == "resize":
            return cls(shorter_side=int(number))
        return cls(tile=int(number or TILE) if kind == "tile" else None)

    def __str__(self) -> str:
        if self.tile is not None:
            return f"tile:{self.tile}"
        return "native" if self.shorter_side is None else f"resize:{self.shorter_side}"

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the translated photo."""
        if self.shorter_side is None:
            return height, width
        scale = self.shorter_side / min(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))


def pad_to_multiple(pixels: Pixels, multiple: int) -> Pixels:
    """Mirrors the lower and right edge outwards until both sides are multiples; cropping to the old size undoes it."""
    height, width = (max(MIN_SIDE, -(-side // multiple) * multiple) for side in pixels.shape[:2])
    margin = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
    return np.pad(pixels, margin, mode="symmetric") if margin != ((0, 0), (0, 0), (0, 0)) else pixels


Fit = Literal["square", "width", "keep"]


class TooSmallError(InputError):
    """An image from which no crop of the wanted size can be cut."""


@dataclass(frozen=True, slots=True)
class TrainingSize:
    """How an image of any size becomes what the networks see while training.

    Args:
        fit: resized to a square of `load`, to the width `load`, or not at all.
        load: in pixels.
        crop: side of the random crops; None leaves the image whole, its sides rounded to multiples of `multiple`.
        multiple: what the generators' strides ask for.
    """

    fit: Fit
    load: int
    crop: int | None
    multiple: int

    def prepare(self, pixels: Pixels) -> Pixels:
        """The part that is done once: (H, W, C) in and out.

        Raises:
            TooSmallError: it is smaller than the crop.
        """
        height, width = pixels.shape[:2]
        if self.fit == "square":
            height, width = self.load, self.load
        elif self.fit == "width":
            height, width = max(1, round(height * self.load / width)), self.load
        if self.crop is None:
            height, width = (max(1, round(side / self.multiple)) * self.multiple for side in (height, width))
        elif min(height, width) < self.crop:
            raise TooSmallError(f"{width}x{height} px, smaller than the crop of {self.crop}; give a smaller --size or another --preprocess")
        return resize(pixels, height, width)

    def cut(self, pixels: Pixels, down: float, right: float) -> Pixels:
        """The crop that lies at the shares `down` and `right` in [0, 1) of the room there is, or the whole image."""
        if self.crop is None:
            return pixels
        top, left = int(down * (pixels.shape[0] - self.crop + 1)), int(right * (pixels.shape[1] - self.crop + 1))
        return pixels[top : top + self.crop, left : left + self.crop]
