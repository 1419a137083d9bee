"""Images per second of jobs.translate against a plain loop in one process, on this machine, in one run.

    .venv/bin/python benchmarks/translation_rate.py [--images 4096] [--size 128] [--channels 64]

Both decode PNGs, send them through the seed's generator and encode JPEGs. The loop has all threads to itself. The job's steady rate is
what a large job needs more than a small one, so the start of its processes does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cyclegan.config import TranslateSettings
from cyclegan.images import decode, encode
from cyclegan.landscapes import draw
from cyclegan.networks import GeneratorSpec
from cyclegan.translation import Translator, prepare, translate
from cyclegan.weights import load_generator, save_generator
from jobs.cli import ray_session

BATCH = 16


def draw_photos(folder: Path, count: int, size: int) -> list[Path]:
    """`count` files; a few scenes over and over, for drawing takes longer than translating."""
    folder.mkdir()
    scenes = [encode(draw(seed, "a", size), "png") for seed in range(16)]
    paths = [folder / f"{index:06d}.png" for index in range(count)]
    for index, path in enumerate(paths):
        path.write_bytes(scenes[index % len(scenes)])
    return paths


def plain_loop(generator: str, paths: list[Path]) -> float:
    """Images per second of decode, generate and encode in turn."""
    translator = Translator(load_generator(generator), use_gpu=False, threads=os.cpu_count() or 1)
    started = time.perf_counter()
    for start in range(0, len(paths), BATCH):
        photos = np.stack([decode(path.read_bytes()) for path in paths[start : start + BATCH]])
        for photo in translator.translate(photos):
            encode(photo, "jpeg")
    return len(paths) / (time.perf_counter() - started)


def seconds_of_job(generator: str, source: Path, out: Path) -> float:
    """What jobs.translate takes from its first task to its commit."""
    settings = TranslateSettings(generator=generator, source=str(source), out=str(out), size="native", batch_size=BATCH)
    with ray_session() as cluster:
        translate(prepare(settings), cluster)
    return float(json.loads((out / "commits" / "00000.json").read_text())["seconds"])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=64)
    arguments = parser.parse_args()
    spec = GeneratorSpec(architecture="seed", channels=arguments.channels, norm="batch")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        generator = str(root / "generator")
        torch.manual_seed(0)
        save_generator(generator, spec.build(), spec=spec, size=arguments.size, direction="a2b", training={})
        few = draw_photos(root / "few", arguments.images // 4, arguments.size)
        many = draw_photos(root / "many", arguments.images, arguments.size)
        before = plain_loop(generator, many)
        seconds = [seconds_of_job(generator, folder, root / f"out-{folder.name}") for folder in (root / "few", root / "many")]
        after = plain_loop(generator, many)
    rate = (len(many) - len(few)) / (seconds[1] - seconds[0])
    loop = (before + after) / 2
    print(f"plain loop {before:.1f} and {after:.1f} images/s (before and after), job {rate:.1f}: {rate / loop:.2f} of the loop")


if __name__ == "__main__":
    main()
