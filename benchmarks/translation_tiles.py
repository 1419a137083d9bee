"""Tiles against the whole photo at 1024 px: how alike, and whether their borders show.

    .venv/bin/python -m benchmarks.translation_tiles [PHOTO ...] [--generator PATH]

Goals: 35 dB at least, and no step at a tile border above those of the 16 rows or columns beside it, neither of the picture nor of its
difference to the whole photo's. Without photos, a drawn landscape; without a generator, the paper's and the seed's with random weights.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from cyclegan.images import Pixels, decode, resize
from cyclegan.inference import PreparedGenerator
from cyclegan.landscapes import draw
from cyclegan.networks import GeneratorSpec, initialise
from cyclegan.tiles import overlap_for, spans
from cyclegan.unit_range import to_unit_range
from cyclegan.weights import Generator, load_generator

SIDE = 1024


def generators(path: str | None) -> dict[str, Generator]:
    """By name."""
    if path:
        return {path: load_generator(path)}
    specs = {
        "resnet-9, instance": GeneratorSpec(architecture="resnet", blocks=9),
        "seed, batch": GeneratorSpec(architecture="seed", norm="batch"),
        "seed, instance": GeneratorSpec(architecture="seed", norm="instance"),
    }
    torch.manual_seed(0)
    found = {}
    for name, spec in specs.items():
        network = initialise(spec.build(), "normal")
        if spec.norm == "batch":  # its statistics are those of a photo, as after training; else nothing would come through
            train_statistics(network)
        found[name] = Generator(spec=spec, state=network.state_dict(), sha256="", size=256)
    return found


@torch.no_grad()
def train_statistics(network: torch.nn.Module) -> None:
    """Runs a photo through until the running means and variances have settled."""
    batch = to_unit_range(torch.from_numpy(draw(0, "a", 256)).permute(2, 0, 1)[None])
    for _ in range(50):
        network.train()(batch)


def steps(image: np.ndarray, axis: int) -> np.ndarray:
    """Mean absolute change from each row (axis 0) or column (axis 1) to the next."""
    return np.abs(np.diff(image.astype(np.float64), axis=axis)).mean(axis=(1 - axis, 2))


def border_ratio(image: np.ndarray, borders: list[int]) -> float:
    """The step at a border over the largest of the 16 steps around it; of the border where that is most."""
    ratios = [0.0]
    for axis in (0, 1):
        change = steps(image, axis)
        for border in borders:
            around = np.r_[change[border - 9 : border - 1], change[border : border + 8]]
            ratios.append(change[border - 1] / max(around.max(), 1e-9))
    return max(ratios)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path)
    parser.add_argument("--generator")
    parser.add_argument("--tile", type=int, default=512)
    arguments = parser.parse_args()
    photos: list[Pixels] = [resize(decode(path.read_bytes()), SIDE, SIDE) for path in arguments.photos] or [draw(1, "a", SIDE)]
    for name, generator in generators(arguments.generator).items():
        whole = PreparedGenerator(generator, torch.device("cpu"), precision="fp32", batch_size=1)
        tiled = PreparedGenerator(generator, torch.device("cpu"), precision="fp32", tile=arguments.tile)
        stride = generator.spec.stride
        overlap = overlap_for(tiled.network, arguments.tile, stride)
        borders = [span.core_start for span in spans(SIDE, arguments.tile, overlap, stride)[1:]]
        for photo in photos:
            (expected,) = whole.translate([photo])
            started = time.perf_counter()
            (found,) = tiled.translate([photo])
            assert tiled.tiled == {0}
            difference = found.astype(np.float64) - expected
            psnr = 10 * math.log10(255**2 / max(1e-9, float(np.square(difference).mean())))
            print(
                f"{name}: {psnr:.1f} dB, contrast {expected.std():.0f}; step at a border over the largest beside it: "
                f"difference {border_ratio(difference, borders):.2f}, picture {border_ratio(found, borders):.2f} "
                f"(whole photo there {border_ratio(expected, borders):.2f}); {time.perf_counter() - started:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
