"""Ray Train runs the CycleGAN data-parallel; what it reports becomes the files of a RUN.

In: `TrainSettings`. Out: RUN/config.yaml, checkpoints/, metrics.jsonl, unreadable.jsonl, tensorboard/, samples/, generators/, report.html.
Progress is counted in images, so the number of workers may change on the way. The same settings again go on from the last checkpoint, with
the same bits as if nothing had happened where the workers are as many as before.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from torch import Tensor

from cyclegan import run, storage
from cyclegan.alarms import measure_change
from cyclegan.config import Cluster, TrainSettings
from cyclegan.domain import Batch, Domain, StreamedImages, made_ahead
from cyclegan.errors import InputError, StoppedError
from cyclegan.model import LOSS_NAMES, CycleGAN, StepResult, describe_networks, refuse_sizes
from cyclegan.progress import every
from cyclegan.run import Unreadable
from cyclegan.sources import Input, list_inputs
from cyclegan.trackers import Tracker, check_installed, open_tracker
from cyclegan.training_data import TrainData, open_domains, prepare_data

log = logging.getLogger(__name__)

RESIZE_EVERY_S = 60.0
"""How often an elastic group looks whether it can grow."""
PREEMPTION_EVERY_S = 2.0
"""How often workers ask whether their machine will be taken away; spot machines are announced 30 to 120 s ahead."""

REPORT_EVERY_S = 1.0
"""Records that come faster travel together: Ray's controller takes one report at a time, when it looks after the workers."""

_POLL_S = "0.25"
"""How often it does; with Ray's own 2 s every report, and every lost worker, would wait that long."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@dataclass(frozen=True)
class Place:
    """Where a run stands: optimizer steps, and images of each domain seen by all workers."""

    step: int = 0
    images: int = 0


@dataclass(frozen=True)
class TrainJob:
    """A training that can begin: settings that fit its folder, the files of both domains, and the checkpoint it begins from."""

    settings: TrainSettings
    out: str
    files: dict[str, list[Input]]
    fork: str | None
    start: Place


@dataclass(frozen=True)
class TrainResult:
    """Where a run stands: its folder, the steps done, and its last line of metrics."""

    out: str
    steps: int
    metrics: dict[str, Any]


def prepare(settings: TrainSettings) -> TrainJob:
    """Finds all that can be found wrong without Ray, and writes nothing.

    Raises:
        InputError: a domain is missing or empty; the size does not fit the networks; RUN belongs to other settings; there is nothing
            to fork, or its networks are others; a tracker is not installed.
    """
    out = storage.absolute(settings.out)
    refuse_sizes(settings)
    if settings.track:
        check_installed(settings.track)
    run.refuse_other_settings(settings, out)
    fork, start = find_checkpoint(settings.fork, settings) if settings.fork else (None, Place())
    return TrainJob(settings, out, {name: list(list_inputs(source)) for name, source in settings.data.sources.items()}, fork, start)


def find_checkpoint(place: str, settings: TrainSettings) -> tuple[str, Place]:
    """The checkpoint at `place` (or the newest of the RUN there) and where it stands.

    Raises:
        InputError: there is none, or its networks are not those of `settings`.
    """
    folder = storage.absolute(place)
    if storage.exists(storage.join(folder, "checkpoints")):
        filesystem, path = storage.open_arrow_filesystem(storage.join(folder, "checkpoints"))
        try:
            checkpoint = ray.train.Result.from_path(path, storage_filesystem=filesystem).checkpoint
        except RuntimeError:  # the run has not got to its first checkpoint
            checkpoint = None
        if checkpoint is None:
            raise InputError(f"--fork {place}: this run has no checkpoint yet")
        folder = storage.join(folder, "checkpoints", Path(checkpoint.path).name)
    try:
        facts = json.loads(storage.read_text(storage.join(folder, "checkpoint.json")))
    except (OSError, ValueError):
        raise InputError(f"--fork {place}: neither a RUN nor one of its checkpoints (RUN/checkpoints/step-…)") from None
    there, here = run.flatten(facts["networks"]), run.flatten(describe_networks(settings))
    if different := [key for key in here if there.get(key) != here[key]]:
        words = ", ".join(f"{key} was {there.get(key)}, is {here[key]}" for key in different)
        raise InputError(f"--fork {place}: a checkpoint of other networks ({words})")
    return folder, Place(facts["step"], facts["images"])


def train(job: TrainJob, cluster: Cluster) -> TrainResult:
    """Trains to the end, or goes on from the last checkpoint of the same run.

    Raises:
        InputError: no image of a domain can be read; too few images or GPUs; too little memory.
        StoppedError: the disk is full, or the losses are not finite any more.
        ray.train.TrainingFailedError: more workers were lost than `max_failures`.
        KeyboardInterrupt: on Ctrl-C.
    """
    settings, out = job.settings, job.out
    use_gpu = cluster.use_gpu(settings.gpu, settings.worker_range[0])
    metrics = run.read_metrics(out)
    if run.has_ended(metrics):
        log.info("%s: this run has ended already", out)
        run.write_report(settings, out, metrics)
        return TrainResult(out, metrics[-1]["step"], metrics[-1])
    data = prepare_data(job.files, settings, cluster)
    planned = _planned_images(settings, data, job.start)
    run.write_config(settings, out)
    run.add_unreadable(out, data.unreadable)

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_S)
    with _tracked(settings, out) as tracker, every(1, Progress(settings, out, tracker)), _in_one_line(out):
        result: Any = _trainer(job, data, planned=planned, cluster=cluster, use_gpu=use_gpu).fit()
    metrics = run.read_metrics(out)
    run.write_report(settings, out, metrics)
    if result.return_value:
        raise StoppedError(f"{out}: {result.return_value}")
    return TrainResult(out, metrics[-1]["step"], metrics[-1])


def _trainer(job: TrainJob, data: TrainData, *, planned: int, cluster: Cluster, use_gpu: bool) -> TorchTrainer:
    settings = job.settings
    least, most = settings.worker_range
    filesystem, place = storage.open_arrow_filesystem(job.out)
    config = {"settings": settings.model_dump(), "out": job.out, "planned": planned, "data": data, "fork": job.fork}
    workers: Any = most if least == most else (least, most)
    scaling: Any = ray.train.ScalingConfig  # annotated with the class that V2 replaced, as the rest of Ray Train
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # the value that it returns is in the Result
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=scaling(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker=_worker_resources(settings, cluster, use_gpu),
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=place,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=settings.keep_checkpoints,
                checkpoint_score_attribute=settings.keep_best_by,
                checkpoint_score_order="min",
            ),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            callbacks=[RunFiles(settings, job.out)],  # type: ignore[list-item]
        ),
    )


def train_worker(config: dict[str, Any]) -> str | None:
    """What each worker runs: the loop over steps, with reports, samples and checkpoints. See `_trainer` for `config`.

    Returns:
        None at the end of the run; before it, why it can't go on.
    """
    settings, out, planned = TrainSettings.model_validate(config["settings"]), config["out"], config["planned"]
    context, device = ray.train.get_context(), get_device()
    rank, workers = context.get_world_rank(), context.get_world_size()
    threads = max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    if device.type == "cpu":
        torch.set_num_threads(threads)
    else:
        torch.backends.cudnn.benchmark = True  # all batches have one shape
    domain_a, domain_b = open_domains(config["data"], settings)
    model = CycleGAN(settings, device, rank)
    start = _restore(model, rank, config["fork"])

    batch = settings.batch_size * workers
    share = slice(rank * settings.batch_size, (rank + 1) * settings.batch_size)

    def make_batches(position: int) -> tuple[Batch, Batch]:
        made = domain_a.batch(position, batch, share), domain_b.batch(position, batch, share)
        return (made[0].pin(), made[1].pin()) if device.type == "cuda" else made

    streamed = config["data"].names is not None
    feed = made_ahead(make_batches, range(start.images, planned, batch), threads=max(2, threads) if streamed else 1)
    window, warning = Window(device, start.step), PreemptionWarning()
    reporter = Reporter(model, (domain_a, domain_b), out)
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
            if int(model.skipped_in_a_row) >= settings.max_skipped_steps:
                return (
                    f"{int(model.skipped_in_a_row)} steps in a row had no finite gradients; the last good checkpoint is kept. "
                    "Give --fork this run, a new --out, and a lower --optimizer.learning-rate or --precision fp32"
                )
    return None


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
    """Sends records and checkpoints to Ray Train's controller. Ray uploads a checkpoint while the steps go on; reports stay in order."""

    def __init__(self, model: CycleGAN, domains: tuple[Domain, Domain], out: str) -> None:
        self.model = model
        self.domains = domains
        self.out = out
        self._records: list[dict[str, Any]] = []
        self._seconds = 0.0

    def add(self, record: dict[str, Any], seconds: float, checkpoint_at: Place | None) -> None:
        """Takes a record of the last `seconds`, a time that all workers agree on, and reports if it is due, all workers alike."""
        self._records.append(record)
        self._seconds += seconds
        if checkpoint_at is None and self._seconds < REPORT_EVERY_S:
            return
        checkpoint = None
        if checkpoint_at:
            _check_workers_agree(self.model)
            checkpoint = ray.train.Checkpoint.from_directory(_write_checkpoint(self.model, checkpoint_at, self.out))
        ray.train.report(
            {**record, "records": self._records, "unreadable": self._new_unreadable()},
            checkpoint=checkpoint,
            checkpoint_dir_name=f"step-{record['step']:08d}",
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


class RunFiles(ray.train.UserCallback):
    """Turns each report of the workers into a line of metrics.jsonl and of TensorBoard; lives in Ray Train's controller.

    What no new attempt could mend ends the run here: Ray would start the workers again for it.
    """

    def __init__(self, settings: TrainSettings, out: str) -> None:
        self.settings = settings
        self.out = out
        self._log: run.MetricsLog | None = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """Called by Ray Train once all workers have reported; `metrics` holds one mapping a worker."""
        self._log = self._log or run.MetricsLog(self.out)  # opened here: the callback travels to the controller as a pickle
        run.add_unreadable(self.out, [item for worker in metrics for item in worker["unreadable"]])
        self._log.append(metrics[0]["records"], self.settings.loss.gan)

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:  # noqa: ARG002
        """Called by Ray Train when workers failed, before it decides whether to start them again."""
        for exception in worker_exceptions.values():
            cause = _cause(exception)
            if isinstance(cause, InputError) or (isinstance(cause, OSError) and cause.errno in _FULL):
                raise cause


class Progress:
    """Says on the driver what has arrived in metrics.jsonl since it was last asked, sends it on, and keeps report.html up to date."""

    def __init__(self, settings: TrainSettings, out: str, tracker: Tracker | None) -> None:
        self.settings = settings
        self.out = out
        self.tracker = tracker
        records = run.read_metrics(out)
        self._step = records[-1]["step"] if records else 0
        self._alarms: list[str] = []
        self._samples = run.sample_steps(out)

    def __call__(self) -> None:
        """Logs a line for each new report and each new alarm."""
        records = run.read_metrics(self.out)
        if not records or records[-1]["step"] == self._step:
            return
        # a run that lost workers goes back to its last checkpoint
        new = [record for record in records if record["step"] > self._step] or records[-1:]
        for record in new:
            log.info("%s", run.progress_line(record))
            if self.tracker:
                self.tracker.log(record)
            for alarm in record["alarms"]:
                if alarm not in self._alarms:
                    log.warning("alarm at step %d: %s", record["step"], alarm)
            self._alarms = record["alarms"]
        self._step = records[-1]["step"]
        samples = run.sample_steps(self.out)
        if samples and samples != self._samples:
            run.write_report(self.settings, self.out, records)
            if self.tracker:
                self.tracker.log_samples(samples[-1], run.latest_samples(self.out, samples[-1]).data)
        self._samples = samples


def _planned_images(settings: TrainSettings, data: TrainData, start: Place) -> int:
    """Images of each domain until the end of the run."""
    if settings.steps:
        planned = settings.steps * settings.batch_size * settings.max_workers
    else:
        planned = math.ceil((settings.epochs or 0) * max(data.counts.values()))
    if planned <= start.images:
        raise InputError(f"--fork {settings.fork}: stands at {start.images} images, the new run would end at {planned}; give more --steps")
    return planned


def _worker_resources(settings: TrainSettings, cluster: Cluster, use_gpu: bool) -> dict[str, float]:
    """On CPUs the workers share what there is: Ray would wait for ever for a CPU each that does not exist."""
    if use_gpu:
        return {"GPU": 1}
    elastic = settings.worker_range[0] != settings.max_workers  # Ray counts how many whole workers fit
    return {"CPU": 1 if cluster.can_grow or elastic else min(1.0, cluster.cpus / settings.max_workers)}


@contextmanager
def _tracked(settings: TrainSettings, out: str) -> Iterator[Tracker | None]:
    """The tracker that was asked for, while the block runs."""
    if settings.track is None:
        yield None
        return
    tracker = open_tracker(settings.track, out, run.flatten(settings.model_dump(mode="json")))
    try:
        yield tracker
    finally:
        tracker.close()


@contextmanager
def _in_one_line(out: str) -> Iterator[None]:
    """Turns what ends a training for good into errors that say so."""
    try:
        yield
    except SystemExit:  # how Ray Train ends the process on Ctrl-C, without a word
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
        for failure in map(_cause, failures.values()):
            if isinstance(failure, InputError):
                raise failure from None
            if isinstance(failure, OSError) and failure.errno in _FULL:
                raise StoppedError(
                    f"{out}: {failure.strerror or failure}; what is there is whole, the same command goes on once there is room"
                ) from None
        raise


def _cause(exception: BaseException) -> BaseException:
    """What a worker raised, out of what Ray wrapped around it."""
    return getattr(exception, "_base_exc", None) or getattr(exception, "cause", None) or exception


def _describe_batch(result: StepResult, real_a: Tensor, real_b: Tensor) -> dict[str, float | None]:
    """How this worker's last batch was changed, in both directions."""
    looks = {"a2b": measure_change(real_a, result.fake_b), "b2a": measure_change(real_b, result.fake_a)}
    return {f"{name}_{direction}": value for direction, look in looks.items() for name, value in look.items()}


def _restore(model: CycleGAN, rank: int, fork: str | None) -> Place:
    """Loads the last checkpoint of this run, else the one that it forks, if there is one, and returns where it stands."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None and fork:
        filesystem, path = storage.open_arrow_filesystem(fork)
        checkpoint = ray.train.Checkpoint(path, filesystem)
    if checkpoint is None:
        return Place()
    with checkpoint.as_directory() as folder:
        facts = json.loads((Path(folder) / "checkpoint.json").read_text())
        model.load_state_dict(torch.load(Path(folder) / "model.pt", map_location=model.device, weights_only=True))
        own = Path(folder) / f"worker-{rank:05d}.pt"
        if own.exists():  # a group that has grown has workers who begin with an empty pool
            model.load_worker_state_dict(torch.load(own, map_location="cpu", weights_only=True))
    return Place(facts["step"], facts["images"])


def _write_checkpoint(model: CycleGAN, place: Place, out: str) -> str:
    """A local folder with this worker's part of a checkpoint, for Ray to take away; rank 0 also refreshes RUN/generators."""
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    folder = Path(tempfile.mkdtemp(prefix="cyclegan-checkpoint-"))
    _save(model.worker_state_dict(), folder / f"worker-{rank:05d}.pt")
    if rank == 0:
        run.save_generators(out, model, step=place.step, images=place.images)
        _save(model.state_dict(), folder / "model.pt")
        facts = {"step": place.step, "images": place.images, "workers": workers, "networks": describe_networks(model.settings)}
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
