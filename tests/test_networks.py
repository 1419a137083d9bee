"""Shapes, sizes and key names of the networks are those of the two original code bases."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cyclegan.networks import DiscriminatorSpec, GeneratorSpec, initialise

SEED_G = GeneratorSpec(architecture="seed", norm="batch")
SEED_D = DiscriminatorSpec(architecture="seed", norm="batch")


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        (SEED_G, 8_402_176),
        (SEED_D, 2_765_568),
        (GeneratorSpec(architecture="resnet", blocks=9), 11_378_179),
        (GeneratorSpec(architecture="resnet", blocks=6), 7_837_699),
        (DiscriminatorSpec(architecture="patch"), 2_764_737),
    ],
)
def test_number_of_parameters(spec: GeneratorSpec | DiscriminatorSpec, parameters: int) -> None:
    assert count(spec.build()) == parameters


def test_seed_key_names() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    conv = {f"{name}.0.weight" for name in ("conv1", "conv2", "conv3", "deconv1", "deconv2", "deconv3")}
    norms = {f"{name}.1.{key}" for name in ("conv1", "conv2", "conv3", "deconv1", "deconv2") for key in norm}
    blocks = {f"res_blocks.{n}.conv{c}.{key}" for n in range(6) for c in (1, 2) for key in ("0.weight", *(f"1.{k}" for k in norm))}
    assert SEED_G.build().state_dict().keys() == conv | norms | blocks
    keys = SEED_D.build().state_dict().keys()
    assert keys == {f"conv{n}.0.weight" for n in range(1, 6)} | {f"conv{n}.1.{key}" for n in (2, 3, 4) for key in norm}


@pytest.mark.parametrize(("blocks", "up", "last"), [(9, (19, 22), 26), (6, (16, 19), 23)])
def test_resnet_keys_and_shapes_are_junyanz(blocks: int, up: tuple[int, int], last: int) -> None:
    shapes = {
        "model.1": (64, 3, 7, 7),
        "model.4": (128, 64, 3, 3),
        "model.7": (256, 128, 3, 3),
        **{f"model.{10 + n}.conv_block.{c}": (256, 256, 3, 3) for n in range(blocks) for c in (1, 5)},
        f"model.{up[0]}": (256, 128, 3, 3),
        f"model.{up[1]}": (128, 64, 3, 3),
        f"model.{last}": (3, 64, 7, 7),
    }
    state = GeneratorSpec(architecture="resnet", blocks=blocks).build().state_dict()
    assert {key: tuple(value.shape) for key, value in state.items() if key.endswith("weight")} == {
        f"{key}.weight": shape for key, shape in shapes.items()
    }
    assert {key for key in state if not key.endswith("weight")} == {f"{key}.bias" for key in shapes}


def test_patch_discriminator_keys_are_junyanz() -> None:
    state = DiscriminatorSpec(architecture="patch").build().state_dict()
    assert state.keys() == {f"model.{n}.{key}" for n in (0, 2, 5, 8, 11) for key in ("weight", "bias")}


@pytest.mark.parametrize("spec", [SEED_G, GeneratorSpec(architecture="resnet", channels=8, blocks=1)])
def test_generator_keeps_size_and_range(spec: GeneratorSpec) -> None:
    with torch.inference_mode():
        out = spec.build()(torch.randn(2, 3, 32, 48) * 10)
    assert out.shape == (2, 3, 32, 48)
    assert out.abs().max() <= 1


def test_score_maps_are_as_published() -> None:
    with torch.inference_mode():
        assert SEED_D.build()(torch.randn(1, 3, 128, 128)).shape == (1, 1, 7, 7)
        assert DiscriminatorSpec(architecture="patch").build()(torch.randn(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_patch_discriminator_sees_70_pixels() -> None:
    # without norms, which look at the whole image
    network = nn.Sequential(*(m for m in DiscriminatorSpec(architecture="patch").build().modules() if isinstance(m, nn.Conv2d)))
    image = torch.zeros(1, 3, 256, 256, requires_grad=True)
    network(image)[0, 0, 15, 15].backward()
    assert image.grad is not None
    rows = image.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_seed_block_adds_without_activation() -> None:
    block = SEED_G.build().get_submodule("res_blocks.0").eval()
    x = -torch.rand(1, 256, 4, 4)
    with torch.inference_mode():
        assert (block(x) < 0).any(), "a ReLU after the sum would leave nothing negative"


def test_normal_init() -> None:
    network = initialise(GeneratorSpec(architecture="resnet", channels=32, norm="batch").build(), "normal")
    weights = torch.cat([m.weight.detach().flatten() for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)])
    scales = torch.cat([m.weight.detach() for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.02)
    assert float(scales.mean()) == pytest.approx(1, abs=0.01)
    assert all((m.bias == 0).all() for m in network.modules() if isinstance(m, nn.Conv2d) and m.bias is not None)
