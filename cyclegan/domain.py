"""One domain of a training run; batches that follow from seed and position alone.

In: the images of the domain, in memory or read when their turn comes. Out: batches of whole numbers (n, C, H, W), shuffled and cropped.
Position counts the images taken so far by all workers together, so a batch is the same whoever makes it, and a resumed run goes
on where it stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cyclegan.errors import InputError
from cyclegan.geometry import TooSmallError, TrainingSize
from cyclegan.images import Pixels
from cyclegan.unit_range import to_unit_range

T = TypeVar("T")

_MOST_REPLACEMENTS = 100
"""Neighbours tried in place of an image that can't be read, before the domain is given up."""


class Images(Protocol):
    """The images of a domain, prepared for cropping."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int) -> Pixels:
        """One of them: (H, W, C)."""
        ...


class StreamedImages:
    """Images that are read and decoded each time they are asked for; one that can't be is replaced by the next that can.

    Args:
        names: what to read, in a fixed order.
        load: gives the image of a name; raises one of `errors` where it can't.
        errors: what `load` may raise.
    """

    def __init__(self, names: Sequence[object], load: Callable[[str], Pixels], errors: tuple[type[Exception], ...]):
        self.names = names
        self._load = load
        self._errors = errors
        self._unreadable: dict[int, str] = {}
        self._reported = 0

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Pixels:
        for candidate in itertools.islice(itertools.cycle(range(len(self))), index, index + min(_MOST_REPLACEMENTS, len(self))):
            if candidate not in self._unreadable:
                name = str(self.names[candidate])
                try:
                    return self._load(name)
                except TooSmallError as error:
                    raise InputError(f"{name}: {error}") from None
                except self._errors as error:
                    self._unreadable[candidate] = str(error) or type(error).__name__
        raise InputError(f"{self.names[index]}: can't be read, nor can those after it ({self._unreadable[index]})")

    def new_unreadable(self) -> list[tuple[str, str]]:
        """Names and reasons of the images that were replaced since this was last asked."""
        found = list(self._unreadable.items())[self._reported :]
        self._reported += len(found)
        return [(str(self.names[index]), reason) for index, reason in found]


class Batch(NamedTuple):
    """Images that are still whole numbers, and which of them to mirror."""

    pixels: Tensor
    flips: Tensor

    def pin(self) -> Batch:
        """The same in memory from which a GPU copies while the CPU goes on."""
        return Batch(self.pixels.pin_memory(), self.flips.pin_memory())

    def to_device(self, device: torch.device) -> Tensor:
        """Floats (n, C, H, W) in [-1, 1] on `device`, where they are mirrored and scaled; only bytes travel there."""
        pixels = self.pixels.to(device, non_blocking=True)
        flips = self.flips.to(device, non_blocking=True).view(-1, 1, 1, 1)
        floats = to_unit_range(pixels)
        # images come as rows of pixels, which is the layout that GPUs want and most convolutions on a CPU don't
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        return torch.where(flips, floats.flip(3), floats).contiguous(memory_format=layout)


class Domain:
    """Endless passes over the images of a domain, each pass in an order of its own.

    Args:
        images: what the batches are made of.
        seed: order and crops follow from it; give each domain its own, or pairs would repeat.
        size: how images are cropped.
        flip: mirror half of them.
    """

    def __init__(self, images: Images, *, seed: tuple[int, ...], size: TrainingSize, flip: bool) -> None:
        self.images = images
        self.seed = seed
        self.size = size
        self.flip = flip
        # batches that straddle two passes, made by several threads, need a few orders at a time
        self._pass = lru_cache(maxsize=4)(self._draw_order)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, position: int, count: int, part: slice) -> Batch:
        """The images `part` of the `count` that start at `position`.

        Args:
            position: images taken so far.
            count: images that all workers take together in this step.
            part: this worker's share of them.

        Raises:
            InputError: their shapes differ, so that they make no batch.
        """
        down, right, mirror = np.random.default_rng((*self.seed, 1, position)).random((3, count))[:, part]
        indices = self.indices(position, count)[part]
        cuts = [self.size.cut(self.images[int(index)], y, x) for index, y, x in zip(indices, down, right, strict=True)]
        if len({cut.shape for cut in cuts}) > 1:
            shapes = sorted({f"{cut.shape[1]}x{cut.shape[0]}" for cut in cuts})
            raise InputError(f"images of {' and '.join(shapes[:3])} px make no batch; give --batch-size 1 or a --preprocess that crops")
        pixels = torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2)
        return Batch(pixels, torch.from_numpy((mirror < 0.5) & self.flip))

    def indices(self, position: int, count: int) -> npt.NDArray[np.int64]:
        """Which images stand at `position` and the `count - 1` places after it."""
        passes, offsets = np.divmod(np.arange(position, position + count), len(self))
        return np.array([self._pass(int(p))[offset] for p, offset in zip(passes, offsets, strict=True)])

    def samples(self, count: int) -> list[Tensor]:
        """The first `count` images, cropped in the middle: floats (1, C, H, W) in [-1, 1], the same each time."""
        cuts = (self.size.cut(self.images[index], 0.5, 0.5) for index in range(min(count, len(self))))
        return [to_unit_range(torch.from_numpy(cut.copy()).permute(2, 0, 1)[None]) for cut in cuts]

    def _draw_order(self, number: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng((*self.seed, 0, number)).permutation(len(self))
