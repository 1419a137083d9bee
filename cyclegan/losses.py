"""The loss terms of CycleGAN as pure functions.

In: score maps of a discriminator, or images (N, C, H, W) in [-1, 1]. Out: scalar tensors, unweighted means over the batch,
always fp32 (a squared error in half precision loses the small differences that training lives on).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GanLoss = Literal["lsgan", "vanilla", "hinge", "wgangp"]

BLIND: Mapping[GanLoss, float] = {"lsgan": 0.5, "vanilla": 2 * log(2), "hinge": 2.0}
"""Loss of a discriminator that gives every image the same, best possible score; a Wasserstein loss has no such level."""


def adversarial_loss(scores_of_fakes: Tensor, gan: GanLoss = "lsgan") -> Tensor:
    """What a generator pays where its fakes are not taken for real.

    `lsgan`: E[(D(G(x)) - 1)^2], Zhu et al. 2017, section 4; `vanilla`: E[-log sigmoid D(G(x))], the non-saturating loss of Goodfellow
    et al. 2014, section 3; `hinge` and `wgangp`: -E[D(G(x))], Lim and Ye 2017, and Arjovsky et al. 2017, equation 2.
    """
    scores = scores_of_fakes.float()
    if gan == "lsgan":
        return (scores - 1).square().mean()
    if gan == "vanilla":
        return F.softplus(-scores).mean()
    return -scores.mean()


def discriminator_loss(scores_of_reals: Tensor, scores_of_fakes: Tensor, gan: GanLoss = "lsgan") -> Tensor:
    """What a discriminator pays.

    `lsgan`: E[(D(y) - 1)^2] + E[D(G(x))^2]; `vanilla`: E[-log sigmoid D(y)] + E[-log(1 - sigmoid D(G(x)))]; `hinge`:
    E[max(0, 1 - D(y))] + E[max(0, 1 + D(G(x)))]; `wgangp`: E[D(G(x))] - E[D(y)], to which `gradient_penalty` is added.
    """
    reals, fakes = scores_of_reals.float(), scores_of_fakes.float()
    if gan == "lsgan":
        return (reals - 1).square().mean() + fakes.square().mean()
    if gan == "vanilla":
        return F.softplus(-reals).mean() + F.softplus(fakes).mean()
    if gan == "hinge":
        return F.relu(1 - reals).mean() + F.relu(1 + fakes).mean()
    return fakes.mean() - reals.mean()


def gradient_penalty(judge: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """How far a discriminator is from slope 1 between real and fake: E[(|grad D(x)| - 1)^2], Gulrajani et al. 2017, equation 3.

    The x lie at random places between the images of both batches; an image's score is the mean of its patches'.
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = torch.lerp(real.float(), fake.float(), share).requires_grad_()
    with torch.autocast(real.device.type, enabled=False):
        scores = judge(between)
    (slope,) = torch.autograd.grad(scores.sum() / scores[0].numel(), between, create_graph=True)
    length = (slope.flatten(1).square().sum(1) + 1e-12).sqrt()  # the root alone has no gradient at a slope of 0
    return (length - 1).square().mean()


def cycle_loss(rebuilt: Tensor, real: Tensor) -> Tensor:
    """Mean absolute error of an image sent through both generators: E[|F(G(x)) - x|], Zhu et al. 2017, equation 2."""
    return F.l1_loss(rebuilt.float(), real.float())


def identity_loss(same: Tensor, real: Tensor) -> Tensor:
    """What a generator pays for changing an image of its own target domain: E[|G(y) - y|], Zhu et al. 2017, section 5.2."""
    return F.l1_loss(same.float(), real.float())
