"""The prepared generator makes what the plain network makes, whatever comes and however little memory there is."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cyclegan import inference
from cyclegan.geometry import pad_to_multiple
from cyclegan.images import PixelFormat, Pixels
from cyclegan.inference import BatchSizes, PreparedGenerator, prepare_network
from cyclegan.landscapes import draw
from cyclegan.networks import GeneratorSpec
from cyclegan.weights import Generator
from cyclegan.winograd import WinogradConv2d

CPU = torch.device("cpu")
RESNET = GeneratorSpec(architecture="resnet", channels=4, blocks=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network_of(spec: GeneratorSpec) -> nn.Module:
    """With contrast, and with BatchNorm that has seen something."""
    torch.manual_seed(0)
    network = spec.build()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low in ((layer.weight, 0.5), (layer.bias, -0.5), (layer.running_mean, -0.5), (layer.running_var, 0.5)):
                assert values is not None
                nn.init.uniform_(values, low, low + 1)
    *_, last = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d))
    last.weight.data *= 4
    return network.eval()


def generator_of(spec: GeneratorSpec, bits: tuple[int, int] = (8, 8)) -> Generator:
    takes, gives = PixelFormat(spec.inputs, bits[0]), PixelFormat(spec.outputs, bits[1])
    return Generator(spec=spec, state=network_of(spec).state_dict(), sha256="", size=32, input=takes, output=gives)


def photo(index: int, height: int = 48, width: int = 48) -> Pixels:
    return draw(index, "a", max(height, width))[:height, :width]


def alone(generator: Generator, pixels: Pixels) -> Pixels:
    """What the plain network makes of one photo."""
    padded = pad_to_multiple(pixels, generator.spec.stride).transpose(2, 0, 1).astype(np.float32)[None]
    with torch.inference_mode():
        out = generator.build()(torch.from_numpy(padded) / (np.iinfo(pixels.dtype).max / 2) - 1)
    whole = ((out[0] + 1) * (np.iinfo(generator.output.dtype).max / 2)).round().permute(1, 2, 0).numpy()
    made: Pixels = whole[: pixels.shape[0], : pixels.shape[1]].astype(generator.output.dtype)
    return made


def difference(first: Pixels, second: Pixels) -> int:
    assert (first.shape, first.dtype) == (second.shape, second.dtype)
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(("architecture", "blocks"), [("seed", 2), ("resnet", 2), ("unet", 5)])
# with 32 the residual blocks of seed and resnet are wide enough for Winograd's convolutions
@pytest.mark.parametrize(("channels", "most"), [(8, 1e-5), (32, 1e-4)])
def test_preparing_changes_nothing(architecture: str, blocks: int, norm: str, channels: int, most: float) -> None:
    spec = GeneratorSpec(architecture=architecture, channels=channels, blocks=blocks, norm=norm)  # type: ignore[arg-type]
    network = network_of(spec)
    prepared = prepare_network(copy.deepcopy(network), CPU, torch.float32)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in prepared.modules())
    quickened = sum(isinstance(layer, WinogradConv2d) for layer in prepared.modules())
    assert quickened == (4 if channels == 32 and architecture != "unet" else 0)
    x = torch.rand(2, 3, 64, 32) * 2 - 1
    with torch.inference_mode():
        expected = network(x)
        torch.testing.assert_close(prepared(x), expected, atol=most, rtol=0)
    assert expected.std() > 0.05, "a picture without contrast shows no difference"


def test_only_a_norm_right_behind_its_convolution_is_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    assert len(list(prepare_network(network, CPU, torch.float32))) == 4  # type: ignore[call-overload]


def test_any_sizes_come_back_in_their_order() -> None:
    generator = generator_of(RESNET)
    photos = [photo(index, *size) for index, size in enumerate([(48, 48), (33, 50), (48, 48), (5, 70), (46, 45), (33, 50), (48, 48)])]
    prepared = PreparedGenerator(generator, CPU, precision="fp32", batch_size=2)
    for made, source in zip(prepared.translate(photos), photos, strict=True):
        assert difference(made, alone(generator, source)) <= 1
    assert (prepared.tiled, prepared.batch_size) == (frozenset(), 2)
    assert prepared.translate([]) == []


@pytest.mark.parametrize("spec", [RESNET, GeneratorSpec(architecture="seed", channels=4, blocks=1, norm="batch")])
def test_batching_changes_nothing(spec: GeneratorSpec) -> None:
    prepared = PreparedGenerator(generator_of(spec), CPU, batch_size=5)
    photos = [photo(index) for index in range(5)]
    for made, source in zip(prepared.translate(photos), photos, strict=True):
        assert difference(made, prepared.translate([source])[0]) <= 1


@pytest.mark.parametrize(("takes", "gives"), [((1, 16), (2, 16)), ((4, 8), (3, 16)), ((2, 16), (1, 8)), ((3, 8), (4, 8))])
def test_channels_and_bits(takes: tuple[int, int], gives: tuple[int, int]) -> None:
    spec = GeneratorSpec(architecture="resnet", channels=4, blocks=1, inputs=takes[0], outputs=gives[0])
    generator = generator_of(spec, (takes[1], gives[1]))
    prepared = PreparedGenerator(generator, CPU)
    source = np.dstack([photo(0, 40, 30), photo(1, 40, 30)[..., :1]])[..., : takes[0]]
    pixels = source.astype(np.uint16) * np.uint16(257) - np.uint16(77) if takes[1] == 16 else source
    (made,) = prepared.translate([pixels])
    if 16 in (takes[1], gives[1]):
        assert prepared.precision == "fp32", "bf16 would round 16 bits to 8"
        assert difference(made, alone(generator, pixels)) <= (8 if gives[1] == 16 else 1)


def test_bf16_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = generator_of(RESNET)
    monkeypatch.setattr(inference, "has_bf16", lambda device: True)
    prepared = PreparedGenerator(generator, CPU)
    assert prepared.precision == "bf16"
    (made,), expected = prepared.translate([photo(0)]), alone(generator, photo(0))
    error = made.astype(float) - expected
    assert 10 * np.log10(255**2 / (error**2).mean()) > 38
    monkeypatch.setattr(inference, "has_bf16", lambda device: False)
    assert PreparedGenerator(generator, CPU).precision == "fp32"


class LittleMemory(nn.Module):
    """A network on a device that runs out of memory above so many pixels."""

    def __init__(self, network: nn.Module, pixels: int, error: RuntimeError) -> None:
        super().__init__()
        self.network = network
        self.pixels = pixels
        self.error = error
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        if x.numel() // x.shape[1] > self.pixels:
            raise self.error
        out: Tensor = self.network(x)
        return out


CUDA_ERROR = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:129] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate")


@pytest.mark.parametrize("error", [CUDA_ERROR, CPU_ERROR])
def test_a_batch_that_does_not_fit_is_halved(error: RuntimeError) -> None:
    generator = generator_of(RESNET)
    prepared = PreparedGenerator(generator, CPU, precision="fp32", batch_size=8)
    little = LittleMemory(prepared.network, 3 * 48 * 48, error)
    prepared.network = little
    photos = [photo(index) for index in range(9)]
    for made, source in zip(prepared.translate(photos), photos, strict=True):
        assert difference(made, alone(generator, source)) <= 1
    assert little.batches == [8, 4, 2, 2, 2, 2, 1]
    prepared.translate(photos[:2])
    assert little.batches[7:] == [2], "the limit is remembered"


def test_a_photo_that_does_not_fit_goes_through_in_tiles() -> None:
    generator = generator_of(RESNET)
    prepared = PreparedGenerator(generator, CPU, precision="fp32")
    little = LittleMemory(prepared.network, 96 * 96, CPU_ERROR)
    prepared.network = little
    large, small = photo(0, 190, 150), photo(1)
    first, second, third = prepared.translate([small, large, small])
    assert prepared.tiled == {1}
    assert first.shape == third.shape == small.shape
    assert second.shape == large.shape
    assert np.abs(second.astype(float) - alone(generator, large)).mean() < 4, "tiles of 64 px, looked at one by one"
    prepared.translate([small])
    assert prepared.tiled == frozenset()


def test_memory_for_nothing_at_all_is_an_error() -> None:
    prepared = PreparedGenerator(generator_of(RESNET), CPU)
    prepared.network = LittleMemory(prepared.network, 16, CUDA_ERROR)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        prepared.translate([photo(0)])


def test_other_errors_are_not_taken_for_it() -> None:
    prepared = PreparedGenerator(generator_of(RESNET), CPU)
    prepared.network = LittleMemory(prepared.network, 16, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        prepared.translate([photo(0)])


def test_what_cannot_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux promises memory that it does not have, and ends the process that uses it."""
    prepared = PreparedGenerator(generator_of(RESNET), CPU, max_pixels=100 * 100)
    little = LittleMemory(prepared.network, 100 * 100, CPU_ERROR)
    prepared.network = little
    prepared.translate([photo(0, 150, 150), *(photo(index, 50, 50) for index in range(5))])
    assert prepared.tiled == {0}

    measured = PreparedGenerator(generator_of(RESNET), CPU, precision="fp32")
    # the widest layer gets 3 + 6 padded rows and columns of 4 channels, or a ReLU's 4 in and out
    monkeypatch.setattr(inference, "free_bytes", lambda device: 100 * 100 * 4 * 8)
    measured.translate([photo(0, 150, 150), photo(1, 40, 40)])
    assert measured.tiled == {0}


def test_free_memory_is_of_this_world() -> None:
    assert 1 << 20 < inference.free_bytes(CPU) < 1 << 50


def test_photos_larger_than_a_wanted_tile_go_through_in_tiles() -> None:
    prepared = PreparedGenerator(generator_of(RESNET), CPU, tile=64)
    prepared.translate([photo(0, 65, 30), photo(1, 64, 64)])
    assert prepared.tiled == {0}


def rate_at(number: int) -> float:
    """Photos a second of a device that is busy from 16 on, and for some reason likes no batches of 8."""
    return 10.0 * (2 if number == 8 else min(number, 16)) - number / 100


def search(sizes: BatchSizes, size: tuple[int, int], fitting: int, calls: int = 40) -> list[int]:
    tried = []
    for _ in range(calls):
        number, timed = sizes.propose(size, fitting)
        assert 1 <= number <= fitting
        tried.append(number)
        if timed:
            sizes.note(size, number, number / rate_at(number))
    return tried


def test_search_doubles_while_it_pays() -> None:
    sizes = BatchSizes()
    tried = search(sizes, (64, 64), 1000)
    assert tried[:21] == [number for number in (1, 2, 4, 8, 16, 32, 64) for _ in range(3)]
    assert set(tried[21:]) == {16}
    assert sizes.propose((64, 64), 1000) == (16, False)
    assert search(sizes, (128, 128), 1000)[0] == 2, "half as many pixels as were quickest"
    assert sizes.propose((64, 64), 1000)[0] == 16, "each size of photo has its own"


def test_search_stays_within_memory() -> None:
    sizes = BatchSizes()
    assert search(sizes, (64, 64), 6)[-1] == 4
    assert search(sizes, (64, 64), 3)[-1] == 3, "there is less of it now"
    assert search(BatchSizes(7), (64, 64), 5) == [5] * 40


def test_search_runs_on_real_photos() -> None:
    prepared = PreparedGenerator(generator_of(RESNET), CPU, max_pixels=8 * 32 * 32)
    little = LittleMemory(prepared.network, 8 * 32 * 32, CPU_ERROR)
    prepared.network = little
    assert len(prepared.translate([photo(index, 32, 32) for index in range(40)])) == 40
    assert sum(little.batches) == 40
    assert prepared.batch_size in (1, 2, 4, 8)
