"""Trains a CycleGAN on two folders of unpaired photos.

python -m jobs.train --data.a photos/summer --data.b photos/winter --out runs/seasons --workers 2
"""

from __future__ import annotations

from collections.abc import Sequence

from cyclegan.config import TrainSettings
from jobs.cli import parse, ray_session, run


def main(argv: Sequence[str]) -> int:
    """Trains, and says where the generators are."""
    settings = parse(TrainSettings, "train", argv)
    from cyclegan.training import prepare, train

    job = prepare(settings)
    with ray_session() as cluster:
        result = train(job, cluster)
    print(f"{result.steps} steps; generators in {result.out}/generators, samples and curves in {result.out}/report.html")
    return 0


if __name__ == "__main__":
    run(main)
