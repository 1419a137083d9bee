"""The running average of a generator's weights, which makes better pictures than the weights of any one step.

In: a network while it trains, and how many images each step took. Out: a second network of the same architecture.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_Tensors = tuple[Tensor, ...] | list[Tensor]

_WARM_UP = 0.05
"""The half-life is at most this share of the images seen, so that a short run does not export its first weights."""


class RunningAverage:
    """Exponential moving average of weights and BatchNorm statistics.

    Its half-life is counted in images, so it means the same with any batch and any number of workers: a step of `batch` images keeps
    0.5^(batch / half-life) of the average (Karras et al. 2020, StyleGAN2's code; Karras et al. 2019, section B, without the warm-up).

    Args:
        network: what to average; not wrapped by DistributedDataParallel.
        half_life: in images.
    """

    def __init__(self, network: nn.Module, half_life: float) -> None:
        self.half_life = half_life
        self._decay = 0.0
        self._averaged = AveragedModel(network, multi_avg_fn=self._average, use_buffers=True)
        self._averaged.requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        """The averaged network."""
        return self._averaged.module

    def update(self, network: nn.Module, *, batch: int, images: int) -> None:
        """Takes in the weights after a step of `batch` images, `images` since the start."""
        self._decay = 0.5 ** (batch / min(self.half_life, _WARM_UP * images))
        self._averaged.update_parameters(network)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and how often they were updated."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self._averaged.load_state_dict(state)

    def _average(self, averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        get_ema_multi_avg_fn(self._decay)(averaged, current, count)  # type: ignore[no-untyped-call]
