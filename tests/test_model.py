"""One step of the model is the step of the paper, written out a second time here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cyclegan.average import RunningAverage
from cyclegan.config import PRESETS, OptimizerSettings, TrainSettings
from cyclegan.errors import InputError
from cyclegan.image_pool import ImagePool
from cyclegan.model import CycleGAN, learning_rate_factor, refuse_sizes
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

    losses = model.step(x, y, 2).losses
    expected = paper_step(nets, x, y, lam=10, identity=identity, halved=halved)

    torch.testing.assert_close(losses["cycle_a"] + losses["cycle_b"], expected["cycle"], atol=1e-5, rtol=0)
    torch.testing.assert_close(losses["adversarial_a2b"] + losses["adversarial_b2a"], expected["gan"], atol=1e-5, rtol=0)
    for key, network in model.networks().items():
        for parameter, other in zip(network.state_dict().items(), nets[key].state_dict().items(), strict=True):
            torch.testing.assert_close(parameter[1], other[1], atol=1e-5, rtol=0, msg=f"{key}.{parameter[0]}")


def test_step_moves_every_network() -> None:
    model = CycleGAN(preset("paper"), CPU)
    before = {key: copy.deepcopy(network.state_dict()) for key, network in model.networks().items()}
    x, y = torch.rand(2, 1, 3, 64, 64)
    model.step(x, y, 1)
    for key, network in model.networks().items():
        assert any(not torch.equal(value, before[key][name]) for name, value in network.state_dict().items()), key


DROPOUT = {"architecture": "resnet", "channels": 4, "blocks": 1, "dropout": True, "norm": "instance"}
WASSERSTEIN = {"loss": {"gan": "wgangp"}, "discriminator": {"architecture": "patch", "channels": 4, "layers": 2, "norm": "instance"}}


@pytest.mark.parametrize(
    "changes", [{}, {"generator": DROPOUT}, WASSERSTEIN, {"precision": "fp16"}], ids=["plain", "dropout", "wgangp", "fp16"]
)
def test_state_goes_on_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Also what is drawn at random in a step, and the scale of fp16 losses."""
    settings = tiny_settings(tmp_path, tmp_path, **changes)
    batches = torch.rand(6, 2, 2, 3, 32, 32)
    whole = CycleGAN(settings, CPU)
    for count, (x, y) in enumerate(batches, 1):
        whole.step(x, y, 2 * count)
    first = CycleGAN(settings, CPU)  # seeds the random numbers again
    for count, (x, y) in enumerate(batches[:3], 1):
        first.step(x, y, 2 * count)
    torch.save({"model": first.state_dict(), "worker": first.worker_state_dict()}, tmp_path / "state.pt")
    second = CycleGAN(settings.model_copy(update={"seed": 9}), CPU, rank=5)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(state["model"])
    second.load_worker_state_dict(state["worker"])
    for count, (x, y) in enumerate(batches[3:], 4):
        second.step(x, y, 2 * count)
    assert torch.equal(whole.checksum(), second.checksum())
    for direction, network in second.generators_to_keep().items():
        for key, value in whole.generators_to_keep()[direction].state_dict().items():
            assert torch.equal(value, network.state_dict()[key])


@pytest.mark.parametrize("changes", [{"generator": {"norm": "instance"}, "discriminator": {"norm": "instance"}, "accumulate": 4}])
def test_a_batch_taken_in_parts_is_the_same_batch(changes: dict[str, Any]) -> None:
    whole, parts = CycleGAN(narrow(**{**changes, "accumulate": 1}), CPU), CycleGAN(narrow(**changes), CPU)
    x, y = torch.rand(2, 4, 3, 64, 64).mul(2).sub(1)
    one, other = whole.step(x, y, 4), parts.step(x, y, 4)
    for name, loss in one.losses.items():
        torch.testing.assert_close(other.losses[name], loss, atol=1e-5, rtol=0)
    for key, network in whole.networks().items():
        for name, value in network.named_parameters():
            torch.testing.assert_close(dict(parts.networks()[key].named_parameters())[name].grad, value.grad, atol=1e-5, rtol=0)


def narrow(**changes: Any) -> TrainSettings:
    """The seed preset with narrow networks, changed."""
    nets = {"generator": {"channels": 8, "blocks": 2}, "discriminator": {"channels": 8}}
    merged = {**nets, **{key: {**nets.get(key, {}), **value} if isinstance(value, dict) else value for key, value in changes.items()}}
    return TrainSettings.model_validate({"data": {"a": "", "b": ""}, "out": "", "size": 64, "steps": 9, **merged})


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"gan": "hinge"}},
        {"loss": {"gan": "vanilla"}},
        {"loss": {"gan": "wgangp"}, "discriminator": {"architecture": "patch", "norm": "instance"}},
        {"generator": {"architecture": "unet", "blocks": 4, "dropout": True}, "discriminator": {"architecture": "pixel"}},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"ema_half_life": 0},
        {"data": {"a": "", "b": "", "channels_a": 1, "channels_b": 4}},
    ],
    ids=str,
)
def test_every_option_trains(changes: dict[str, Any]) -> None:
    """Two steps are finite, move all networks, and the cycle loss of a batch seen again and again goes down."""
    torch.manual_seed(1)
    model = CycleGAN(narrow(**changes, optimizer={"learning_rate": 2e-3}), CPU)
    x = torch.rand(2, model.settings.data.channels_a, 64, 64).mul(2).sub(1)
    y = torch.rand(2, model.settings.data.channels_b, 64, 64).mul(2).sub(1)
    before = model.checksum()
    losses = [model.step(x, y, 2 * count).losses for count in range(1, 9)]
    assert all(torch.isfinite(value) for step in losses for value in step.values())
    assert losses[-1]["cycle_a"] + losses[-1]["cycle_b"] < losses[0]["cycle_a"] + losses[0]["cycle_b"]
    assert not torch.equal(before, model.checksum())
    assert int(model.skipped) <= (2 if changes.get("precision") == "fp16" else 0), "only the scale of fp16 has to be found"
    shape = model.generators_to_keep()["a2b"](x).shape
    assert shape == y.shape


def test_compiled_phases_are_the_same_phases() -> None:
    """And keep their names: torch.compile puts none of its own before them."""
    small = {"generator": {"channels": 4, "blocks": 1}, "discriminator": {"architecture": "pixel", "channels": 4}, "size": 16}
    plain, compiled = CycleGAN(narrow(**small), CPU), CycleGAN(narrow(**small, compile=True), CPU)
    x, y = torch.rand(2, 2, 3, 16, 16).mul(2).sub(1)
    one, other = plain.step(x, y, 2), compiled.step(x, y, 2)
    for name, loss in one.losses.items():
        torch.testing.assert_close(other.losses[name], loss, atol=1e-4, rtol=0)
    assert plain.state_dict()["generator_a2b"].keys() == compiled.state_dict()["generator_a2b"].keys()


def test_a_step_without_finite_gradients_changes_nothing() -> None:
    model = CycleGAN(narrow(pool_size=4), CPU)
    x, y = torch.rand(2, 2, 3, 64, 64).mul(2).sub(1)
    model.step(x, y, 2)
    before = copy.deepcopy(model.state_dict())
    bad = x.clone()
    bad[0, 0, 0, 0] = torch.nan
    model.step(bad, y, 4)
    assert (int(model.skipped), int(model.skipped_in_a_row)) == (1, 1)
    for name in ("generator_a2b", "generator_b2a", "discriminator_a", "discriminator_b"):
        for key, value in model.state_dict()[name].items():
            if not key.endswith("num_batches_tracked"):
                assert torch.equal(value, before[name][key]), f"{name}.{key}"
    for _ in range(8):  # long enough for what is in the pools to come out
        losses = model.step(x, y, 6).losses
        assert all(torch.isfinite(value) for value in losses.values())
    assert (int(model.skipped), int(model.skipped_in_a_row)) == (1, 0)


def test_average_has_its_half_life_in_images() -> None:
    """Whatever the batch: after one half-life of images in which the weights stay, the average is half way there."""
    for batch in (10, 100):
        network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(network.weight)
        average = RunningAverage(network, half_life=1000)
        average.update(network, batch=batch, images=10**6)
        torch.nn.init.ones_(network.weight)
        for _ in range(1000 // batch):
            average.update(network, batch=batch, images=10**6)
        assert float(average.network.weight) == pytest.approx(0.5, abs=1e-4)  # type: ignore[arg-type]


def test_schedules() -> None:
    def factors(schedule: str, decay_from: float) -> list[float]:
        optimizer = OptimizerSettings.model_validate({"schedule": schedule, "decay_from": decay_from})
        return [learning_rate_factor(done, optimizer) for done in (0, 0.5, 0.75, 1)]

    assert factors("linear", 0.5) == [1, 1, 0.5, 0], "the paper's"
    assert factors("constant", 0.5) == [1, 1, 1, 1]
    assert factors("cosine", 0.5) == pytest.approx([1, 1, 0.5, 0])
    assert factors("cosine", 0.0) == pytest.approx([1, 0.5, (1 - 0.5**0.5) / 2, 0])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": 100}, "--size 100: must be a multiple of 8"),
        ({"size": 24}, "--size 24: the seed discriminator needs at least 32"),
        ({"generator": {"architecture": "unet", "blocks": 7}}, "--size 64: must be a multiple of 128"),
        ({"generator": {"architecture": "unet", "blocks": 1}}, "a U-Net needs at least 2 levels"),
    ],
)
def test_sizes_that_do_not_fit_the_networks_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        refuse_sizes(narrow(**changes))


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
