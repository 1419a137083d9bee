"""Tiles add up to what the whole photo would have become, and none of them shows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from cyclegan import tiles
from cyclegan.geometry import pad_to_multiple
from cyclegan.images import PixelFormat, Pixels
from cyclegan.landscapes import Domain, draw
from cyclegan.networks import GeneratorSpec, initialise
from cyclegan.tiles import Span, receptive_field, shared_norms, smallest_tile, spans, spread, translate_in_tiles
from cyclegan.unit_range import from_unit_range, to_unit_range

RGB8, RGB16 = PixelFormat(3, 8), PixelFormat(3, 16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


DOMAINS: tuple[Domain, ...] = ("a", "b", "b", "a")


def network_of(spec: GeneratorSpec) -> nn.Module:
    """The paper's first weights, with contrast; where there is BatchNorm, it has seen landscapes."""
    torch.manual_seed(0)
    network = initialise(spec.build(), "normal")
    *_, last = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d))
    last.weight.data *= 60 if spec.norm == "batch" else 4
    if spec.norm == "batch":
        with torch.no_grad():
            for index in range(20):
                network(to_unit_range(torch.from_numpy(draw(index, "a", 64))[None].permute(0, 3, 1, 2)))
    return network.eval()


def photo(height: int, width: int) -> Pixels:
    """A different landscape in each corner: no tile is like the photo."""
    side = max(height, width) // 2 + 1
    a, b, c, d = (draw(index, domain, side) for index, domain in enumerate(DOMAINS))
    return np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)])[:height, :width]


class Forward:
    """Runs batches through a network and counts their photos."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.done = 0

    def __call__(self, photos: Pixels) -> Tensor:
        self.done += len(photos)
        with torch.inference_mode():
            made: Tensor = self.network(to_unit_range(torch.from_numpy(photos).permute(0, 3, 1, 2)))
        return made


def whole(network: nn.Module, pixels: Pixels, stride: int, output: PixelFormat = RGB8) -> Pixels:
    made = from_unit_range(Forward(network)(pad_to_multiple(pixels, stride)[None].copy()), output.bits)[0]
    result: Pixels = made.permute(1, 2, 0).numpy()[: pixels.shape[0], : pixels.shape[1]]
    return result


def psnr(first: Pixels, second: Pixels) -> float:
    error = first.astype(float) - second
    return float(20 * np.log10(np.iinfo(first.dtype).max / np.sqrt((error**2).mean())))


def step_at(image: npt.NDArray[np.float64], columns: list[int]) -> float:
    """How much neighbouring columns differ at these, against how much they differ a few columns away."""
    steps = np.abs(np.diff(image, axis=1)).mean(axis=(0, 2))
    at = np.mean([steps[column - 1] for column in columns])
    nearby = np.mean([[*steps[column - 11 : column - 3], *steps[column + 3 : column + 11]] for column in columns])
    return float(at / nearby)


NETWORKS = {
    "resnet": (GeneratorSpec(architecture="resnet", channels=8, blocks=3), 320, 192),
    "seed": (GeneratorSpec(architecture="seed", channels=8, blocks=2, norm="batch"), 320, 192),
    "seed_instance": (GeneratorSpec(architecture="seed", channels=8, blocks=2), 320, 192),
    "unet": (GeneratorSpec(architecture="unet", channels=8, blocks=5), 320, 192),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_are_like_the_whole_and_do_not_show(name: str) -> None:
    spec, length, side = NETWORKS[name]
    network = network_of(spec)
    pixels = photo(length - 3, length)
    expected = whole(network, pixels, spec.stride)
    assert expected.std() > 10, "a picture without contrast shows no difference"
    tiled = translate_in_tiles(network, Forward(network), pixels, stride=spec.stride, output=RGB8, side=side, batch_size=2)
    assert (tiled.shape, tiled.dtype) == (expected.shape, expected.dtype)
    assert psnr(tiled, expected) >= 35

    across = spans(length, side, tiles.overlap_for(network, side, spec.stride), spec.stride)
    assert len(across) > 1
    cuts = [span.core_start for span in across[1:]]
    ends = [span.stop for span in across[:-1]] + [span.start for span in across[1:]]
    for turned in (False, True):
        made, truth = (image.transpose(1, 0, 2) if turned else image for image in (tiled.astype(float), expected.astype(float)))
        for columns in (cuts, ends):
            assert step_at(made - truth, columns) < 1.25
            assert step_at(made, columns) < step_at(truth, columns) + 0.05


def test_without_shared_statistics_tiles_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the passes over the tiles are good for."""
    spec, length, side = NETWORKS["resnet"]
    network = network_of(spec)
    pixels = photo(length, length)
    expected = whole(network, pixels, spec.stride)
    shared = translate_in_tiles(network, Forward(network), pixels, stride=spec.stride, output=RGB8, side=side, batch_size=2)
    monkeypatch.setattr(tiles, "is_instance_norm", lambda layer: False)
    alone = translate_in_tiles(network, Forward(network), pixels, stride=spec.stride, output=RGB8, side=side, batch_size=2)
    assert psnr(alone, expected) + 10 < psnr(shared, expected)


def test_batch_size_of_tiles_changes_next_to_nothing() -> None:
    spec, length, side = NETWORKS["seed"]
    network = network_of(spec)
    pixels = photo(length, length)
    one, five = (
        translate_in_tiles(network, Forward(network), pixels, stride=8, output=RGB16, side=side, batch_size=batch_size)
        for batch_size in (1, 5)
    )
    assert psnr(one, five) > 80


def test_sixteen_bits_are_not_rounded_to_eight() -> None:
    spec, length, side = NETWORKS["seed"]
    network = network_of(spec)
    pixels = photo(length, 100).astype(np.uint16) * np.uint16(257)
    tiled = translate_in_tiles(network, Forward(network), pixels, stride=8, output=RGB16, side=side, batch_size=4)
    assert tiled.dtype == np.uint16
    assert psnr(tiled, whole(network, pixels, 8, RGB16)) > 50


def test_a_photo_of_one_tile_is_translated_whole() -> None:
    spec = NETWORKS["resnet"][0]
    network = network_of(spec)
    pixels = photo(61, 50)
    tiled = translate_in_tiles(network, Forward(network), pixels, stride=4, output=RGB8, side=64, batch_size=4)
    assert np.abs(tiled.astype(int) - whole(network, pixels, 4)).max() <= 1


def test_norms_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(NETWORKS["resnet"][0])
    before = list(network.modules())

    def fail(photos: Pixels) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        translate_in_tiles(network, fail, photo(100, 100), stride=4, output=RGB8, side=64, batch_size=1)
    assert list(network.modules()) == before
    with shared_norms(network) as norms:
        assert len(norms) == 11


@pytest.mark.parametrize(
    ("length", "side", "overlap", "multiple"), [(64, 64, 24, 8), (72, 64, 24, 8), (1000, 256, 96, 4), (520, 64, 16, 8)]
)
def test_spans_cover_a_length_once(length: int, side: int, overlap: int, multiple: int) -> None:
    found = spans(length, side, overlap, multiple)
    assert (found[0].start, found[-1].stop) == (0, length)
    assert len({span.stop - span.start for span in found}) == 1
    assert all(span.start % multiple == 0 and span.stop - span.start <= side for span in found)
    assert [span.core_start for span in found] == [0, *(span.core_stop for span in found[:-1])]
    assert all(first.stop - second.start >= overlap for first, second in pairwise(found))
    total = torch.zeros(length)
    for span in found:
        total[span.start : span.stop] += span.weights(overlap // 2, length)
    torch.testing.assert_close(total, torch.ones(length))
    for scale in (1, 2, multiple):  # each feature belongs to one core
        counted = sum(
            len(range(length)[span.start // scale : span.stop // scale][span.core_of((side_of(span)) // scale)]) for span in found
        )
        assert counted == length // scale


def side_of(span: Span) -> int:
    return span.stop - span.start


def test_a_sample_is_spread_within_its_photo() -> None:
    for height, width, number in ((1000, 1000, 16), (400, 4000, 7), (100, 64, 9), (5000, 128, 3)):
        sample = spread(height, width, side=128, number=number, multiple=4)
        assert 1 <= len(sample) <= number
        assert all(row.start >= 0 <= column.start and row.stop <= height and column.stop <= width for row, column in sample)
        assert len({(row.start, column.start) for row, column in sample}) == len(sample)


def test_receptive_field_is_what_a_pixel_sees() -> None:
    network = network_of(GeneratorSpec(architecture="resnet", channels=4, blocks=2, norm="batch"))
    image = torch.zeros(1, 3, 192, 192, requires_grad=True)
    network(image)[0, :, 96, 96].sum().backward()
    assert image.grad is not None
    rows = image.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 <= receptive_field(network) <= 192


def test_small_tiles_are_made_large_enough() -> None:
    network = network_of(NETWORKS["resnet"][0])
    forward = Forward(network)
    translate_in_tiles(network, forward, photo(128, 128), stride=4, output=RGB8, side=1, batch_size=64)
    assert smallest_tile(4) == 64
    assert forward.done < 100
