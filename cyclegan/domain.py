"""One domain of a training run, decoded once and held in memory; batches that follow from seed and position alone.

In: uint8 images (N, 3, L, L). Out: float batches (n, 3, size, size) in [-1, 1], shuffled, cropped and mirrored. Position counts the
images taken so far by all workers together, so a batch is the same whoever computes it, and a resumed run goes on where it stopped.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cyclegan.geometry import Crops, to_unit_range


class Domain:
    """Endless passes over the images of a domain, each pass in an order of its own.

    Args:
        images: uint8 (N, 3, L, L), on the CPU.
        seed: order and crops follow from it; give each domain its own, or pairs would repeat.
        size: side of the crops, at most L.
        flip: mirror half of them.
    """

    def __init__(self, images: Tensor, *, seed: tuple[int, ...], size: int, flip: bool) -> None:
        self.images = images
        self.seed = seed
        self.size = size
        self.flip = flip
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, position: int, count: int, part: slice, device: torch.device) -> Tensor:
        """The images `part` of the `count` that start at `position`, augmented on `device`.

        Args:
            position: images taken so far.
            count: images that all workers take together in this step.
            part: this worker's share of them.
            device: where the batch is wanted.
        """
        random = np.random.default_rng((*self.seed, 1, position))
        slack = self.images.shape[-1] - self.size
        crops = Crops.draw(random, count, slack, self.flip).part(part.start, part.stop)
        indices = self.indices(position, count)[part]
        return crops.apply(self.images[torch.from_numpy(indices)].to(device), self.size)

    def indices(self, position: int, count: int) -> npt.NDArray[np.int64]:
        """Which images stand at `position` and the `count - 1` places after it."""
        passes, offsets = np.divmod(np.arange(position, position + count), len(self))
        return np.array([self._pass(int(p))[offset] for p, offset in zip(passes, offsets, strict=True)])

    def samples(self, count: int) -> Tensor:
        """The first `count` images, cropped in the middle: float (count, 3, size, size) in [-1, 1], the same each time."""
        start = (self.images.shape[-1] - self.size) // 2
        middle = slice(start, start + self.size)
        return to_unit_range(self.images[:count, :, middle, middle])

    def _pass(self, number: int) -> npt.NDArray[np.int64]:
        if self._order[0] != number:
            self._order = number, np.random.default_rng((*self.seed, 0, number)).permutation(len(self))
        return self._order[1]
