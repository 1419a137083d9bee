"""Between whole numbers, as images are stored, and floats in [-1, 1], as the networks take and give them.

In and out: tensors of any shape.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit_range(batch: Tensor) -> Tensor:
    """Whole numbers, uint8 [0, 255] or uint16 [0, 65535], to float [-1, 1]: x / (half of the largest) - 1."""
    return batch.float().div_(torch.iinfo(batch.dtype).max / 2).sub_(1)


def from_unit_range(batch: Tensor, bits: int = 8) -> Tensor:
    """Floats [-1, 1] to whole numbers of 8 or 16 bits, rounded."""
    dtype = torch.uint8 if bits == 8 else torch.uint16
    largest = torch.iinfo(dtype).max
    return batch.float().add(1).mul(largest / 2).round().clamp(0, largest).to(dtype)
