"""Batches of training follow from seed and position alone."""

from __future__ import annotations

import numpy as np
import torch

from cyclegan.domain import Domain

CPU = torch.device("cpu")


def numbered(count: int, side: int = 8, **changes: object) -> Domain:
    """A domain whose image n is all n."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 3, side, side)
    options = {"seed": (0, 0), "size": side, "flip": False, **changes}
    return Domain(images, **options)  # type: ignore[arg-type]


def values(batch: torch.Tensor) -> list[int]:
    return ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_every_pass_takes_every_image_once_in_an_order_of_its_own() -> None:
    domain = numbered(10)
    first, second = domain.indices(0, 10), domain.indices(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)
    assert list(domain.indices(7, 6)) == [*first[7:], *second[:3]], "a batch may reach into the next pass"


def test_order_follows_from_the_seed() -> None:
    assert list(numbered(20).indices(0, 20)) == list(numbered(20).indices(0, 20))
    assert list(numbered(20).indices(0, 20)) != list(numbered(20, seed=(0, 1)).indices(0, 20))


def test_workers_take_parts_of_the_same_batch() -> None:
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 12, 12), np.uint8))
    domain = Domain(picture, seed=(4, 0), size=8, flip=True)
    whole = domain.batch(16, 8, slice(0, 8), CPU)
    parts = [domain.batch(16, 8, slice(start, start + 2), CPU) for start in range(0, 8, 2)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(domain.batch(24, 8, slice(0, 8), CPU), whole)


def test_crops_stay_inside_and_vary() -> None:
    ramp = torch.arange(12, dtype=torch.uint8).repeat(1, 3, 12, 1)
    domain = Domain(ramp, seed=(0,), size=8, flip=True)
    batch = domain.batch(0, 64, slice(0, 64), CPU)
    assert batch.shape == (64, 3, 8, 8)
    left = ((batch[:, 0, 0, 0] + 1) * 127.5).round().int()
    right = ((batch[:, 0, 0, -1] + 1) * 127.5).round().int()
    assert set((right - left).tolist()) == {7, -7}, "both ways round"
    assert set(torch.minimum(left, right).tolist()) == {0, 1, 2, 3, 4}, "every place a crop can have"


def test_values_are_scaled_to_one() -> None:
    domain = Domain(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4), seed=(0,), size=4, flip=False)
    batch = domain.batch(0, 2, slice(0, 2), CPU)
    assert sorted(batch[:, 0, 0, 0].tolist()) == [-1, 1]
    assert values(domain.samples(1)) == [0]
