"""What Ray Train costs a step, and what a second worker brings, on CPUs.

    .venv/bin/python -m benchmarks.training_rate [--norm instance] [--size 128] [--batch 16] [--rounds 3]

Trains the seed's networks on drawn domains, in turns: a plain Python loop and a Ray Train worker with one thread each, so that Ray's own
processes have the other CPU; both again with all CPUs, which the worker then has to share with them (they take about a tenth of one);
two Ray Train workers with a CPU each, against the plain loop with one. All take the same batches through the same `CycleGAN.step`.
Prints medians over the records of each run (after the first two, which warm up), and their ratios. About six minutes a round on two CPUs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cyclegan import run
from cyclegan.config import TrainSettings
from cyclegan.domain import Domain
from cyclegan.images import decode, encode
from cyclegan.landscapes import draw
from cyclegan.model import CycleGAN
from cyclegan.options import to_yaml
from cyclegan.training_data import training_size

IMAGES, RECORDS, STEPS = 64, 6, 2


def settings(out: Path, *, size: int, batch: int, norm: str, **changes: Any) -> TrainSettings:
    """A run of `RECORDS` records of `STEPS` steps each."""
    values = {
        "data": {"a": str(out / "a"), "b": str(out / "b")},
        "out": str(out / "run"),
        "gpu": False,
        "steps": RECORDS * STEPS,
        "batch_size": batch,
        "size": size,
        "generator": {"norm": norm},
        "discriminator": {"norm": norm},
        "report_every": STEPS,
        "sample_every": 10**6,
        "checkpoint_every": 10**6,
    }
    return TrainSettings.model_validate(values | changes)


def plain_loop(asked: TrainSettings, threads: int) -> float:
    """Median images/s of the steps alone, one after the other, in this process."""
    torch.set_num_threads(threads)
    size = training_size(asked)
    domains = [
        Domain([size.prepare(decode(path.read_bytes())) for path in sorted(Path(source).iterdir())], seed=(0, n), size=size, flip=False)
        for n, source in enumerate(asked.data.sources.values())
    ]
    model, batch, rates = CycleGAN(asked, torch.device("cpu")), asked.batch_size, []
    for record in range(RECORDS):
        started = time.perf_counter()
        for step in range(record * STEPS, (record + 1) * STEPS):
            pictures = (domain.batch(step * batch, batch, slice(0, batch)).to_device(model.device) for domain in domains)
            model.step(*pictures, (step + 1) * batch)
        rates.append(STEPS * batch / (time.perf_counter() - started))
    return statistics.median(rates[2:])


def ray_train(asked: TrainSettings) -> float:
    """Median images/s of all workers together, by the run's own records."""
    shutil.rmtree(asked.out, ignore_errors=True)
    command = [sys.executable, "-m", "jobs.train", "--config", str(Path(asked.out).parent / "config.yaml")]
    Path(command[-1]).write_text(to_yaml(asked))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return statistics.median(record["images_per_second"] for record in run.read_metrics(asked.out)[2:])


def main() -> None:
    """Measures in turns and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--norm", choices=("instance", "sync_batch"), default="instance")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "training-rate")
    parser.add_argument("--plain", type=int, metavar="THREADS", help="only the plain loop, in this process")
    given = parser.parse_args()
    asked = partial(settings, given.folder, size=given.size, batch=given.batch, norm=given.norm)
    if given.plain:
        print(plain_loop(asked(), given.plain))
        return
    for domain in ("a", "b"):
        (given.folder / domain).mkdir(parents=True, exist_ok=True)
        for index in range(IMAGES):
            (given.folder / domain / f"{index:03d}.png").write_bytes(encode(draw(index, domain, given.size), "png"))

    def plain(threads: int) -> float:
        command = [sys.executable, "-m", "benchmarks.training_rate", *sys.argv[1:], "--plain", str(threads)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    cpus = len(os.sched_getaffinity(0))
    loops: dict[str, Callable[[], float]] = {
        "plain loop, 1 thread": lambda: plain(1),
        "Ray Train, 1 worker of 1 thread": lambda: ray_train(asked(threads=1)),
        f"plain loop, {cpus} threads": lambda: plain(cpus),
        f"Ray Train, 1 worker of {cpus} threads": lambda: ray_train(asked()),
        "Ray Train, 2 workers of 1 thread": lambda: ray_train(asked(workers=2, threads=1)),
    }
    measured: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(given.rounds):
        for name, loop in loops.items():
            measured[name].append(loop())
            print(f"{name}: {measured[name][-1]:.2f} images/s", flush=True)
    plain_1, worker_1, plain_all, worker_all, two = (statistics.median(rates) for rates in measured.values())
    print(f"a step in Ray Train, in plain ones: {plain_1 / worker_1:.3f} with 1 thread, {plain_all / worker_all:.3f} with all")
    print(f"two workers: {two / plain_1:.2f} times the plain loop on one CPU, {two / worker_1:.2f} times one worker")


if __name__ == "__main__":
    main()
