"""BatchNorm whose statistics cover the batches of all workers, so that W workers x batch b train like one worker x batch W*b.

In: a network with BatchNorm2d layers. Out: the same network, parameters and key names kept, its statistics shared over
`torch.distributed`. torch.nn.SyncBatchNorm does this on GPUs and refuses CPU tensors; the layer here serves the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _AllReduceSum(torch.autograd.Function):
    """Sum over workers, differentiable: every worker's output depends on every worker's input, so gradients are summed too."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the batches of all workers while training; plain BatchNorm2d in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count = x.numel() // x.shape[1] * dist.get_world_size()
        sums = _AllReduceSum.apply(torch.cat([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]))
        mean, mean_square = (sums / count).chunk(2)
        var = (mean_square - mean.square()).clamp_min(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            # running_var is unbiased, as in torch
            self.running_var.lerp_(var * count / max(count - 1, 1), momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Swaps every BatchNorm2d of `network` for one that shares its statistics; needs a process group when it runs."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    for name, child in network.named_children():
        if type(child) is nn.BatchNorm2d:
            synced = CpuSyncBatchNorm2d(child.num_features, child.eps, child.momentum)
            synced.load_state_dict(child.state_dict())
            setattr(network, name, synced.to(device))
        else:
            synchronise_batch_norm(child, device)
    return network
