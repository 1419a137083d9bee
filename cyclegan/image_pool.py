"""A pool of past fakes that keeps a discriminator from forgetting (Shrivastava et al. 2017; Zhu et al. 2017, section 4).

In: a batch of fresh fakes (N, C, H, W). Out: a batch of the same shape, about half of it from earlier steps once the pool is full.
The pool owns its random state, so a run restored from a checkpoint draws what it would have drawn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ImagePool:
    """Up to `size` past fakes of one worker; a size of 0 hands every batch back untouched."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._images: list[Tensor] = []
        self._random = torch.Generator().manual_seed(seed)

    def query(self, fakes: Tensor) -> Tensor:
        """Stores fakes until the pool is full; then swaps each, with probability 1/2, for a random stored one."""
        if self.size == 0:
            return fakes
        return torch.stack([self._swap(fake) for fake in fakes])

    def _swap(self, fake: Tensor) -> Tensor:
        if len(self._images) < self.size:
            self._images.append(fake.clone())
            return fake
        if torch.rand((), generator=self._random) < 0.5:
            return fake
        index = int(torch.randint(self.size, (), generator=self._random))
        past, self._images[index] = self._images[index], fake.clone()
        return past

    def state_dict(self) -> dict[str, Any]:
        """The stored images on the CPU and the random state."""
        return {"images": [image.cpu() for image in self._images], "random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Takes back what `state_dict` gave, the images on `device`."""
        self._images = [image.to(device) for image in state["images"]]
        self._random.set_state(state["random"])
