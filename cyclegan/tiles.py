"""Photos too large to be translated whole go through a generator in overlapping tiles that fit together.

In: the pixels of one photo, uint8 or uint16 (H, W, channels), and a generator that is ready for work. Out: its pixels, of the same size.

Two things make tiles show. Near its border a tile lacks what the generator would have seen beyond: neighbours overlap by what it sees,
and fade into each other in the middle of that. And InstanceNorm normalises by the whole picture: all tiles are normalised with the means
and variances that the whole photo would have, which passes over the tiles find out before the last one makes the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclegan.geometry import pad_to_multiple
from cyclegan.images import PixelFormat, Pixels
from cyclegan.unit_range import from_unit_range

SAMPLE_PIECES, SAMPLE_SIDE = 16, 256
"""What is looked at first: so many pieces or more, and of so many pixels a side or less. Many small ones show more than a few large."""

MOST_PASSES = 6
"""Over all tiles to measure statistics; mostly one will do."""

SETTLED = 0.05
"""Statistics that moved less than this, in standard deviations, are measured: another 10 dB would be the gain of the next pass."""

Forward = Callable[[Pixels], Tensor]
"""Pixels (N, h, w, channels) to what the network makes of them, float (N, channels, h, w) in [-1, 1] on its device."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tile lies along one axis of its photo, in pixels.

    Args:
        start: its first pixel.
        stop: the pixel after its last.
        core_start: from here on it counts more than the tile before it.
        core_stop: and here the next one takes over.
    """

    start: int
    stop: int
    core_start: int
    core_stop: int

    def core_of(self, size: int) -> slice:
        """The core within features of this tile that are `size` long."""
        scale = size / (self.stop - self.start)
        # rounded from the photo's first pixel on: what one tile leaves out, its neighbour has
        first = round(self.start * scale)
        return slice(round(self.core_start * scale) - first, round(self.core_stop * scale) - first)

    def weights(self, ramp: int, length: int) -> Tensor:
        """Share of the tile in each of its pixels, float32; fades over `ramp` pixels around the ends of its core, save the photo's own."""
        pixels = torch.arange(self.start, self.stop) + 0.5
        rising = (pixels - self.core_start) / ramp + 0.5 if self.core_start > 0 else torch.ones(len(pixels))
        falling = (self.core_stop - pixels) / ramp + 0.5 if self.core_stop < length else torch.ones(len(pixels))
        return torch.minimum(rising, falling).clamp(0, 1)


Mode = Literal["sample", "measure", "apply"]

Tile = tuple[Span, Span]
"""Rows and columns of a photo."""


def spans(length: int, side: int, overlap: int, multiple: int) -> list[Span]:
    """The fewest tiles that cover `length` pixels, equally long and at most `side`; neighbours share `overlap` pixels or more.

    All four are multiples of `multiple`, so that strided convolutions fall on the same pixels as in the whole photo; so do the tiles.
    """
    number = max(1, math.ceil((length - overlap) / (side - overlap)))
    # no longer than needed: the last tile would else be computed mostly for nothing
    side = math.ceil((length + (number - 1) * overlap) / number / multiple) * multiple
    starts = [index * (length - side) // max(1, number - 1) // multiple * multiple for index in range(number)]
    cuts = [0, *((start + side + following) // 2 for start, following in pairwise(starts)), length]
    return [Span(start, start + side, *cut) for start, cut in zip(starts, pairwise(cuts), strict=True)]


def spread(height: int, width: int, *, side: int, number: int, multiple: int) -> list[Tile]:
    """Square pieces in even rows and columns over a photo, at most `number` of them; no two overlap."""
    side = min(side, height, width)
    rows = max(1, min(round(math.sqrt(number * height / width)), height // side, number))
    columns = max(1, min(number // rows, width // side))

    def along(length: int, number: int) -> list[Span]:
        starts = [(2 * index + 1) * (length - number * side) // (2 * number) + index * side for index in range(number)]
        return [Span(start, start + side, start, start + side) for start in (start // multiple * multiple for start in starts)]

    return [(row, column) for row in along(height, rows) for column in along(width, columns)]


def receptive_field(network: nn.Module) -> int:
    """Side in pixels of what an output pixel depends on through convolutions, the norms left aside."""
    side, step = 1.0, 1.0  # in pixels of the input
    for layer in network.modules():  # these networks hold their layers in the order of their forward
        if isinstance(layer, nn.Conv2d):
            side += (layer.kernel_size[0] - 1) * step
            step *= layer.stride[0]
        elif isinstance(layer, nn.ConvTranspose2d):
            step /= layer.stride[0]
            side += (layer.kernel_size[0] - 1) * step
    return math.ceil(side)


def smallest_tile(stride: int) -> int:
    """Side in pixels of the smallest tile that can overlap with its neighbours and leave something between them."""
    return max(4 * stride, 64)


@torch.inference_mode()
def translate_in_tiles(
    network: nn.Module, forward: Forward, photo: Pixels, *, stride: int, output: PixelFormat, side: int, batch_size: int
) -> Pixels:
    """Translates one photo, (H, W, channels) in and out.

    Args:
        network: has the norm layers that `forward` runs through; they are exchanged for the duration of the call.
        forward: runs tiles through the network.
        photo: as the generator takes it, of any size.
        stride: sides that the network takes are multiples of it.
        output: what the generator gives.
        side: of the tiles in pixels, rounded down to a multiple of `stride`; at least four times that.
        batch_size: tiles that go through the network together.
    """
    padded = pad_to_multiple(photo, stride)
    side = max(side // stride * stride, smallest_tile(stride))
    overlap = overlap_for(network, side, stride)
    height, width = padded.shape[:2]
    rows, columns = (spans(length, side, overlap, stride) for length in (height, width))
    tiles = [(row, column) for row in rows for column in columns]

    def run(chosen: Sequence[Tile]) -> Tensor:
        for norm in norms:
            norm.tiles = chosen
        return forward(np.stack([padded[row.start : row.stop, column.start : column.stop] for row, column in chosen]))

    with shared_norms(network if len(tiles) > 1 else nn.Identity()) as norms:  # a single tile has the statistics of the whole
        if norms:
            pixels = batch_size * side**2
            piece = max(4 * stride, min(SAMPLE_SIDE, math.isqrt(pixels // SAMPLE_PIECES)) // stride * stride)
            sample = spread(height, width, side=piece, number=pixels // piece**2, multiple=stride)
            _measure(norms, run, tiles=tiles, sample=sample, batch_size=batch_size)
        made = (tile for batch in _batches(tiles, batch_size) for tile in run(batch))
        result = _blend(made, rows, columns, ramp=overlap // 2, output=output)
    return result[: photo.shape[0], : photo.shape[1]]


def overlap_for(network: nn.Module, side: int, stride: int) -> int:
    """Pixels that neighbouring tiles share: what the network sees, but three eighths of a tile at most."""
    return math.ceil(min(receptive_field(network), side * 3 // 8) / stride) * stride


class SharedNorm(nn.Module):
    """InstanceNorm whose means and variances are those of a whole photo, of which it sees tiles.

    `mode` says what a batch of tiles is for, `tiles` which they are. A sample of them, gone through together, shows what the photo's
    statistics are about (`sample`). All tiles, normalised with those, show by how much they differ (`measure`). The statistics of a
    layer depend on those of all layers before it, so what was measured holds only for the statistics it was measured with; how it
    changes with them, the sample shows once more (`sample`). When they have hardly `moved`, pixels can be made (`apply`).
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.mode: Mode = "sample"
        self.tiles: Sequence[Tile] = ()
        self.moved = torch.zeros(())
        self._used: Statistics | None = None
        self._of_sample: Statistics | None = None
        self._measured: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) of any float type in and out."""
        if self.mode == "sample":
            self._used = self._corrected(_pool(_moments(x, self.tiles)))
        elif self.mode == "measure":
            self._measured += _moments(x, self.tiles)
        assert self._used is not None
        return F.batch_norm(x, *self._used, training=False, eps=self.eps)

    def _corrected(self, found: Statistics) -> Statistics:
        """What to normalise with: what the sample shows, and what it lacked against all tiles when they were measured."""
        before, self._of_sample = self._of_sample, found
        if before is None or self._used is None:
            return found
        measured, self._measured = _pool(self._measured), []
        scale = (found.variance + self.eps) / (before.variance + self.eps)
        corrected = Statistics(measured.mean + found.mean - before.mean, measured.variance * scale)
        variance = self._used.variance + self.eps
        shift = (corrected.mean - self._used.mean).square() / variance
        stretch = ((corrected.variance + self.eps) / variance).log() / 2
        self.moved = (shift + stretch.square()).mean().sqrt()
        return corrected


class Statistics(NamedTuple):
    """Of each channel, fp32 (C,)."""

    mean: Tensor
    variance: Tensor


def _moments(x: Tensor, tiles: Sequence[Tile]) -> list[Tensor]:
    """Of features (N, C, h, w), for the core of each tile: count, mean and mean square, (3, C) in fp64."""
    moments = []
    for features, (row, column) in zip(x, tiles, strict=True):
        core = features[:, row.core_of(features.shape[1]), column.core_of(features.shape[2])].float()
        variance, mean = (each.double() for each in torch.var_mean(core, dim=(1, 2), correction=0))
        moments.append(torch.stack([torch.full_like(mean, core[0].numel()), mean, mean.square() + variance]))
    return moments


def _pool(parts: list[Tensor]) -> Statistics:
    """Over the pixels of all parts."""
    moments = torch.stack(parts)
    shares = moments[:, 0] / moments[:, 0].sum(0)
    mean, square = (shares * moments[:, 1]).sum(0), (shares * moments[:, 2]).sum(0)
    return Statistics(mean.float(), (square - mean.square()).clamp(min=0).float())


@contextmanager
def shared_norms(network: nn.Module) -> Iterator[list[SharedNorm]]:
    """Exchanges all layers that normalise each image by itself, and gives those that stand in for them."""
    places = [(parent, name, norm) for parent in network.modules() for name, norm in parent.named_children() if is_instance_norm(norm)]
    shared = [SharedNorm(cast(float, norm.eps)) for _, _, norm in places]
    try:
        for (parent, name, _), stand_in in zip(places, shared, strict=True):
            setattr(parent, name, stand_in)
        yield shared
    finally:
        for parent, name, norm in places:
            setattr(parent, name, norm)


def is_instance_norm(layer: nn.Module) -> bool:
    """Whether a layer is InstanceNorm, or the GroupNorm of as many groups as channels that is the same."""
    return isinstance(layer, nn.InstanceNorm2d) or (isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels)


def _measure(
    norms: list[SharedNorm], run: Callable[[Sequence[Tile]], Tensor], *, tiles: list[Tile], sample: list[Tile], batch_size: int
) -> None:
    """Finds the statistics of the whole photo."""
    run(sample)
    for _ in range(MOST_PASSES):
        _set_mode(norms, "measure")
        for batch in _batches(tiles, batch_size):
            run(batch)
        _set_mode(norms, "sample")
        run(sample)
        if torch.stack([norm.moved for norm in norms]).mean() < SETTLED:
            break
    _set_mode(norms, "apply")


def _set_mode(norms: list[SharedNorm], mode: Mode) -> None:
    for norm in norms:
        norm.mode = mode


def _batches(tiles: list[Tile], size: int) -> Iterator[list[Tile]]:
    return (tiles[first : first + size] for first in range(0, len(tiles), size))


def _blend(made: Iterator[Tensor], rows: list[Span], columns: list[Span], *, ramp: int, output: PixelFormat) -> Pixels:
    """Puts tiles (C, h, w) together, which come row by row; of the floats, few rows of tiles are held."""
    height, width = rows[-1].stop, columns[-1].stop
    photo = np.empty((height, width, output.channels), output.dtype)
    carried: Tensor | None = None
    for row, following in zip(rows, [*(row.start for row in rows[1:]), height], strict=True):
        strip = _fade_columns(made, row, columns, ramp)
        strip *= row.weights(ramp, height).to(strip.device)[:, None]
        if carried is not None:
            strip[:, : carried.shape[1]] += carried
        done = following - row.start  # no later tile reaches these
        photo[row.start : following] = from_unit_range(strip[:, :done], output.bits).permute(1, 2, 0).cpu().numpy()
        carried = strip[:, done:]
    return photo


def _fade_columns(made: Iterator[Tensor], row: Span, columns: list[Span], ramp: int) -> Tensor:
    """One row of tiles faded into each other: float32 (C, h, width of the photo)."""
    tiles = [next(made) for _ in columns]
    width = columns[-1].stop
    strip = tiles[0].new_zeros(len(tiles[0]), row.stop - row.start, width, dtype=torch.float32)
    for tile, column in zip(tiles, columns, strict=True):
        strip[:, :, column.start : column.stop] += tile * column.weights(ramp, width).to(tile.device)
    return strip
