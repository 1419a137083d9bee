"""Images per second of jobs.translate against a plain loop in one process, on this machine, in one run.

    .venv/bin/python -m benchmarks.translation_rate [--images 4096] [--size 128] [--channels 64] [--rounds 2]

Both decode PNGs, send them through the seed's generator and encode JPEGs. The loop has two threads for the generator and does the rest in
turn, in fp32, with the network as it was trained; so does the job first, and then with all that it has (its own choice of precision). The
job's steady rate is what a large job needs more than a small one, so the start of its processes does not count. Loops and jobs alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cyclegan.config import TranslateSettings
from cyclegan.images import decode, encode
from cyclegan.landscapes import draw
from cyclegan.networks import GeneratorSpec
from cyclegan.translation import prepare, translate
from cyclegan.weights import load_generator, save_generator
from jobs.cli import ray_session

BATCH, THREADS = 16, 2


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
    torch.set_num_threads(THREADS)
    network = load_generator(generator).build()
    started = time.perf_counter()
    for start in range(0, len(paths), BATCH):
        photos = np.stack([decode(path.read_bytes()) for path in paths[start : start + BATCH]])
        with torch.inference_mode():
            translated = network(torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 127.5 - 1)
        for photo in ((translated + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
            encode(photo, "jpeg")
    return len(paths) / (time.perf_counter() - started)


def seconds_of_job(generator: str, source: Path, out: Path, precision: str) -> float:
    """What jobs.translate takes from its first task to its commit."""
    settings = TranslateSettings.model_validate(
        {"generator": generator, "source": str(source), "out": str(out), "size": "native", "precision": precision}
    )
    with ray_session() as cluster:
        translate(prepare(settings), cluster)
    return float(json.loads((out / "commits" / "00000.json").read_text())["seconds"])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    spec = GeneratorSpec(architecture="seed", channels=arguments.channels, norm="batch")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        generator = str(root / "generator")
        torch.manual_seed(0)
        save_generator(generator, spec.build(), spec=spec, size=arguments.size, direction="a2b", training={})
        few = draw_photos(root / "few", arguments.images // 4, arguments.size)
        many = draw_photos(root / "many", arguments.images, arguments.size)
        loops = [plain_loop(generator, many)]
        shares: dict[str, list[float]] = {"fp32": [], "auto": []}
        for number in range(arguments.rounds):
            for precision, found in shares.items():
                seconds = [
                    seconds_of_job(generator, folder, root / f"{folder.name}-{precision}-{number}", precision)
                    for folder in (root / "few", root / "many")
                ]
                rate = (len(many) - len(few)) / (seconds[1] - seconds[0])
                loops.append(plain_loop(generator, many))
                loop = (loops[-2] + loops[-1]) / 2
                found.append(rate / loop)
                print(f"{precision}: job {rate:.1f} images/s, loop before and after {loops[-2]:.1f} and {loops[-1]:.1f}: {rate / loop:.2f}")
    for precision, found in shares.items():
        print(f"{precision}: median {statistics.median(found):.2f} of the loop (goal 0.97)")


if __name__ == "__main__":
    main()
