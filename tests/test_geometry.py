"""Sizes: policies, padding and its inverse, value ranges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cyclegan.geometry import SizePolicy, pad_to_multiple
from cyclegan.unit_range import from_unit_range, to_unit_range


@pytest.mark.parametrize(
    ("policy", "size", "target"),
    [
        ("native", (101, 57), (101, 57)),
        ("resize:64", (128, 256), (64, 128)),
        ("resize:64", (360, 270), (85, 64)),
        ("resize:100", (10, 1), (1000, 100)),
    ],
)
def test_target_size(policy: str, size: tuple[int, int], target: tuple[int, int]) -> None:
    assert SizePolicy.parse(policy).target(*size) == target
    assert str(SizePolicy.parse(policy)) == policy


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 1), (7, 200)])
def test_padding_is_undone_by_cropping(size: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    padded = pad_to_multiple(photo, 8)
    assert padded.shape[0] % 8 == padded.shape[1] % 8 == 0
    assert min(padded.shape[:2]) >= 32
    assert np.array_equal(padded[: size[0], : size[1]], photo)


def test_padding_mirrors_the_edge() -> None:
    photo = np.arange(33, dtype=np.uint8)[:, None, None] * np.ones((1, 32, 3), np.uint8)
    assert pad_to_multiple(photo, 8)[33:, 0, 0].tolist() == [32, 31, 30, 29, 28, 27, 26]


def test_all_values_survive_the_way_there_and_back() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(from_unit_range(to_unit_range(values)), values)
    assert to_unit_range(values)[[0, 255]].tolist() == [-1, 1]
    assert from_unit_range(torch.tensor([-2.0, 2.0])).tolist() == [0, 255]
