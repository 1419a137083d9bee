"""The known failures are told in words, and a healthy run is left in peace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cyclegan.alarms import WINDOW, find, measure_change

HEALTHY = {
    "skipped_steps": 0,
    "discriminator_a": 0.4,
    "discriminator_b": 0.45,
    "change_a2b": 0.3,
    "change_b2a": 0.3,
    "correlation_a2b": 0.6,
    "correlation_b2a": 0.5,
}


def after(count: int = WINDOW, **changes: Any) -> list[str]:
    return find([{**HEALTHY, **changes}] * count, "lsgan")


def test_a_healthy_run_has_none() -> None:
    assert after() == []
    assert after(change_a2b=None, correlation_a2b=None) == [], "channels that differ can't be compared"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"discriminator_b": 0.001}, "discriminator_b tells every fake: generator_a2b learns nothing"),
        ({"discriminator_a": 0.5}, "discriminator_a gives every image the same score"),
        ({"change_b2a": 0.01}, "b2a gives back its input"),
        ({"correlation_a2b": -0.9}, "a2b turns light into dark"),
    ],
)
def test_each_failure_is_named_once_it_lasts(changes: dict[str, Any], words: str) -> None:
    (alarm,) = after(WINDOW, **changes)
    assert words in alarm
    assert after(WINDOW - 1, **changes) == [], "a few reports say little"
    assert find([{**HEALTHY, **changes}] * (WINDOW - 1) + [HEALTHY], "lsgan") == []


def test_levels_are_those_of_the_game() -> None:
    blind = [{**HEALTHY, "discriminator_a": 2.0}] * WINDOW
    assert find(blind, "lsgan") == []
    assert "discriminator_a gives every image the same score" in find(blind, "hinge")[0]
    assert find(blind, "wgangp") == []


def test_skipped_steps_are_told_when_they_happen() -> None:
    records = [{**HEALTHY, "skipped_steps": count} for count in (0, 2, 2)]
    assert find(records[:1], "lsgan") == []
    assert "2 steps without finite gradients" in find(records[:2], "lsgan")[0]
    assert find(records, "lsgan") == [], "only when there are new ones"


def test_change_of_a_batch() -> None:
    real = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert measure_change(real, real) == {"change": 0, "correlation": pytest.approx(1, abs=1e-5)}
    inverted = measure_change(real, -real)
    assert inverted["correlation"] == pytest.approx(-1, abs=1e-5)
    assert inverted["change"] == pytest.approx(1, abs=0.02), "twice the mean distance from grey"
    assert measure_change(real, real.mean(1, keepdim=True)) == {"change": None, "correlation": pytest.approx(1, abs=1e-5)}
    assert measure_change(real, torch.zeros_like(real))["correlation"] is None, "a flat picture goes with nothing"
