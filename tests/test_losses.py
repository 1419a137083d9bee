"""The adversarial games, held against their formulas written with other operators, and one of each trained on numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cyclegan.losses import BLIND, GanLoss, adversarial_loss, discriminator_loss, gradient_penalty

GAMES: tuple[GanLoss, ...] = ("lsgan", "vanilla", "hinge", "wgangp")


def expected(game: GanLoss, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of the discriminator and of the generator."""
    if game == "lsgan":
        return torch.mean((reals - 1) ** 2) + torch.mean(fakes**2), torch.mean((fakes - 1) ** 2)
    if game == "vanilla":
        judged = nn.functional.binary_cross_entropy_with_logits
        real, fake = torch.ones_like(reals), torch.zeros_like(fakes)
        return judged(reals, real) + judged(fakes, fake), judged(fakes, torch.ones_like(fakes))
    if game == "hinge":
        return torch.mean(torch.clamp(1 - reals, min=0)) + torch.mean(torch.clamp(1 + fakes, min=0)), -torch.mean(fakes)
    return torch.mean(fakes) - torch.mean(reals), -torch.mean(fakes)


@pytest.mark.parametrize("game", GAMES)
def test_losses_are_those_of_the_papers(game: GanLoss) -> None:
    reals, fakes = torch.randn(2, 3, 1, 5, 5).mul(2)
    judged, made = expected(game, reals, fakes)
    torch.testing.assert_close(discriminator_loss(reals, fakes, game), judged)
    torch.testing.assert_close(adversarial_loss(fakes, game), made)


@pytest.mark.parametrize("game", GAMES[:3])
def test_a_blind_discriminator_can_not_do_better(game: GanLoss) -> None:
    scores = torch.linspace(-2, 2, 401)
    assert min(float(discriminator_loss(score, score, game)) for score in scores) == pytest.approx(BLIND[game], abs=1e-4)


def test_gradient_penalty_of_a_known_slope() -> None:
    class Slope(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * x.flatten(1).sum(1).view(-1, 1, 1, 1)

    # 12 numbers an image, each with derivative 3: the gradient has length 3 * sqrt(12)
    penalty = gradient_penalty(Slope(), torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2))
    assert float(penalty) == pytest.approx((3 * 12**0.5 - 1) ** 2, rel=1e-5)


def test_gradient_penalty_brings_slopes_to_one() -> None:
    torch.manual_seed(0)
    judge = nn.Conv2d(1, 1, 2)
    nn.init.constant_(judge.weight, 2)
    optimizer = torch.optim.Adam(judge.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        penalty = gradient_penalty(judge, torch.rand(4, 1, 2, 2), torch.rand(4, 1, 2, 2))
        penalty.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(judge.weight.detach().norm()) == pytest.approx(1, abs=0.05)
