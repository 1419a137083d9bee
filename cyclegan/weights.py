"""The generator on disk: ours, junyanz's, the seed's.

In: a RUN, an exported generator (`generator.safetensors` + `generator.json`), or a bare state dict (`latest_net_G_A.pth`,
`G_XtoY.pkl`), whose architecture is read off its keys. Out: a `Generator` that builds the network. Weights are data: pickles are
opened with `weights_only=True`, and nothing else in them is run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from dataclasses import dataclass, field
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cyclegan import storage
from cyclegan.errors import InputError
from cyclegan.images import RGB8, PixelFormat
from cyclegan.networks import GeneratorSpec

StateDict = dict[str, Tensor]

WEIGHTS_FILE = "generator.safetensors"
FACTS_FILE = "generator.json"
_FACTS_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A generator as data: weights on the CPU and what is known about them.

    Args:
        spec: what to build.
        state: its state dict.
        sha256: of the weights file.
        size: side in pixels of the images it was trained on.
        input: the pixels it takes.
        output: the pixels it gives.
        direction: `a2b` or `b2a`; None where the file does not say.
        training: facts about the run that made it.
    """

    spec: GeneratorSpec
    state: StateDict
    sha256: str
    size: int
    input: PixelFormat = RGB8
    output: PixelFormat = RGB8
    direction: str | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network in eval mode, on the CPU."""
        network = self.spec.build()
        network.load_state_dict(self.state)
        return network.eval()


def save_generator(
    folder: str,
    network: nn.Module,
    *,
    spec: GeneratorSpec,
    size: int,
    direction: str,
    training: dict[str, Any],
    input: PixelFormat = RGB8,  # noqa: A002  # as it is called in generator.json
    output: PixelFormat = RGB8,
) -> None:
    """Writes a generator and what there is to know about it into `folder`.

    Args:
        folder: path or URI; its two files are replaced.
        network: built from `spec`, on any device.
        spec: its architecture.
        size: side in pixels of the images it was trained on.
        direction: `a2b` or `b2a`.
        training: facts worth keeping, plain JSON.
        input: the pixels it takes; as many channels as `spec` says.
        output: the pixels it gives, likewise.
    """
    assert (input.channels, output.channels) == (spec.inputs, spec.outputs)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    data = safetensors.torch.save(state)
    facts = {
        "version": _FACTS_VERSION,
        "architecture": dataclasses.asdict(spec),
        "size": size,
        "pixels": {"input": dataclasses.asdict(input), "output": dataclasses.asdict(output)},
        "normalisation": "value / (largest value / 2) - 1",
        "direction": direction,
        "training": training,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    storage.write_bytes(storage.join(folder, WEIGHTS_FILE), data)
    storage.write_text(storage.join(folder, FACTS_FILE), json.dumps(facts, indent=2) + "\n")


def load_generator(place: str, direction: str | None = None) -> Generator:
    """Reads a generator.

    Args:
        place: a RUN, a folder with an exported generator, its weights file, or a bare state dict.
        direction: which generator of a RUN (a2b where None); for an exported one, what it is expected to be.

    Raises:
        InputError: nothing there, no generator, damaged, or made for the other direction.
    """
    place = storage.absolute(place)
    if not storage.exists(place):
        raise InputError(f"{place}: no such file or folder; give a RUN, an exported generator or a state dict")
    if storage.exists(storage.join(place, "generators")):
        place = storage.join(place, "generators", direction or "a2b")
    elif storage.exists(storage.join(place, "config.yaml")):
        raise InputError(f"{place}: this run has no generators yet; they come with its first checkpoint")
    folder = place.removesuffix("/" + WEIGHTS_FILE)
    if storage.exists(storage.join(folder, FACTS_FILE)):
        return _load_exported(folder, direction)
    try:
        data = storage.read_bytes(place)
    except OSError:
        raise InputError(f"{place}: neither a RUN nor an exported generator ({FACTS_FILE} is missing)") from None
    return dataclasses.replace(_read_bare(place, data), direction=direction)


def _load_exported(folder: str, direction: str | None) -> Generator:
    facts_file, weights_file = storage.join(folder, FACTS_FILE), storage.join(folder, WEIGHTS_FILE)
    try:
        facts = json.loads(storage.read_text(facts_file))
        spec = GeneratorSpec(**facts["architecture"])
        pixels = facts.get("pixels", {"input": {}, "output": {}})  # before there were any but 8-bit RGB
        takes, gives = PixelFormat(**pixels["input"]), PixelFormat(**pixels["output"])
        expected, made_for, size, training = facts["sha256"], facts["direction"], int(facts["size"]), dict(facts["training"])
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{facts_file}: not the description of a generator ({type(error).__name__}: {error})") from None
    if (takes.channels, gives.channels) != (spec.inputs, spec.outputs):
        raise InputError(f"{facts_file}: pixels of {takes} to {gives} for a network from {spec.inputs} to {spec.outputs} channels")
    if direction and direction != made_for:
        raise InputError(f"{folder}: this generator translates {made_for}, not {direction}")
    try:
        data = storage.read_bytes(weights_file)
    except OSError as error:
        raise InputError(f"{weights_file}: {error}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise InputError(f"{weights_file}: damaged or replaced; its sha256 is {found[:12]}…, {FACTS_FILE} says {expected[:12]}…")
    state = safetensors.torch.load(data)
    _check_fits(weights_file, spec, state)
    return Generator(spec=spec, state=state, sha256=found, size=size, input=takes, output=gives, direction=made_for, training=training)


def _read_bare(place: str, data: bytes) -> Generator:
    state = _unpickle(place, data)
    prefixes = r"^(module\.|_orig_mod\.)+"  # left by DistributedDataParallel and torch.compile
    state = {re.sub(prefixes, "", key): tensor for key, tensor in state.items()}
    spec = _recognise(place, state)
    if spec.norm == "instance":
        # before torch 0.4 InstanceNorm kept running statistics that nothing reads
        state = {key: tensor for key, tensor in state.items() if not re.search(r"running_(mean|var)$|num_batches_tracked$", key)}
    _check_fits(place, spec, state)
    # no file says at which size it was trained: these are the sizes of both code bases
    small = spec.architecture == "seed" or (spec.architecture == "unet" and spec.blocks == 7)
    return Generator(
        spec=spec,
        state=state,
        sha256=hashlib.sha256(data).hexdigest(),
        size=128 if small else 256,
        input=PixelFormat(spec.inputs),
        output=PixelFormat(spec.outputs),
    )


def _unpickle(place: str, data: bytes) -> StateDict:
    try:
        if place.endswith(".safetensors"):
            return safetensors.torch.load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{place}: not a safetensors file ({error})") from None
    except Exception:  # torch.load raises whatever the bytes provoke: UnpicklingError, RuntimeError, EOFError, KeyError …
        raise InputError(f"{place}: not a PyTorch state dict that can be opened without running code in it") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{place}: holds no bare state dict; save `network.state_dict()`")
    return cast(StateDict, dict(state))


def _recognise(place: str, state: StateDict) -> GeneratorSpec:
    """The architecture, from the keys and shapes alone."""
    if "conv1.0.weight" in state and "deconv3.0.weight" in state:
        spec = GeneratorSpec(
            architecture="seed",
            channels=_side(state, "conv1.0.weight", 0),
            blocks=_count(state, r"^res_blocks\.(\d+)\."),
            norm="batch" if "conv1.1.weight" in state else "instance",
            inputs=_side(state, "conv1.0.weight", 1),
            outputs=_side(state, "deconv3.0.weight", 1),
        )
    elif "model.1.weight" in state and "model.10.conv_block.1.weight" in state:
        blocks = _count(state, r"^model\.(\d+)\.conv_block\.")
        # dropout pushes the second convolution of a block from index 5 to 6, where a norm would have one dimension
        after = state.get("model.10.conv_block.6.weight")
        spec = GeneratorSpec(
            architecture="resnet",
            channels=_side(state, "model.1.weight", 0),
            blocks=blocks,
            norm="batch" if "model.2.weight" in state else "instance",
            dropout=after is not None and after.ndim == 4,
            inputs=_side(state, "model.1.weight", 1),
            outputs=_side(state, f"model.{blocks + 17}.weight", 0),
        )
    elif "model.model.0.weight" in state and "model.model.1.model.1.weight" in state:
        # dropout stands last in its level, so the keys don't show it; a generator in use has none
        spec = GeneratorSpec(
            architecture="unet",
            channels=_side(state, "model.model.0.weight", 0),
            blocks=1 + _count(state, r"^model\.model\.1((?:\.model\.3)*)\.model\.1\.weight"),
            norm="batch" if any(key.endswith(".weight") and tensor.ndim == 1 for key, tensor in state.items()) else "instance",
            inputs=_side(state, "model.model.0.weight", 1),
            outputs=_side(state, "model.model.3.weight", 1),
        )
    elif "conv5.0.weight" in state or "model.11.weight" in state:
        raise InputError(f"{place}: these are the weights of a discriminator; a generator is needed")
    else:
        keys = ", ".join(list(state)[:3])
        raise InputError(f"{place}: no generator known here (its keys begin with {keys}); seed, ResNet and U-Net generators are read")
    if not {spec.inputs, spec.outputs} <= {1, 2, 3, 4}:
        raise InputError(f"{place}: translates {spec.inputs} channels into {spec.outputs}; 1 to 4 of each are supported")
    return spec


def _side(state: StateDict, key: str, axis: int) -> int:
    """How many channels a convolution has on one side; 1 where there is no such convolution, which `_check_fits` then says."""
    weight = state.get(key)
    return weight.shape[axis] if weight is not None and weight.ndim == 4 else 1


def _count(state: StateDict, pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _check_fits(place: str, spec: GeneratorSpec, state: StateDict) -> None:
    with torch.device("meta"):
        wanted = spec.build().state_dict()
    wrong = sorted(wanted.keys() ^ state.keys()) or [key for key in wanted if wanted[key].shape != state[key].shape]
    if wrong:
        raise InputError(
            f"{place}: does not fit {spec.architecture} with {spec.blocks} blocks and {spec.norm} norm: {', '.join(wrong[:3])}"
        )
