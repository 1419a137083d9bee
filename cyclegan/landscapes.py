"""Two small unpaired domains drawn by the demo: the same kind of landscape as a midday photo (A) and as a painting of dusk (B).

In: a seed. Out: uint8 pixels (H, W, 3). A scene is drawn from its seed alone, so the true counterpart of every picture is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cyclegan.images import Pixels, resize

Floats = npt.NDArray[np.float64]
Domain = Literal["a", "b"]

_SUPERSAMPLING = 4


@dataclass(frozen=True)
class _Palette:
    """Colours 0 to 255 of one look; hills from the farthest to the nearest."""

    zenith: tuple[int, int, int]
    horizon: tuple[int, int, int]
    sun: tuple[int, int, int]
    cloud: tuple[int, int, int]
    hills: tuple[tuple[int, int, int], ...]
    trees: tuple[int, int, int]


_MIDDAY = _Palette(
    zenith=(70, 140, 220),
    horizon=(205, 228, 245),
    sun=(255, 246, 190),
    cloud=(250, 250, 252),
    hills=((140, 175, 160), (105, 160, 85), (70, 125, 50)),
    trees=(25, 70, 30),
)
_DUSK = _Palette(
    zenith=(60, 35, 95),
    horizon=(245, 150, 80),
    sun=(235, 60, 45),
    cloud=(225, 120, 135),
    hills=((150, 80, 110), (95, 45, 90), (50, 25, 65)),
    trees=(20, 10, 35),
)


def draw(seed: int, domain: Domain, size: int) -> Pixels:
    """One landscape, uint8 (size, size, 3): scene number `seed` in the look of `domain`."""
    random = np.random.default_rng(seed)
    palette = _MIDDAY if domain == "a" else _DUSK
    side = size * _SUPERSAMPLING
    y, x = np.mgrid[0:side, 0:side] / side

    horizon = random.uniform(0.5, 0.65)
    canvas = _blend(palette.zenith, palette.horizon, np.clip(y / horizon, 0, 1))
    _paint(canvas, _disc(x, y, random.uniform(0.15, 0.85), random.uniform(0.12, 0.4), 0.07), palette.sun)
    for cloud in _clouds(random, x, y):
        _paint(canvas, cloud, palette.cloud)
    for layer, colour in enumerate(palette.hills):
        ridge = _ridge(random, x[0], horizon + 0.13 * layer, 0.09 - 0.02 * layer)
        _paint(canvas, y > ridge, colour)
        if layer == len(palette.hills) - 1:
            for tree in _trees(random, x, y, ridge):
                _paint(canvas, tree, palette.trees)
    picture = resize(canvas.round().astype(np.uint8), size, size)
    if domain == "b":
        return picture
    grain = random.normal(0, 2.5, (size, size, 1))  # the sensor's noise, which a painting has not
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def _blend(top: tuple[int, int, int], bottom: tuple[int, int, int], share: Floats) -> Floats:
    return np.asarray(top, float) * (1 - share[..., None]) + np.asarray(bottom, float) * share[..., None]


def _paint(canvas: Floats, mask: npt.NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    canvas[mask] = colour


def _disc(x: Floats, y: Floats, centre_x: float, centre_y: float, radius: float) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
    return inside


def _clouds(random: np.random.Generator, x: Floats, y: Floats) -> Iterator[npt.NDArray[np.bool_]]:
    for _ in range(random.integers(1, 4)):
        centre_x, centre_y, radius = random.uniform(0.1, 0.9), random.uniform(0.08, 0.35), random.uniform(0.04, 0.07)
        for offset in (-1.2, 0.0, 1.2):
            yield _disc(x, y * 1.4, centre_x + offset * radius, centre_y * 1.4, radius * (1.3 if offset == 0 else 0.9))


def _ridge(random: np.random.Generator, x: Floats, height: float, amplitude: float) -> Floats:
    waves = [np.sin(2 * np.pi * (frequency * x + random.uniform())) / frequency for frequency in (0.8, 1.9, 4.1)]
    ridge: Floats = height + amplitude * np.sum(waves, axis=0)
    return ridge


def _trees(random: np.random.Generator, x: Floats, y: Floats, ridge: Floats) -> Iterator[npt.NDArray[np.bool_]]:
    for _ in range(random.integers(2, 6)):
        centre, height = random.uniform(0.05, 0.95), random.uniform(0.14, 0.24)
        foot = ridge[int(centre * len(ridge))] + 0.03
        yield (y < foot) & (np.abs(x - centre) < 0.35 * (y - foot + height))
