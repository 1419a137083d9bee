"""What it takes to stop a translation: driver and workers killed at random, again and again; and what is done twice for it.

    .venv/bin/python -m benchmarks.translation_survival [--images 6000] [--kills 12] [--seed N] [--format F] [--seconds S]

1. An undisturbed job: first rows must be on disk within 20 s of the first photo that was read, and 40 % of all rows must count after half
   of its time, looked up while it runs.
2. The same job, killed with SIGKILL at half of that time: what counted just before must count, and be 40 %. Where this falls short and
   part 1 does not, the machine has become slower in between.
3. From there on, SIGKILL to the driver or to one of Ray's workers at random moments, `--kills` times over, the same command after each.
4. The same job on a cluster of two machines (simulated, 2 logical CPUs each), of which one is lost, and another comes.

In the end of parts 3 and 4 the ids in data/ must equal the manifest, each once; jobs.verify must find nothing; and of all photos at most
5 % may have been read again. The photos come from an HTTP server in this process, which counts.

About fifteen minutes on two CPUs. Exit code 1 where something was not as it must be.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ray.cluster_utils import Cluster

from cyclegan import ledger
from cyclegan.images import encode
from cyclegan.landscapes import draw
from cyclegan.networks import GeneratorSpec
from cyclegan.plan import open_plan
from cyclegan.verification import verify
from cyclegan.weights import save_generator

SIZE = 128

TASKS = ("ray::MapWorker", "ray::Write", "ray::ListFiles", "ray::ReadFiles", "ray::StreamingRepartition", "ray::MapBatches")
"""What Ray calls the processes in which our work is done."""


class Photos(BaseHTTPRequestHandler):
    """Serves a few scenes under any name, and counts the names."""

    protocol_version = "HTTP/1.1"
    scenes: ClassVar = [encode(draw(seed, "a", SIZE), "jpeg") for seed in range(16)]
    asked: ClassVar[Counter[str]] = Counter()
    first = 0.0

    def do_HEAD(self) -> None:  # as http.server calls it
        """The size of a photo."""
        self._answer()

    def do_GET(self) -> None:
        """A photo."""
        Photos.first = Photos.first or time.monotonic()
        Photos.asked[self.path] += 1
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        data = self.scenes[hash(self.path) % len(self.scenes)]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return data

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Server(ThreadingHTTPServer):
    """Thinks nothing of readers that are killed."""

    def handle_error(self, *_: object) -> None:
        """Says nothing."""


class Job:
    """One start of the command."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.started = time.monotonic()

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def wait(self, seconds: float) -> None:
        """Until it ends, at most so long."""
        end = time.monotonic() + seconds
        while not self.is_over() and time.monotonic() < end:
            time.sleep(0.1)

    def kill(self) -> None:
        """The driver alone; what it had started must see to its own end."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def workers(self) -> list[psutil.Process]:
        """Processes that do a task or hold an actor; not Ray's own agents, with which a machine goes down."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in found if _title(process).startswith(TASKS)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def counted_rows(out: Path) -> int:
    """Rows that a run would take up now."""
    plan = open_plan(str(out))
    if plan is None:
        return 0
    done = sum(record["rows"] for record in ledger.commits(plan))
    for segment in ledger.open_segments(plan):
        work = Path(plan.work_path(segment))
        if (work / "attempt.json").exists():
            before = ledger.read_attempt(plan, segment)
            attempt = ledger.Attempt(plan, segment, before["token"], tuple(before["kept"]), pa.table({}))
            done += sum(pq.read_metadata(Path(plan.data_path(segment)) / name).num_rows for name in attempt.files())
    return done


def undisturbed(command: list[str], out: Path, images: int) -> float:
    """Seconds of a whole job."""
    Photos.first = 0.0
    job = Job(command)
    while not list(out.glob("data/*/*.parquet")) and not job.is_over():
        time.sleep(0.1)
    first = time.monotonic() - Photos.first
    looks: list[tuple[float, int]] = []
    while not job.is_over():
        with suppress(OSError):  # it commits in this moment
            looks.append((time.monotonic() - job.started, counted_rows(out)))
        job.wait(5)
    seconds = time.monotonic() - job.started
    half = max(rows for at, rows in looks if at <= seconds / 2)
    print(
        f"1. undisturbed: {seconds:.1f} s; first file {first:.1f} s after the first photo was read (at most 20); "
        f"after half of its time {half} of {images} rows counted, {half / images:.1%} (at least 40 %)",
        flush=True,
    )
    expect(job.process.returncode == 0 and first <= 20 and half >= 0.4 * images, "part 1")
    return seconds


def killed_at_half(command: list[str], out: Path, seconds: float, images: int) -> None:
    """Leaves a job that was killed."""
    job = Job(command)
    job.wait(seconds / 2)
    before = counted_rows(out)
    job.kill()
    rows = counted_rows(out)
    print(
        f"2. killed after {seconds / 2:.1f} s: {rows} of {images} rows count, {rows / images:.1%} (at least 40 %); just before {before}",
        flush=True,
    )
    expect(rows >= max(before, 0.4 * images), "part 2")


def killed_again_and_again(command: list[str], out: Path, images: int, kills: int, seconds: float) -> None:
    """Goes on from wherever `out` is; fresh where it is empty."""
    done = 0
    job = Job(command)
    # kills are spread over the job, wherever in its start or work they meet it
    while done < kills:
        job.wait(random.uniform(0.5, 1.7) * (seconds - 8) / kills + (8 if done % 2 == 0 else 0))
        if job.is_over():
            print(f"   the job had ended after {done} kills: {job.process.returncode}")
            break
        workers = job.workers()
        if done % 2 and workers:
            victim = random.choice(workers)
            name = _title(victim)
            victim.kill()
        else:
            name = "driver"
            job.kill()
            job = Job(command)
        done += 1
        read = sum(Photos.asked.values())
        print(f"   kill {done}: {name[:40]}: {counted_rows(out)} rows count, {read} photos read", flush=True)
    check(f"3. {done} kills", job, out, images)


def machine_lost(command: list[str], out: Path, images: int) -> None:
    """One of two machines goes without a word, with what its workers had in hand; a new one comes ten seconds later."""
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    victim = machines.add_node(num_cpus=2)
    job = Job(command, RAY_ADDRESS=machines.address)
    while (before := counted_rows(out)) < images / 4 and not job.is_over():
        time.sleep(1)
    machines.remove_node(victim, allow_graceful=False)
    time.sleep(10)
    machines.add_node(num_cpus=2)
    check(f"4. a machine lost after {before} rows", job, out, images)
    machines.shutdown()


def check(what: str, job: Job, out: Path, images: int) -> None:
    """Waits for the end, and for what must hold then."""
    errors = job.process.communicate()[1]
    expect(job.process.returncode == 0, f"the last run ended with {job.process.returncode}: {errors[-2000:]}")
    ids = sorted(
        row
        for path in out.glob("data/*/*.parquet")
        for row in pq.read_table(path, columns=["row_id"], partitioning=None)["row_id"].to_pylist()
    )
    again = sum(Photos.asked.values()) - len(Photos.asked)
    plan = open_plan(str(out))
    assert plan
    findings = verify(plan)
    print(
        f"{what}: {len(ids)} rows, {len(set(ids))} different; {len(findings.problems)} problems; "
        f"{again} photos read again, {again / images:.2%} (at most 5 %)"
    )
    expect(ids == list(range(images)) and findings.is_whole and again <= 0.05 * images, what)


failures: list[str] = []


def expect(holds: bool, what: str) -> None:
    """Notes what was not as it must be."""
    if not holds:
        failures.append(what)
        print(f"FAILED: {what}", file=sys.stderr)


@contextmanager
def served(images: int) -> Iterator[list[str]]:
    """URIs of so many photos."""
    server = Server(("127.0.0.1", 0), Photos)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}/{number // 1000:03d}/{number:06d}.jpg" for number in range(images)]
    server.shutdown()


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--format", default="parquet")
    parser.add_argument("--seconds", type=float, help="what part 1 has found before; leaves out parts 1 and 2")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as scratch, served(arguments.images) as uris:
        root = Path(scratch)
        torch.manual_seed(0)
        spec = GeneratorSpec(architecture="seed", norm="batch")
        save_generator(str(root / "generator"), spec.build(), spec=spec, size=SIZE, direction="a2b", training={})
        (root / "photos.csv").write_text("uri\n" + "\n".join(uris) + "\n")

        def command(out: str) -> list[str]:
            options = ["--generator", str(root / "generator"), "--source", str(root / "photos.csv"), "--out", str(root / out)]
            return [sys.executable, "-m", "jobs.translate", *options, "--format", arguments.format, "--precision", "fp32"]

        seconds = arguments.seconds
        if seconds is None:
            seconds = undisturbed(command("undisturbed"), root / "undisturbed", arguments.images)
            killed_at_half(command("half"), root / "half", seconds, arguments.images)
        Photos.asked.clear()
        killed_again_and_again(command("killed"), root / "killed", arguments.images, arguments.kills, seconds)
        Photos.asked.clear()
        machine_lost(command("machine"), root / "machine", arguments.images)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
