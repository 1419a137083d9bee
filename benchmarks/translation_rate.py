"""Images per second of jobs.translate against a plain loop in one process, on this machine, in one run.

    .venv/bin/python -m benchmarks.translation_rate [--images 1536] [--size 128] [--channels 64] [--rounds 5] [--file-rows 187]

Both decode PNGs, send them through the seed's generator and encode JPEGs. The loop has two threads for the generator and does the rest in
turn, in fp32, with the network as it was trained; so does the job, and where the CPU has bf16 also with all that it has. Loops and jobs
alternate, a loop before and after each job.

The job's steady rate is that at which its files appear after the first quarter, so the start of its processes does not count. Its files are
as large as those of a job of a hundred thousand photos; `--file-rows 16` is what a job of this size takes by itself, to lose less when it
is killed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from cyclegan.config import TranslateSettings
from cyclegan.images import decode, encode
from cyclegan.inference import has_bf16
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


def steady_rate(settings: dict[str, object], out: Path) -> float:
    """Images per second of jobs.translate, from the files that it leaves."""
    with ray_session() as cluster:
        translate(prepare(TranslateSettings.model_validate(settings | {"out": str(out), "size": "native"})), cluster)
    files = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in out.glob("data/*/*.parquet"))
    files = files[len(files) // 4 :]
    return sum(rows for _, rows in files[1:]) / (files[-1][0] - files[0][0])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1536)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--file-rows", type=int, help="photos to a data file; a job of a hundred thousand takes 187 by itself, a small one 16"
    )
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    spec = GeneratorSpec(architecture="seed", channels=arguments.channels, norm="batch")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        generator = str(root / "generator")
        torch.manual_seed(0)
        save_generator(generator, spec.build(), spec=spec, size=arguments.size, direction="a2b", training={})
        photos = draw_photos(root / "photos", arguments.images, arguments.size)
        settings: dict[str, object] = {"generator": generator, "source": str(root / "photos"), "file_rows": arguments.file_rows}
        shares: dict[str, list[float]] = {"fp32": []} | ({"bf16": []} if has_bf16(torch.device("cpu")) else {})
        loops = [plain_loop(generator, photos[: len(photos) // 2])]
        for number in range(arguments.rounds):
            for precision, found in shares.items():
                rate = steady_rate(settings | {"precision": precision}, root / f"{precision}-{number}")
                loops.append(plain_loop(generator, photos[: len(photos) // 2]))
                found.append(rate / statistics.mean(loops[-2:]))
                print(f"{precision}: job {rate:.1f} images/s, loop before and after {loops[-2]:.1f} and {loops[-1]:.1f}: {found[-1]:.2f}")
    for precision, found in shares.items():
        print(f"{precision}: median {statistics.median(found):.2f} of the loop (goal 0.97)")


if __name__ == "__main__":
    main()
