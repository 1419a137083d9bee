"""One step of the model is the step of the paper, written out a second time here."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cyclegan.config import PRESETS, TrainSettings
from cyclegan.image_pool import ImagePool
from cyclegan.model import CycleGAN, learning_rate_factor
from tests.conftest import tiny_settings

CPU = torch.device("cpu")


def preset(name: str) -> TrainSettings:
    """A preset, with narrow networks and small pictures."""
    values = {**PRESETS[name], "data": {"a": "", "b": ""}, "out": "", "size": 64, "seed": 3}
    values["generator"] = {**PRESETS[name].get("generator", {}), "channels": 8, "blocks": 2}
    values["discriminator"] = {**PRESETS[name].get("discriminator", {}), "channels": 8}
    return TrainSettings.model_validate(values)


def paper_step(nets: dict[str, nn.Module], x: Tensor, y: Tensor, *, lam: float, identity: float, halved: bool) -> dict[str, Tensor]:
    """Zhu et al. 2017: G: X -> Y and F: Y -> X against frozen D_X and D_Y; then D_Y and D_X on the fakes of that very step."""
    g, f, d_x, d_y = (nets[name] for name in ("generator_a2b", "generator_b2a", "discriminator_a", "discriminator_b"))
    adam_g = torch.optim.Adam([*g.parameters(), *f.parameters()], lr=2e-4, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam([*d_x.parameters(), *d_y.parameters()], lr=2e-4, betas=(0.5, 0.999))

    fake_y, fake_x = g(x), f(y)
    loss_gan = torch.mean((d_y(fake_y) - 1) ** 2) + torch.mean((d_x(fake_x) - 1) ** 2)
    loss_cyc = torch.mean(torch.abs(f(fake_y) - x)) + torch.mean(torch.abs(g(fake_x) - y))
    loss = loss_gan + lam * loss_cyc
    if identity:
        loss = loss + identity * (torch.mean(torch.abs(f(x) - x)) + torch.mean(torch.abs(g(y) - y)))
    adam_g.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    adam_g.step()

    adam_d.zero_grad()  # what the generators' backward left in the discriminators is not theirs
    for d, real, fake in ((d_x, x, fake_x.detach()), (d_y, y, fake_y.detach())):
        loss_d = torch.mean((d(real) - 1) ** 2) + torch.mean(d(fake) ** 2)
        (loss_d / 2 if halved else loss_d).backward()  # type: ignore[no-untyped-call]
    adam_d.step()
    return {"cycle": loss_cyc.detach(), "gan": loss_gan.detach()}


@pytest.mark.parametrize(("name", "identity", "halved"), [("seed", 0.0, False), ("paper", 5.0, True)])
def test_step_equals_the_papers(name: str, identity: float, halved: bool) -> None:
    settings = preset(name)
    model = CycleGAN(settings, CPU)
    nets = {key: copy.deepcopy(network) for key, network in model.networks().items()}
    x, y = torch.rand(2, 2, 3, 64, 64).mul(2).sub(1)

    losses = model.step(x, y)
    expected = paper_step(nets, x, y, lam=10, identity=identity, halved=halved)

    torch.testing.assert_close(losses["cycle_a"] + losses["cycle_b"], expected["cycle"], atol=1e-5, rtol=0)
    torch.testing.assert_close(losses["adversarial_a2b"] + losses["adversarial_b2a"], expected["gan"], atol=1e-5, rtol=0)
    for key, network in model.networks().items():
        for parameter, other in zip(network.state_dict().items(), nets[key].state_dict().items(), strict=True):
            torch.testing.assert_close(parameter[1], other[1], atol=1e-5, rtol=0, msg=f"{key}.{parameter[0]}")


def test_step_moves_every_network() -> None:
    model = CycleGAN(preset("paper"), CPU)
    before = {key: copy.deepcopy(network.state_dict()) for key, network in model.networks().items()}
    model.step(*torch.rand(2, 1, 3, 64, 64))
    for key, network in model.networks().items():
        assert any(not torch.equal(value, before[key][name]) for name, value in network.state_dict().items()), key


def test_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, tmp_path)
    batches = torch.rand(6, 2, 2, 3, 32, 32)
    whole, first = CycleGAN(settings, CPU), CycleGAN(settings, CPU)
    for x, y in batches:
        whole.step(x, y)
    for x, y in batches[:3]:
        first.step(x, y)
    torch.save({"model": first.state_dict(), "pools": first.pools_state_dict()}, tmp_path / "state.pt")
    second = CycleGAN(settings.model_copy(update={"seed": 9}), CPU, rank=5)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(state["model"])
    second.load_pools_state_dict(state["pools"])
    for x, y in batches[3:]:
        second.step(x, y)
    assert torch.equal(whole.checksum(), second.checksum())


def test_learning_rate_of_the_paper() -> None:
    assert [learning_rate_factor(done, 0.5) for done in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]
    assert learning_rate_factor(1, 1.0) == 1


def test_pool_hands_out_half_from_the_past() -> None:
    pool = ImagePool(50, seed=1)
    first = torch.arange(50.0).view(50, 1, 1, 1)
    assert torch.equal(pool.query(first), first), "a pool that is not full hands back what it gets"
    out = pool.query(torch.arange(1000.0, 2000).view(-1, 1, 1, 1)).flatten()
    fresh = (out == torch.arange(1000.0, 2000)).float().mean()
    assert float(fresh) == pytest.approx(0.5, abs=0.05)
    assert len(pool.state_dict()["images"]) == 50


def test_pool_keeps_copies() -> None:
    pool = ImagePool(1, seed=0)
    fake = torch.zeros(1, 1, 1, 1)
    pool.query(fake)
    fake += 1
    assert pool.state_dict()["images"][0].item() == 0


def test_pool_of_nothing() -> None:
    fakes = torch.rand(3, 3, 4, 4)
    assert ImagePool(0, seed=0).query(fakes) is fakes
