"""Generators on disk: ours, junyanz's and the seed's, and all that is none."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cyclegan.errors import InputError
from cyclegan.images import PixelFormat
from cyclegan.networks import DiscriminatorSpec, GeneratorSpec
from cyclegan.weights import load_generator, save_generator

SEED = GeneratorSpec(architecture="seed", channels=4, blocks=2, norm="batch")
RESNET = GeneratorSpec(architecture="resnet", channels=4, blocks=6)


def save_pth(path: Path, network: nn.Module, prefix: str = "", extra: Mapping[str, Tensor] = MappingProxyType({})) -> Path:
    torch.save({**{prefix + key: value for key, value in network.state_dict().items()}, **extra}, path)
    return path


def same_output(network: nn.Module, other: nn.Module) -> bool:
    first = next(parameter for parameter in network.parameters() if parameter.ndim == 4)
    x = torch.rand(1, first.shape[1], 32, 32)
    with torch.inference_mode():
        return torch.equal(network.eval()(x), other(x))


def test_exported_generator_comes_back(tmp_path: Path) -> None:
    network = SEED.build()
    network(torch.rand(2, 3, 32, 32))  # running statistics unlike the first ones
    save_generator(str(tmp_path / "g"), network, spec=SEED, size=64, direction="b2a", training={"step": 7})
    for place in (tmp_path / "g", tmp_path / "g" / "generator.safetensors"):
        loaded = load_generator(str(place), "b2a")
        assert (loaded.spec, loaded.size, loaded.direction, loaded.training) == (SEED, 64, "b2a", {"step": 7})
        assert same_output(network, loaded.build())


def test_pixels_come_back(tmp_path: Path) -> None:
    """Each side's channels and bits; a file from before they were written means 8-bit RGB."""
    spec = GeneratorSpec(architecture="seed", channels=4, blocks=2, inputs=1, outputs=4)
    network, (grey, colours) = spec.build(), (PixelFormat(1, 16), PixelFormat(4, 16))
    save_generator(str(tmp_path / "g"), network, spec=spec, size=64, direction="a2b", training={}, input=grey, output=colours)
    loaded = load_generator(str(tmp_path / "g"))
    assert (loaded.input, loaded.output) == (grey, colours)
    assert same_output(network, loaded.build())
    save_generator(str(tmp_path / "old"), SEED.build(), spec=SEED, size=64, direction="a2b", training={})
    file = tmp_path / "old" / "generator.json"
    facts = json.loads(file.read_text())
    assert facts.pop("pixels") == {side: {"channels": 3, "bits": 8} for side in ("input", "output")}
    file.write_text(json.dumps(facts))
    loaded = load_generator(str(tmp_path / "old"))
    assert (loaded.input, loaded.output) == (PixelFormat(), PixelFormat())


def test_run_holds_both_directions(tmp_path: Path) -> None:
    for direction in ("a2b", "b2a"):
        save_generator(str(tmp_path / "generators" / direction), SEED.build(), spec=SEED, size=64, direction=direction, training={})
    assert load_generator(str(tmp_path)).direction == "a2b"
    assert load_generator(str(tmp_path), "b2a").direction == "b2a"


@pytest.mark.parametrize("suffix", ["", "_A"])
@pytest.mark.parametrize("blocks", [6, 9])
def test_junyanz(tmp_path: Path, blocks: int, suffix: str) -> None:
    network = GeneratorSpec(architecture="resnet", channels=8, blocks=blocks).build()
    loaded = load_generator(str(save_pth(tmp_path / f"latest_net_G{suffix}.pth", network)), "b2a")
    assert (loaded.spec.architecture, loaded.spec.blocks, loaded.spec.norm, loaded.size) == ("resnet", blocks, "instance", 256)
    assert loaded.direction == "b2a"
    assert same_output(network, loaded.build())


def test_junyanz_saved_before_torch_0_4(tmp_path: Path) -> None:
    network = RESNET.build()
    stale = {f"model.{n}.running_mean": torch.zeros(4) for n in (2, 5)} | {"model.2.running_var": torch.ones(4)}
    stale |= {"model.10.conv_block.6.running_var": torch.ones(16), "model.2.num_batches_tracked": torch.tensor(0)}
    loaded = load_generator(str(save_pth(tmp_path / "latest_net_G.pth", network, extra=stale)))
    assert same_output(network, loaded.build())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_dropped(tmp_path: Path, prefix: str) -> None:
    network = RESNET.build()
    assert same_output(network, load_generator(str(save_pth(tmp_path / "g.pth", network, prefix))).build())


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_junyanz_trained_with_dropout(tmp_path: Path, norm: Any) -> None:
    network = GeneratorSpec(architecture="resnet", channels=4, blocks=6, norm=norm, dropout=True).build()
    loaded = load_generator(str(save_pth(tmp_path / "g.pth", network)))
    assert (loaded.spec.dropout, loaded.spec.norm) == (True, norm)
    assert same_output(network, loaded.build())


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(("levels", "size"), [(5, 256), (7, 128), (8, 256)])
def test_junyanz_unet(tmp_path: Path, levels: int, size: int, norm: Any, dropout: bool) -> None:
    """Dropout leaves no trace in the keys, and a generator in use has none."""
    network = GeneratorSpec(architecture="unet", channels=2, blocks=levels, norm=norm, dropout=dropout, inputs=1, outputs=2).build()
    loaded = load_generator(str(save_pth(tmp_path / "latest_net_G.pth", network)))
    assert loaded.spec == GeneratorSpec(architecture="unet", channels=2, blocks=levels, norm=norm, inputs=1, outputs=2)
    assert (loaded.size, loaded.input, loaded.output) == (size, PixelFormat(1), PixelFormat(2))
    x = torch.rand(1, 1, 1 << levels, 1 << levels)
    with torch.inference_mode():
        assert torch.equal(network.eval()(x), loaded.build()(x))


def test_junyanz_unet_saved_before_torch_0_4(tmp_path: Path) -> None:
    network = GeneratorSpec(architecture="unet", channels=2, blocks=5).build()
    stale = {"model.model.1.model.2.running_mean": torch.zeros(4), "model.model.1.model.6.running_var": torch.ones(2)}
    assert same_output(network, load_generator(str(save_pth(tmp_path / "g.pth", network, extra=stale))).build())


@pytest.mark.parametrize("architecture", ["seed", "resnet", "unet"])
def test_channels_are_read_off_the_shapes(tmp_path: Path, architecture: Any) -> None:
    network = GeneratorSpec(architecture=architecture, channels=4, blocks=5, inputs=4, outputs=1).build()
    loaded = load_generator(str(save_pth(tmp_path / "g.pth", network)))
    assert (loaded.input, loaded.output) == (PixelFormat(4), PixelFormat(1))
    assert same_output(network, loaded.build())


def test_seed_pickle(tmp_path: Path) -> None:
    network = SEED.build()
    loaded = load_generator(str(save_pth(tmp_path / "G_XtoY.pkl", network)))
    assert (loaded.spec, loaded.size, loaded.direction) == (SEED, 128, None)
    assert same_output(network, loaded.build())


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, save: Any) -> None:
    save({"model.1.weight": Malicious(tmp_path / "ran")}, tmp_path / "g.pth")
    with pytest.raises(InputError, match="without running code"):
        load_generator(str(tmp_path / "g.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"conv1.0.weight": torch.zeros(1), "conv5.0.weight": torch.zeros(1)}, "discriminator"),
        (DiscriminatorSpec(architecture="patch", channels=4).build().state_dict(), "discriminator"),
        ({"encoder.weight": torch.zeros(3)}, "no generator known here"),
        ({"epoch": 3, "state": {}}, "no bare state dict"),
        ({**SEED.build().state_dict(), "conv1.0.weight": torch.zeros(4, 5, 4, 4)}, "translates 5 channels into 3"),
        (GeneratorSpec(architecture="unet", channels=2, blocks=5, outputs=7).build().state_dict(), "translates 3 channels into 7"),
        ({**SEED.build().state_dict(), "conv1.0.weight": torch.zeros(4)}, "does not fit"),
        ({**RESNET.build().state_dict(), "model.99.bias": torch.zeros(4)}, "does not fit"),
        ({**SEED.build().state_dict(), "conv2.0.weight": torch.zeros(5, 5, 4, 4)}, "does not fit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_state_dicts_of_other_things(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "g.pth")
    with pytest.raises(InputError, match=reason) as caught:
        load_generator(str(tmp_path / "g.pth"))
    assert "g.pth" in str(caught.value)


@pytest.mark.parametrize("name", ["g.pth", "g.pkl", "g.safetensors"])
def test_other_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xd8 this is a photo")
    with pytest.raises(InputError, match=name):
        load_generator(str(tmp_path / name))


def test_places_without_a_generator(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        load_generator(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="neither a RUN nor an exported generator"):
        load_generator(str(tmp_path))
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match="no generators yet"):
        load_generator(str(tmp_path))


def test_damaged_export(tmp_path: Path) -> None:
    save_generator(str(tmp_path), SEED.build(), spec=SEED, size=64, direction="a2b", training={})
    with pytest.raises(InputError, match="translates a2b, not b2a"):
        load_generator(str(tmp_path), "b2a")
    facts = json.loads((tmp_path / "generator.json").read_text())
    data = bytearray((tmp_path / "generator.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "generator.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="damaged or replaced"):
        load_generator(str(tmp_path))
    (tmp_path / "generator.json").write_text(json.dumps({**facts, "pixels": {**facts["pixels"], "output": {"channels": 1}}}))
    with pytest.raises(InputError, match="3 channels of 8 bits to 1 channel of 8 bits"):
        load_generator(str(tmp_path))
    (tmp_path / "generator.json").write_text(json.dumps({**facts, "pixels": {**facts["pixels"], "output": {"channels": 3, "bits": 12}}}))
    with pytest.raises(InputError, match="not the description of a generator"):
        load_generator(str(tmp_path))
    (tmp_path / "generator.json").write_text(json.dumps({**facts, "architecture": {"name": "other"}}))
    with pytest.raises(InputError, match="not the description of a generator"):
        load_generator(str(tmp_path))
