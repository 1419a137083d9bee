"""Adam that survives a bad step: where gradients are not finite nothing changes, and the step is counted.

In: the parameters of one phase, losses. Out: updated parameters, and whether the step was skipped. The decision stays on the device:
reading it in every step would make the CPU wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class GuardedAdam:
    """Adam over the parameters of a phase, with a loss scaler of its own where the arithmetic is fp16.

    Args:
        parameters: what to train; all on one device. Workers that share gradients skip the same steps.
        learning_rate: at the start.
        betas: of Adam.
        fp16: scale the losses, so that small gradients don't vanish in half precision (Micikevicius et al. 2018, section 3.2).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, learning_rate: float, betas: tuple[float, float], fp16: bool) -> None:
        self.parameters = list(parameters)
        self._adam = torch.optim.Adam(self.parameters, lr=learning_rate, betas=betas, fused=True)
        self._scaler = torch.amp.GradScaler(self.parameters[0].device.type, enabled=fp16)

    def clear(self) -> None:
        """Forgets the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self) -> Tensor:
        """Descends, unless a gradient is not finite.

        Returns:
            Whether the step was skipped: a bool scalar on the device.
        """
        self._scaler.unscale_(self._adam)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        skipped = ~torch.nn.utils.get_total_norm(gradients).isfinite()
        if self._scaler.is_enabled():
            self._scaler.step(self._adam)
            self._scaler.update()
        else:
            # how GradScaler tells a fused optimizer to leave everything as it is
            self._adam.grad_scale, self._adam.found_inf = None, skipped.float()  # type: ignore[attr-defined]
            self._adam.step()
        return skipped

    def set_learning_rate(self, rate: float) -> None:
        """From the next step on."""
        for group in self._adam.param_groups:
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Moments and loss scale."""
        return {"adam": self._adam.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave, but keeps its own learning rate and betas: a fork may have others."""
        own = {name: self._adam.param_groups[0][name] for name in ("lr", "betas")}
        self._adam.load_state_dict(state["adam"])
        self._adam.param_groups[0].update(own)
        if state["scaler"] and self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
