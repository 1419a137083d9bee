"""What it takes to stop a training: the driver killed again and again, a worker, a whole machine; and what is lost each time.

    .venv/bin/python -m benchmarks.training_survival [--kills 5] [--seed N]

1. The job is killed with SIGKILL at random steps, `--kills` times over, each time started again by the same command. Its last checkpoint
   and its metrics must equal those of an undisturbed run to the last bit (times apart).
2. One of two workers is killed at a random step. The job must end by itself, with the same bits, and do again no more than one interval
   between checkpoints.
3. On a Ray of several machines (processes, here) with --workers 1..2: one machine is announced to be taken away, which must bring a
   checkpoint out of turn, and is killed; the run goes on with one worker; a new machine comes, and it grows again.

About six minutes on two CPUs. Exit code 1 where something was not as it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from cyclegan import run
from cyclegan.config import Cluster, TrainSettings
from cyclegan.images import encode
from cyclegan.landscapes import draw
from cyclegan.options import to_yaml

STEPS, INTERVAL = 120, 10


def settings(folder: Path, name: str, **changes: Any) -> TrainSettings:
    """Small networks whose steps take about a tenth of a second, with everything in them that a checkpoint has to hold."""
    values = {
        "data": {"a": str(folder / "a"), "b": str(folder / "b")},
        "out": str(folder / name),
        "workers": 2,
        "gpu": False,
        "steps": STEPS,
        "batch_size": 2,
        "size": 64,
        "load_scale": 1.125,
        "flip": True,
        "generator": {"architecture": "resnet", "channels": 8, "blocks": 2, "dropout": True},
        "discriminator": {"architecture": "patch", "channels": 8},
        "loss": {"identity": 5},
        "pool_size": 10,
        "optimizer": {"schedule": "cosine", "decay_from": 0.2},
        "report_every": 5,
        "sample_every": 60,
        "checkpoint_every": INTERVAL,
    }
    return TrainSettings.model_validate(values | changes)


def start(asked: TrainSettings) -> subprocess.Popen[bytes]:
    """The job as a user starts it, with a session of its own."""
    file = Path(f"{asked.out}.yaml")
    file.write_text(to_yaml(asked))
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.train", "--config", str(file)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def last_step(out: str) -> int:
    """The step of the last line of metrics.jsonl."""
    records = run.read_metrics(out)
    return int(records[-1]["step"]) if records else 0


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 180) -> None:
    """Looks often, so that a kill comes in the middle of things."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of Ray Train's workers."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())]


def differences(one: str, other: str) -> list[str]:
    """What is not the same in the last checkpoints, exported generators and metrics of two runs."""
    found = []
    for name in ("model.pt", "worker-00000.pt", "worker-00001.pt"):
        first, second = (torch.load(Path(out, "checkpoints", f"step-{STEPS:08d}", name), weights_only=True) for out in (one, other))
        found += [f"{name}: {key}" for key in compare(first, second)]
    for direction in ("a2b", "b2a"):
        file = Path("generators", direction, "generator.safetensors")
        if Path(one, file).read_bytes() != Path(other, file).read_bytes():
            found.append(str(file))
    lines = [[{**record, "images_per_second": 0} for record in run.read_metrics(out)] for out in (one, other)]
    return found + ["metrics.jsonl"] * (lines[0] != lines[1])


def compare(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two nested states differ."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [place]
    if isinstance(one, dict | list | tuple):
        if type(one) is not type(other) or len(one) != len(other):
            return [place]
        keys = one.keys() if isinstance(one, dict) else range(len(one))
        return [found for key in keys for found in compare(one[key], other[key], f"{place}.{key}")]
    return [] if one == other else [place]


def kill_the_job(folder: Path, kills: int, dice: random.Random) -> list[str]:
    """Part 1; returns what was not as it must be."""
    undisturbed, disturbed = settings(folder, "undisturbed"), settings(folder, "killed")
    assert start(undisturbed).wait() == 0
    for step in sorted(dice.sample(range(1, STEPS), kills)):
        job = start(disturbed)
        wait_for(lambda step=step: last_step(disturbed.out) >= step, f"step {step}")  # type: ignore[misc]
        time.sleep(dice.random() / 2)
        reached = last_step(disturbed.out)
        job.kill()
        job.wait()
        print(f"killed the job at step {reached}", flush=True)
        time.sleep(2)  # its workers end when they miss it
    assert start(disturbed).wait() == 0
    return differences(undisturbed.out, disturbed.out)


def kill_a_worker(folder: Path, dice: random.Random) -> list[str]:
    """Part 2."""
    disturbed = settings(folder, "worker-killed")
    shutil.rmtree(disturbed.out, ignore_errors=True)
    job, step = start(disturbed), dice.randrange(2 * INTERVAL, STEPS - INTERVAL)
    wait_for(lambda: last_step(disturbed.out) >= step, f"step {step}")
    before = workers_of(job)
    dice.choice(before).kill()
    wait_for(lambda: not any(worker.is_running() for worker in before), "the end of the group")
    reached, kept = last_step(disturbed.out), checkpoints(disturbed.out)[-1]
    print(f"killed a worker; reported were {reached} steps, the newest checkpoint is of step {kept}", flush=True)
    found = ["exit code"] * (job.wait() != 0) + ["more than one interval was lost"] * (reached - kept > INTERVAL)
    print(f"the job ended by itself with exit code {job.returncode}; reported steps done again: {reached - kept}", flush=True)
    return found + differences(str(folder / "undisturbed"), disturbed.out)


def checkpoints(out: str) -> list[int]:
    """Steps of the whole checkpoints that there are."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in Path(out, "checkpoints").glob("step-*/checkpoint.json"))


def kill_a_machine(folder: Path) -> list[str]:
    """Part 3; in this process, because the machines belong to it."""
    import ray.data  # noqa: PLC0415  # the other parts start Ray in processes of their own
    from ray.cluster_utils import Cluster as Machines  # noqa: PLC0415

    from cyclegan import training  # noqa: PLC0415

    training.RESIZE_EVERY_S = 5.0
    asked = settings(folder, "machine-killed", workers="1..2", steps=800)
    shutil.rmtree(asked.out, ignore_errors=True)
    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 0})
    first, _ = machines.add_node(num_cpus=1), machines.add_node(num_cpus=1)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.init(address=machines.address, log_to_driver=False, logging_level="WARNING")
    ended: list[Any] = []
    job = training.prepare(asked)
    cluster = Cluster(machine_cpus=(2,), gpus=0, object_store_bytes=1e9, can_grow=False)
    thread = threading.Thread(target=lambda: ended.append(training.train(job, cluster)), daemon=True)
    thread.start()
    found: list[str] = []

    def workers() -> int:
        records = run.read_metrics(asked.out)
        return int(records[-1]["workers"]) if records else 0

    wait_for(lambda: last_step(asked.out) > 3 * INTERVAL, "two workers under way")
    before = workers()
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "benchmark", "--deadline-remaining-seconds", "20"]
    drain = ["drain-node", "--address", machines.address, "--node-id", first.node_id, *notice]
    subprocess.run([str(Path(sys.executable).parent / "ray"), *drain], check=True, capture_output=True)
    announced_at = last_step(asked.out)

    def out_of_turn() -> list[int]:
        return [step for step in checkpoints(asked.out) if step % INTERVAL and step >= announced_at]

    try:
        wait_for(lambda: bool(out_of_turn()), "a checkpoint out of turn", 15)
        print(
            f"a machine was announced to go after step {announced_at}; a checkpoint came out of turn, of step {out_of_turn()[0]}",
            flush=True,
        )
    except TimeoutError:
        found.append("no checkpoint out of turn")
    machines.remove_node(first, allow_graceful=False)
    lost_at = last_step(asked.out)
    wait_for(lambda: workers() == 1, "one worker")
    resumed_at = next(r["step"] for r in run.read_metrics(asked.out) if r["workers"] == 1)
    print(f"{before} workers until the machine was killed after step {lost_at}; one worker from step {resumed_at}", flush=True)
    machines.add_node(num_cpus=1)
    wait_for(lambda: workers() == 2, "two workers again")
    grown_at = next(r["step"] for r in reversed(run.read_metrics(asked.out)) if r["workers"] == 1)
    print(f"a new machine came; two workers again after step {grown_at}", flush=True)
    thread.join(300)
    records = run.read_metrics(asked.out)
    print(f"the run ended after {records[-1]['images']} of {records[-1]['images_planned']} images, {records[-1]['step']} steps")
    ray.shutdown()
    machines.shutdown()
    steps = [record["step"] for record in records]
    return found + ["did not end"] * (not ended) + ["a line twice or missing"] * (steps != sorted(set(steps)))


def main() -> int:
    """Runs the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--part", type=int, choices=(1, 2, 3), action="append", help="only these; part 2 needs the runs of part 1")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "training-survival")
    given = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    parts, dice = given.part or [1, 2, 3], random.Random(given.seed)
    print(f"--seed {given.seed}", flush=True)
    if 1 in parts:
        shutil.rmtree(given.folder, ignore_errors=True)
    for domain in ("a", "b"):
        (given.folder / domain).mkdir(parents=True, exist_ok=True)
        for index in range(16):
            (given.folder / domain / f"{index:03d}.png").write_bytes(encode(draw(index, domain, 64), "png"))
    checks = {
        1: lambda: kill_the_job(given.folder, given.kills, dice),
        2: lambda: kill_a_worker(given.folder, dice),
        3: lambda: kill_a_machine(given.folder),
    }
    wrong = {part: checks[part]() for part in parts}
    print(json.dumps({part: found or "as it must be" for part, found in wrong.items()}))
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
