"""What each worker of a training runs: the loop over steps, its reports and checkpoints.

In: what the driver prepared (see `training`). Out: reports to Ray Train's controller, with checkpoints; RUN/samples and RUN/generators.
Nothing here decides alone: all workers take the same number of steps, report at the same ones, and stop together.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device
from torch import Tensor

from cyclegan import run, storage
from cyclegan.ahead import made_ahead
from cyclegan.alarms import measure_change
from cyclegan.config import TrainSettings
from cyclegan.domain import Batch, Domain, StreamedImages
from cyclegan.model import LOSS_NAMES, CycleGAN, StepResult, describe_networks
from cyclegan.run import Unreadable
from cyclegan.training_data import open_domains

PREEMPTION_EVERY_S = 2.0
"""How often workers ask whether their machine will be taken away; spot machines are announced 30 to 120 s ahead."""

REPORT_EVERY_S = 1.0
"""Records that come faster travel together: Ray's controller takes one report at a time, when it looks after the workers."""


@dataclass(frozen=True)
class Place:
    """Where a run stands: optimizer steps, and images of each domain seen by all workers."""

    step: int = 0
    images: int = 0


def train_worker(config: dict[str, Any]) -> str | None:
    """What each worker runs: the loop over steps, with reports, samples and checkpoints. See `_trainer` for `config`.

    Returns:
        None at the end of the run; before it, why it can't go on.
    """
    settings, out, planned = TrainSettings.model_validate(config["settings"]), config["out"], config["planned"]
    context, device = ray.train.get_context(), get_device()
    rank, workers = context.get_world_rank(), context.get_world_size()
    threads = settings.threads or max(1, cpu_count() // context.get_local_world_size())
    if device.type == "cpu":
        torch.set_num_threads(threads)
    else:
        torch.backends.cudnn.benchmark = settings.crops  # worth its time where all batches have one shape
    domain_a, domain_b = open_domains(config["data"], settings)
    model = CycleGAN(settings, device, rank)
    start, unsent = _restore(model, rank, config["fork"])
    batch = settings.batch_size * workers
    share = slice(rank * settings.batch_size, (rank + 1) * settings.batch_size)

    def make_batches(position: int) -> tuple[Batch, Batch]:
        made = domain_a.batch(position, batch, share), domain_b.batch(position, batch, share)
        return (made[0].pin(), made[1].pin()) if device.type == "cuda" else made

    feed = made_ahead(make_batches, range(start.images, planned, batch), threads=max(2, threads) if config["data"].names else 1)
    window, warning = Window(device, start.step), PreemptionWarning()
    reporter = Reporter(model, (domain_a, domain_b), out, unsent)
    for step, (batch_a, batch_b) in enumerate(feed, start.step + 1):
        place = Place(step, start.images + (step - start.step) * batch)
        rate = model.set_learning_rate((place.images - batch) / planned)
        real_a, real_b = batch_a.to_device(device), batch_b.to_device(device)
        result = model.step(real_a, real_b, place.images)
        window.add(result)

        last = place.images >= planned
        if rank == 0 and (step % settings.sample_every == 0 or last):
            run.save_samples(out, model, domain_a, domain_b, step)
        checkpoint_due = step % settings.checkpoint_every == 0 or last or warning.is_new(step)
        # weights whose gradients are not finite must not push better ones out of the folder
        checkpoint_due = checkpoint_due and (last or not int(model.skipped_in_a_row))
        if checkpoint_due or step % settings.report_every == 0:
            record = {
                "step": step,
                "images": place.images,
                "images_planned": planned,
                "workers": workers,
                **window.close(step, batch),
                "learning_rate": rate,
                **_describe_batch(result, real_a, real_b),
                "skipped_steps": int(model.skipped),
            }
            warning.ask_every(window.seconds_per_step, settings.report_every)
            reporter.add(record, window.seconds, place if checkpoint_due else None)
            if reason := _reason_to_stop(model):
                reporter.flush()
                return reason
    reporter.flush()
    return None


def _reason_to_stop(model: CycleGAN) -> str | None:
    """Why it makes no sense to go on, the same on all workers."""
    in_a_row = int(model.skipped_in_a_row)
    if in_a_row < model.settings.max_skipped_steps:
        return None
    return (
        f"{in_a_row} steps in a row had no finite gradients; the last good checkpoint is kept. "
        "Give --fork this run, a new --out, and a lower --optimizer.learning-rate or --precision fp32"
    )


class Window:
    """What happened since the last report: losses summed up on the device, averaged over steps and workers when asked."""

    def __init__(self, device: torch.device, step: int) -> None:
        self._sums = torch.zeros(len(LOSS_NAMES), device=device)
        self._since = step
        self._started = time.monotonic()
        self.seconds = self.seconds_per_step = 0.0

    def add(self, result: StepResult) -> None:
        """Takes in a step."""
        self._sums += torch.stack([result.losses[name] for name in LOSS_NAMES])

    def close(self, step: int, batch: int) -> dict[str, float]:
        """The averages of the steps up to `step`, of `batch` images each, the same on all workers; begins anew."""
        steps, workers = step - self._since, dist.get_world_size() if dist.is_initialized() else 1
        self._sums.cpu()  # waits for the device, so that the clock is read after the work
        now = time.monotonic()
        together = torch.cat([self._sums / steps, torch.tensor([now - self._started], device=self._sums.device)])
        if workers > 1:
            dist.all_reduce(together)
        *losses, self.seconds = (together / workers).tolist()
        averages = dict(zip(LOSS_NAMES, losses, strict=True))
        self.seconds_per_step = self.seconds / steps
        self._sums.zero_()
        self._since, self._started = step, now
        return {
            **averages,
            "adversarial": averages["adversarial_a2b"] + averages["adversarial_b2a"],
            "cycle": averages["cycle_a"] + averages["cycle_b"],
            "images_per_second": batch / self.seconds_per_step,
        }


class Reporter:
    """Sends records and checkpoints to Ray Train's controller. Ray uploads a checkpoint while the steps go on; reports stay in order.

    A checkpoint holds the records that travel with it: a run can be killed between the moment when Ray has registered the one and
    the moment when the others are in metrics.jsonl. The next report of a run that goes on from it brings these `unsent` records again.
    """

    def __init__(self, model: CycleGAN, domains: tuple[Domain, Domain], out: str, unsent: list[dict[str, Any]]) -> None:
        self.model = model
        self.domains = domains
        self.out = out
        self._records = unsent
        self._seconds = 0.0

    def add(self, record: dict[str, Any], seconds: float, checkpoint_at: Place | None) -> None:
        """Takes a record of the last `seconds`, a time that all workers agree on, and reports if it is due, all workers alike."""
        self._records.append(record)
        self._seconds += seconds
        if checkpoint_at:
            _check_workers_agree(self.model)
            folder = _write_checkpoint(self.model, checkpoint_at, self._records, self.out)
            self._report(ray.train.Checkpoint.from_directory(folder))
        elif self._seconds >= REPORT_EVERY_S:
            self._report(None)

    def flush(self) -> None:
        """Reports what there is: at the end of a run that was killed after its last checkpoint."""
        if self._records:
            self._report(None)

    def _report(self, checkpoint: ray.train.Checkpoint | None) -> None:
        ray.train.report(
            {**self._records[-1], "records": self._records, "unreadable": self._new_unreadable()},
            checkpoint=checkpoint,
            checkpoint_dir_name=f"step-{self._records[-1]['step']:08d}",
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )
        self._records, self._seconds = [], 0.0

    def _new_unreadable(self) -> list[Unreadable]:
        return [
            Unreadable(name, uri, reason)
            for name, domain in zip("ab", self.domains, strict=True)
            if isinstance(domain.images, StreamedImages)
            for uri, reason in domain.images.new_unreadable()
        ]


class PreemptionWarning:
    """Asks Ray whether a machine of the group will be taken away. All workers ask at the same steps, as the question is a barrier."""

    def __init__(self) -> None:
        self._interval: int | None = None
        self._known: list[str] = []

    def ask_every(self, seconds_per_step: float, at_least: int) -> None:
        """Sets the steps between questions, from a time that all workers agree on; at least once in so many steps."""
        self._interval = min(at_least, max(1, int(PREEMPTION_EVERY_S / seconds_per_step)))

    def is_new(self, step: int) -> bool:
        """Whether a machine has been given notice since this was last asked."""
        if self._interval is None or step % self._interval:
            return False
        info = ray.train.get_preemption_info()
        before, self._known = self._known, info.preempted_node_ids if info else []
        return bool(set(self._known) - set(before))


def cpu_count() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe_batch(result: StepResult, real_a: Tensor, real_b: Tensor) -> dict[str, float | None]:
    """How this worker's last batch was changed, in both directions."""
    looks = {"a2b": measure_change(real_a, result.fake_b), "b2a": measure_change(real_b, result.fake_a)}
    return {f"{name}_{direction}": value for direction, look in looks.items() for name, value in look.items()}


def _restore(model: CycleGAN, rank: int, fork: str | None) -> tuple[Place, list[dict[str, Any]]]:
    """Loads the last checkpoint of this run, else the one that it forks, if there is one.

    Returns:
        Where it stands, and the records that travelled with it if it is this run's.
    """
    checkpoint = ray.train.get_checkpoint()
    is_own = checkpoint is not None
    if checkpoint is None and fork:
        filesystem, path = storage.open_arrow_filesystem(fork)
        checkpoint = ray.train.Checkpoint(path, filesystem)
    if checkpoint is None:
        return Place(), []
    with checkpoint.as_directory() as folder:
        facts = json.loads((Path(folder) / "checkpoint.json").read_text())
        model.load_state_dict(torch.load(Path(folder) / "model.pt", map_location=model.device, weights_only=True))
        own = Path(folder) / f"worker-{rank:05d}.pt"
        if own.exists():  # a group that has grown has workers who begin with an empty pool
            model.load_worker_state_dict(torch.load(own, map_location="cpu", weights_only=True))
    return Place(facts["step"], facts["images"]), facts["records"] if is_own else []


def _write_checkpoint(model: CycleGAN, place: Place, records: list[dict[str, Any]], out: str) -> str:
    """A local folder with this worker's part of a checkpoint, for Ray to take away; rank 0 also refreshes RUN/generators."""
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    folder = Path(tempfile.mkdtemp(prefix="cyclegan-checkpoint-"))
    _save(model.worker_state_dict(), folder / f"worker-{rank:05d}.pt")
    if rank == 0:
        run.save_generators(out, model, step=place.step, images=place.images)
        _save(model.state_dict(), folder / "model.pt")
        facts = {
            "step": place.step,
            "images": place.images,
            "workers": workers,
            "networks": describe_networks(model.settings),
            "records": records,
        }
        (folder / "checkpoint.json").write_text(json.dumps(facts, indent=2) + "\n")
    return str(folder)


def _save(state: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch hides a full disk behind an error of its own
            raise error.__context__ from None
        raise


def _check_workers_agree(model: CycleGAN) -> None:
    """Data-parallel workers hold the same parameters to the last bit; anything else is a defect that would spoil the run unseen."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    mine = model.checksum().to(model.device)
    theirs = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(theirs, mine)
    assert all(torch.equal(mine, other) for other in theirs), f"parameters differ between workers: {theirs}"
