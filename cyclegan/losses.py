"""The loss terms of CycleGAN as pure functions.

In: score maps of a discriminator, or images (N, 3, H, W) in [-1, 1]. Out: scalar tensors, unweighted means over the batch,
always fp32 (a squared error in half precision loses the small differences that training lives on).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def adversarial_loss(scores_of_fakes: Tensor) -> Tensor:
    """What a generator pays where its fakes are not taken for real: E[(D(G(x)) - 1)^2], Zhu et al. 2017, section 4."""
    return (scores_of_fakes.float() - 1).square().mean()


def discriminator_loss(scores_of_reals: Tensor, scores_of_fakes: Tensor) -> Tensor:
    """What a discriminator pays: E[(D(y) - 1)^2] + E[D(G(x))^2], Zhu et al. 2017, section 4."""
    return (scores_of_reals.float() - 1).square().mean() + scores_of_fakes.float().square().mean()


def cycle_loss(rebuilt: Tensor, real: Tensor) -> Tensor:
    """Mean absolute error of an image sent through both generators: E[|F(G(x)) - x|], Zhu et al. 2017, equation 2."""
    return F.l1_loss(rebuilt.float(), real.float())


def identity_loss(same: Tensor, real: Tensor) -> Tensor:
    """What a generator pays for changing an image of its own target domain: E[|G(y) - y|], Zhu et al. 2017, section 5.2."""
    return F.l1_loss(same.float(), real.float())
