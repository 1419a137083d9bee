"""The known ways in which a CycleGAN goes wrong, told from its metrics, in words.

In: the records of metrics.jsonl in the order of their steps. Out: what is wrong at the last of them, and what to try. A pure function of
the records, so a resumed run says what an uninterrupted one says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cyclegan.losses import BLIND, GanLoss

Record = Mapping[str, Any]

WINDOW = 10
"""Reports in a row that must agree before an alarm is given: single batches say little."""

_UNCHANGED = 0.02
"""Mean change of a pixel, of a range of 2, below which an output counts as its input: 2.5 of 255."""
_INVERTED = -0.5
"""Correlation of brightness before and after, below which colours count as inverted."""


def measure_change(real: Tensor, fake: Tensor) -> dict[str, float | None]:
    """What a generator did to the look of a batch, for alarms: (N, C, H, W) in [-1, 1] each.

    Returns:
        `change`: mean absolute difference, None where the numbers of channels differ. `correlation`: of the brightness of the
        same places, over the batch, on a grid of 16 x 16; None where one of them is flat.
    """
    same_kind = real.shape == fake.shape
    change = float((fake.float() - real.float()).abs().mean()) if same_kind else None
    coarse = [F.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), 16).flatten() for images in (real, fake)]
    flat = min(float(values.std()) for values in coarse) < 1e-3
    correlation = None if flat else float(torch.corrcoef(torch.stack(coarse))[0, 1])
    return {"change": change, "correlation": correlation}


def find(records: Sequence[Record], gan: GanLoss) -> list[str]:
    """What is wrong after the last record, a sentence each; nothing before there are enough of them."""
    found = []
    last = records[-1]
    if last["skipped_steps"] > (records[-2]["skipped_steps"] if len(records) > 1 else 0):
        found.append(
            f"{last['skipped_steps']} steps without finite gradients were skipped so far; if they go on, lower --optimizer.learning-rate, "
            "or give --precision fp32"
        )
    recent = records[-WINDOW:]
    if len(recent) < WINDOW:
        return found

    def always(name: str, holds: Callable[[float], bool]) -> bool:
        return all(record[name] is not None and holds(record[name]) for record in recent)

    for domain, direction in (("b", "a2b"), ("a", "b2a")):
        if gan in BLIND:
            judge, blind = f"discriminator_{domain}", BLIND[gan]
            if always(judge, lambda loss, blind=blind: loss < 0.02 * blind):  # type: ignore[misc]
                found.append(
                    f"{judge} tells every fake: generator_{direction} learns nothing from it any more; give it less weight "
                    "(--loss.discriminator 0.5), a --pool-size, or fewer --discriminator.channels"
                )
            if always(judge, lambda loss, blind=blind: abs(loss - blind) < 0.005 * blind):  # type: ignore[misc]
                found.append(
                    f"{judge} gives every image the same score: unless the fakes of {direction} are perfect, it has collapsed; "
                    "fork an earlier checkpoint with a lower --optimizer.learning-rate"
                )
        if always(f"change_{direction}", lambda change: change < _UNCHANGED):
            found.append(
                f"{direction} gives back its input: lower --loss.identity or --loss.cycle, or look whether the domains differ at all"
            )
        if always(f"correlation_{direction}", lambda correlation: correlation < _INVERTED):
            found.append(f"{direction} turns light into dark: a known trap of the cycle loss; give --loss.identity 5, or another --seed")
    return found
