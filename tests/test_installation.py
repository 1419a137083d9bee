"""What was installed fits together."""

from __future__ import annotations

import re
from importlib.metadata import version

import torch
import torchvision

from tests.conftest import REPOSITORY


def test_torchvision_was_built_for_this_torch() -> None:
    """A torchvision for another build of torch fails at import, or at the first of its compiled operators."""
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


def test_constraints_pin_versions_and_name_no_places() -> None:
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line) for line in lines)
    pinned = {line.partition("==")[0].lower(): line.partition("==")[2] for line in lines}
    for name in ("ray", "torchvision", "pyarrow", "pillow", "pydantic"):
        assert pinned[name] == version(name).partition("+")[0]
