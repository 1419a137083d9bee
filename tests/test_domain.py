"""Batches of training follow from seed and position alone, whether the images are held or read when their turn comes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclegan.ahead import made_ahead
from cyclegan.domain import Domain, StreamedImages
from cyclegan.errors import InputError
from cyclegan.geometry import TooSmallError, TrainingSize
from cyclegan.images import Pixels

CPU = torch.device("cpu")


def cropped(side: int) -> TrainingSize:
    return TrainingSize("keep", side, side, 4)


def numbered(count: int, side: int = 8, **changes: object) -> Domain:
    """A domain whose image n is all n."""
    images = [np.full((side, side, 3), n, np.uint8) for n in range(count)]
    options = {"seed": (0, 0), "size": cropped(side), "flip": False, **changes}
    return Domain(images, **options)  # type: ignore[arg-type]


def whole_batch(domain: Domain, position: int, count: int) -> torch.Tensor:
    return domain.batch(position, count, slice(0, count)).to_device(CPU)


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
    pictures = list(np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3), np.uint8))
    domain = Domain(pictures, seed=(4, 0), size=cropped(8), flip=True)
    whole = whole_batch(domain, 16, 8)
    parts = [domain.batch(16, 8, slice(start, start + 2)).to_device(CPU) for start in range(0, 8, 2)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole_batch(domain, 24, 8), whole)


def test_crops_stay_inside_and_vary() -> None:
    ramp = np.broadcast_to(np.arange(12, dtype=np.uint8)[None, :, None], (12, 12, 3))
    batch = whole_batch(Domain([ramp], seed=(0,), size=cropped(8), flip=True), 0, 64)
    assert batch.shape == (64, 3, 8, 8)
    left = ((batch[:, 0, 0, 0] + 1) * 127.5).round().int()
    right = ((batch[:, 0, 0, -1] + 1) * 127.5).round().int()
    assert set((right - left).tolist()) == {7, -7}, "both ways round"
    assert set(torch.minimum(left, right).tolist()) == {0, 1, 2, 3, 4}, "every place a crop can have"


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535)])
def test_values_are_scaled_to_one(dtype: type[np.uint8] | type[np.uint16], largest: int) -> None:
    pictures = [np.full((4, 4, 2), value, dtype) for value in (0, largest)]
    domain = Domain(pictures, seed=(0,), size=cropped(4), flip=False)
    batch = whole_batch(domain, 0, 2)
    assert batch.shape == (2, 2, 4, 4)
    assert sorted(batch[:, 0, 0, 0].tolist()) == [-1, 1]
    assert [float(sample[0, 0, 0, 0]) for sample in domain.samples(5)] == [-1, 1], "no more than there are"


@pytest.mark.parametrize(
    ("size", "before", "after"),
    [
        (TrainingSize("square", 40, 32, 8), (50, 90), (40, 40)),
        (TrainingSize("width", 40, 32, 8), (90, 60), (60, 40)),
        (TrainingSize("width", 40, None, 8), (90, 61), (56, 40)),
        (TrainingSize("keep", 40, 32, 8), (50, 90), (50, 90)),
        (TrainingSize("keep", 40, None, 8), (51, 93), (48, 96)),
    ],
)
def test_sizes_that_training_sees(size: TrainingSize, before: tuple[int, int], after: tuple[int, int]) -> None:
    prepared = size.prepare(np.zeros((*before, 3), np.uint8))
    assert prepared.shape[:2] == after
    assert size.cut(prepared, 0.99, 0.0).shape[:2] == ((32, 32) if size.crop else after)


def test_an_image_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(TooSmallError, match="20x50 px, smaller than the crop of 32"):
        TrainingSize("keep", 32, 32, 8).prepare(np.zeros((50, 20, 3), np.uint8))


def test_images_of_different_shapes_make_no_batch() -> None:
    domain = Domain([np.zeros((8, side, 3), np.uint8) for side in (8, 16)], seed=(0,), size=TrainingSize("keep", 8, None, 8), flip=False)
    assert whole_batch(domain, 0, 1).shape[2] == 8
    with pytest.raises(InputError, match=r"16x8 and 8x8 px make no batch; give --batch-size 1"):
        domain.batch(0, 2, slice(0, 2))


def picture_of(name: str) -> Pixels:
    if "broken" in name:
        raise OSError("broken")
    return np.full((8, 8, 3), int(name), np.uint8)


def test_streamed_images_make_the_same_batches() -> None:
    streamed = Domain(StreamedImages([str(n) for n in range(10)], picture_of, (OSError,)), seed=(0, 0), size=cropped(8), flip=False)
    assert torch.equal(whole_batch(streamed, 5, 10), whole_batch(numbered(10), 5, 10))


def test_an_unreadable_image_is_replaced_by_the_next_and_named_once() -> None:
    images = StreamedImages(["0", "broken 1", "broken 2", "3"], picture_of, (OSError,))
    assert [int(images[index][0, 0, 0]) for index in (0, 1, 2, 3, 1)] == [0, 3, 3, 3, 3]
    assert images.new_unreadable() == [("broken 1", "broken"), ("broken 2", "broken")]
    assert images.new_unreadable() == []
    with pytest.raises(InputError, match="broken 1: can't be read, nor can those after it"):
        StreamedImages(["broken 1", "broken 2"], picture_of, (OSError,))[0]


def test_batches_are_made_ahead_and_come_in_order(tmp_path: Path) -> None:
    made: list[int] = []
    lock = threading.Lock()

    def make(position: int) -> int:
        time.sleep(0.02 if position % 2 else 0)  # so that threads overtake each other
        with lock:
            made.append(position)
        return position

    feed = made_ahead(make, range(20), threads=3)
    assert next(feed) == 0
    time.sleep(0.2)
    assert 3 <= len(made) <= 7, "ahead, but not without bound"
    assert list(feed) == list(range(1, 20))


def test_what_goes_wrong_in_a_thread_is_raised_in_the_loop() -> None:
    with pytest.raises(ZeroDivisionError):
        list(made_ahead(lambda position: 1 // (3 - position), range(9), threads=2))
