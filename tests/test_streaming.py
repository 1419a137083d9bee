"""How the copies of a generator are laid out over a cluster."""

from __future__ import annotations

import pytest

from cyclegan.config import Cluster
from cyclegan.streaming import Workers


@pytest.mark.parametrize(
    ("machines", "asked", "copies", "threads", "cpus"),
    [
        ((2,), None, 1, 2, 1),
        ((2,), 2, 2, 1, 0.5),
        ((32,), None, 1, 32, 31),
        ((32,), 4, 4, 8, 7.75),
        ((16, 16, 16), None, 3, 16, 15),
        ((4, 32), None, 9, 4, 3),
        ((16, 16), 1, 1, 16, 15),
        ((1,), None, 1, 1, 0),
    ],
)
def test_generators_fit_the_machines(machines: tuple[int, ...], asked: int | None, copies: int, threads: int, cpus: float) -> None:
    """And leave a CPU of each for writing."""
    cluster = Cluster(machines, 0, 1e9, can_grow=False)
    assert Workers.on(cluster, gpu=None, copies=asked) == Workers(False, copies, threads, cpus)
    assert copies * cpus <= sum(machines) - len(machines)


def test_one_generator_for_each_gpu() -> None:
    cluster = Cluster((16, 16), 3, 1e9, can_grow=False)
    assert Workers.on(cluster, gpu=None, copies=None) == Workers(True, 3, threads=1, cpus=0)
    assert Workers.on(cluster, gpu=None, copies=2).copies == 2
    assert Workers.on(cluster, gpu=False, copies=None) == Workers(False, 2, threads=16, cpus=15)
