"""A job of ten million photos: what its plan takes, and how soon it works again when nine tenths are done.

    .venv/bin/python -m benchmarks.translation_planning [--rows 10000000]

The manifest is made, and so are the commits of nine tenths of the segments; the photos that are then asked for come from an HTTP server in
this process. Goals: planned in under 3 minutes and 2 GB, at work again within 30 s. Exit code 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.translation_survival import Photos, served
from cyclegan.networks import GeneratorSpec
from cyclegan.plan import STAGES, Plan, open_plan
from cyclegan.weights import save_generator

PART = 1_000_000


def write_manifest(path: Path, rows: int, base: str) -> None:
    """A Parquet manifest with as many URIs."""
    with pq.ParquetWriter(path, pa.schema([("uri", pa.string())])) as writer:
        for start in range(0, rows, PART):
            numbers = np.arange(start, min(rows, start + PART))
            uris = pa.array([f"{base}/{number // 1000:05d}/{number:08d}.jpg" for number in numbers])
            writer.write_table(pa.table({"uri": uris}))


def start_until(command: list[str], reached: Path | None) -> tuple[float, float]:
    """Seconds until a file is there, or a photo is asked for, and the largest memory of the driver until then, in GB; then kills all."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    family = psutil.Process(process.pid)
    peak = 0.0
    while process.poll() is None and not (reached.exists() if reached else Photos.asked):
        peak = max(peak, family.memory_info().rss / 1e9)
        time.sleep(0.1)
    seconds = time.monotonic() - started
    if process.poll() is not None:
        sys.exit(f"the job ended with {process.returncode}")
    for child in [*family.children(recursive=True), family]:
        child.kill()
    process.wait()
    return seconds, peak


def commit_nine_tenths(plan: Plan) -> None:
    """Says of the first nine tenths of the segments that they are done."""
    for segment in plan.segments[: len(plan.segments) * 9 // 10]:
        record = {
            "fingerprint": plan.fingerprint,
            "segment": segment.number,
            "rows": segment.rows,
            "ok": segment.rows,
            "failed": 0,
            "error_types": {},
            "notes": {},
            "stage_seconds": dict.fromkeys(STAGES, 1.0),
            "seconds": 1.0,
            "translated": segment.rows,
            "workers": {"generators": 1, "cpus": 2},
            "files": [],
            "shards": [],
        }
        path = Path(plan.commit_path(segment))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record))


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as scratch, served(1) as uris:
        root = Path(scratch)
        spec = GeneratorSpec(architecture="seed", channels=8, norm="batch")
        torch.manual_seed(0)
        save_generator(str(root / "generator"), spec.build(), spec=spec, size=128, direction="a2b", training={})
        write_manifest(root / "photos.parquet", arguments.rows, uris[0].removesuffix("/000/000000.jpg"))
        options = ["--generator", str(root / "generator"), "--source", str(root / "photos.parquet"), "--out", str(root / "out")]
        command = [sys.executable, "-m", "jobs.translate", *options]
        seconds, memory = start_until(command, root / "out" / "plan.json")
        print(f"planned {arguments.rows} rows in {seconds:.1f} s (under 180), driver at most {memory:.2f} GB (under 2)")
        plan = open_plan(str(root / "out"))
        assert plan
        commit_nine_tenths(plan)
        Photos.asked.clear()
        again, memory_again = start_until(command, None)
        print(f"resumed with nine tenths committed: first photo read after {again:.1f} s (under 30), driver at most {memory_again:.2f} GB")
    return 0 if seconds < 180 and memory < 2 and again < 30 else 1


if __name__ == "__main__":
    sys.exit(main())
