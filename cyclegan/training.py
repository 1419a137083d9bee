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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exception_only
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from cyclegan import run, storage
from cyclegan.config import Cluster, TrainSettings
from cyclegan.errors import InputError, StoppedError
from cyclegan.model import describe_networks, refuse_sizes
from cyclegan.progress import every
from cyclegan.sources import Input, list_inputs
from cyclegan.trackers import Tracker, check_installed, open_tracker
from cyclegan.training_data import TrainData, prepare_data
from cyclegan.training_loop import Place, train_worker

log = logging.getLogger(__name__)

RESIZE_EVERY_S = 60.0
"""How often an elastic group looks whether it can grow."""
_POLL_S = "0.25"
"""How often Ray's controller looks after the workers; with its own 2 s every report, and every lost worker, would wait that long."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


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
    domains = {name: _list_files(name, source) for name, source in settings.data.sources.items()}
    return TrainJob(settings, out, domains, fork, start)


def _list_files(domain: str, source: str) -> list[Input]:
    files = list(list_inputs(source))
    if inside := next((item for item in files if item.container), None):
        raise InputError(f"--data.{domain} {source}: {inside.container} holds images; training reads them from files, so unpack it")
    return files


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
        StoppedError: the disk is full, the losses are not finite any more, or workers can't be set up.
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
        if isinstance(error, ray.train.ControllerError):  # torch can't use the GPUs that Ray counts, for one
            reason = format_exception_only(_cause(error.controller_failure))[-1].strip()
            raise StoppedError(f"{out}: Ray Train could not set its workers up: {reason}") from error
        raise


def _cause(exception: BaseException) -> BaseException:
    """What a worker raised, out of what Ray wrapped around it."""
    return getattr(exception, "_base_exc", None) or getattr(exception, "cause", None) or exception
