"""Ray Data streams photos through a trained generator.

In: `TranslateSettings`. Out: the folder OUT of the design, its rows as in `plan.ROW_SCHEMA`.

Segment by segment: what is left of it goes through `streaming` under the eye of a `Watch`, is read back and committed by the `ledger`.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import PIL
import torch

import cyclegan
from cyclegan import images, ledger, storage
from cyclegan.config import Cluster, TranslateSettings
from cyclegan.errors import InputError, StoppedError
from cyclegan.generating import Recipe
from cyclegan.geometry import SizePolicy
from cyclegan.lease import Lease, hold
from cyclegan.ledger import Attempt
from cyclegan.loading import CHUNK_BYTES
from cyclegan.plan import Plan, Segment, find_plan, make_plan
from cyclegan.sinks import Sink
from cyclegan.sources import list_inputs
from cyclegan.streaming import Workers, in_blocks, rebuild, row_checkpoint, through, why_not_set_up
from cyclegan.translation_report import finished, summarise, withdraw_report, write_report
from cyclegan.watch import CalledOff, Watch
from cyclegan.weights import Generator, load_generator

log = logging.getLogger(__name__)

MAX_FILE_ROWS = 256
"""Rows of a data file, so that those of a segment of a million stay few thousand."""

MIN_FILES = 512
"""Data files of a segment, so that a small job leaves them steadily too, and loses little when it is killed."""

FILE_PIXELS = {"cpu": 4e6, "gpu": 5e8}
"""Pixels to a data file: what takes some seconds to some tens of seconds, from the seed's generator to the paper's."""

_PIXELS_PER_BYTE = 6
"""Of a JPEG, about."""


@dataclass(frozen=True)
class TranslateJob:
    """A translation that can begin or go on: what was asked, checked, and the generators it takes."""

    settings: TranslateSettings
    out: str
    source: str
    generator: Generator
    reverse: Generator | None
    policy: SizePolicy

    @property
    def request(self) -> dict[str, Any]:
        """All that decides the translated pixels; two runs into one OUT must agree on it."""
        settings = self.settings
        return {
            "generator_sha256": self.generator.sha256,
            "direction": self.generator.direction,
            "size": str(self.policy),
            "restore_size": settings.restore_size,
            "format": settings.format,
            "encoding": settings.encoding,
            "quality": settings.quality if settings.encoding in ("jpeg", "webp") else None,
            "keep_exif": settings.keep_exif,
            "precision": settings.precision,
            "cyclegan": cyclegan.__version__,
            "torch": str(torch.__version__),  # as it is, every worker that unpickles a plan would load torch
            "pillow": PIL.__version__,
            "machine": platform.machine(),
        }

    @property
    def recipe(self) -> Recipe:
        """What its workers need to know."""
        settings = self.settings
        return Recipe(
            generator=self.generator,
            policy=self.policy,
            restore_size=settings.restore_size,
            encoding=settings.encoding,
            quality=settings.quality,
            keep_exif=settings.keep_exif,
            precision=settings.precision,
            batch_size=settings.batch_size,
        )

    def workers(self, cluster: Cluster) -> Workers:
        """Where its generators run.

        Raises:
            InputError: too few GPUs.
        """
        return Workers.on(cluster, gpu=self.settings.gpu, copies=self.settings.generators)

    def sink(self, plan: Plan, segment: Segment, token: str) -> Sink:
        """Where the pictures of one attempt go."""
        folder = plan.shards_path(segment) if self.settings.format == "webdataset" else plan.images_path
        return Sink(self.settings.format, plan.base, images.SUFFIXES[self.settings.encoding], folder, token)


@dataclass(frozen=True)
class TranslateResult:
    """Where a translation stands: its folder, the content of its summary.json, and why it stopped early, if it did."""

    out: str
    summary: dict[str, Any]
    stopped: str | None = None

    @property
    def failed_share(self) -> float:
        """Failed photos among those done."""
        failed, done = int(self.summary["failed"]), int(self.summary["done"])
        return failed / max(1, done)


def prepare(settings: TranslateSettings) -> TranslateJob:
    """Finds all that can be found wrong without Ray, and writes nothing.

    Raises:
        InputError: no generator, an encoding that can't hold its pixels, an empty source, an OUT of another job.
    """
    out, source = storage.absolute(settings.out), storage.absolute(settings.source)
    generator = load_generator(settings.generator, settings.direction)
    if not images.can_hold(settings.encoding, generator.output):
        raise InputError(f"--encoding {settings.encoding}: can't hold {generator.output}; give --encoding png or tiff")
    policy = SizePolicy.parse(settings.size or f"resize:{generator.size}")
    job = TranslateJob(settings, out, source, generator, _find_reverse(settings, generator), policy)
    plan = None if settings.dry_run else find_plan(out, job.request, source)
    if plan is None:
        if settings.retry_failed:
            raise InputError(f"--retry-failed: {out} holds no translation yet; leave it out")
        next(list_inputs(source))  # an empty source is found before anything is written
    return job


def _find_reverse(settings: TranslateSettings, generator: Generator) -> Generator | None:
    """The generator of the other direction: the one that is named, else the other one of a RUN, where there is one."""
    opposite = {"a2b": "b2a", "b2a": "a2b"}.get(generator.direction or "")
    if settings.reverse:
        reverse = load_generator(settings.reverse, opposite)
    elif opposite and storage.exists(storage.join(storage.absolute(settings.generator), "generators", opposite)):
        reverse = load_generator(settings.generator, opposite)
    else:
        return None
    if (reverse.input, reverse.output) != (generator.output, generator.input):
        raise InputError(
            f"--reverse {settings.reverse}: translates {reverse.input} into {reverse.output}, not {generator.output} into {generator.input}"
        )
    return reverse


def already_done(job: TranslateJob) -> TranslateResult | None:
    """What an earlier run of `job` has finished, None where there is something to do; needs no Ray.

    Raises:
        InputError: OUT belongs to another job.
        StoppedError: it can't be reached.
    """
    with in_one_line(job.out):
        plan = find_plan(job.out, job.request, job.source)
        if plan is None or not finished(plan):
            return None
        summary = summarise(plan)
    return None if job.settings.retry_failed and summary["failed"] else TranslateResult(plan.out, summary)


def translate(job: TranslateJob, cluster: Cluster) -> TranslateResult:
    """Translates every input of the plan that is not committed yet.

    Raises:
        InputError: too few GPUs; another job is at work in OUT.
        StoppedError: OUT is full or can't be reached, or another job has taken it over; a generator can't be set up on its worker.
    """
    if result := already_done(job):
        return result
    settings = job.settings
    workers = job.workers(cluster)
    with in_one_line(job.out), hold(job.out) as lease:
        plan = find_plan(job.out, job.request, job.source)
        if plan is None:
            saved = settings.model_dump(mode="json", exclude={"retry_failed"})
            plan = make_plan(job.out, job.request, job.source, list_inputs(job.source), segment_rows=settings.segment_rows, settings=saved)
            segments = len(plan.segments)
            log.info("%d images in %s", plan.rows, "one segment" if segments == 1 else f"{segments} segments")
        if settings.retry_failed:
            _reopen_failed(plan, lease)
        withdraw_report(plan)
        for segment in ledger.open_segments(plan):
            if stopped := _translate_segment(job, plan, segment, lease, workers=workers, cpus=cluster.cpus):
                return TranslateResult(plan.out, summarise(plan), stopped)
        summary = summarise(plan)
        back = partial(rebuild, reverse=job.reverse, use_gpu=workers.use_gpu) if job.reverse else None
        write_report(plan, summary, back, settings.cycle_sample)
    return TranslateResult(plan.out, summary)


def _reopen_failed(plan: Plan, lease: Lease) -> None:
    for record in ledger.commits(plan):
        if record["failed"]:
            segment = plan.segments[record["segment"]]
            ledger.reopen(plan, segment, lease.token, drop=ledger.failed_ids(plan, segment), renew=True)


def _translate_segment(job: TranslateJob, plan: Plan, segment: Segment, lease: Lease, *, workers: Workers, cpus: float) -> str | None:
    """Translates and commits what is left of one segment; gives back why it stopped, if too many photos failed."""
    started = time.monotonic()
    attempt = ledger.begin(plan, segment, lease.token)
    watch = Watch(job.settings.max_failed_share, attempt, lease)
    if watch.hopeless:
        return watch.hopeless
    if attempt.rows:
        try:
            with watch:
                run_attempt(job, attempt, workers, staged=workers.use_gpu)
        except CalledOff:
            if watch.problem:
                raise watch.problem from None
            return watch.hopeless
    lease.check()
    record = ledger.commit(attempt, time.monotonic() - started, {"generators": workers.copies, "cpus": cpus})
    log.info(
        "segment %d of %d: %d ok, %d failed, %.1f images/s",
        segment.number + 1, len(plan.segments), record["ok"], record["failed"], attempt.rows / record["seconds"],
    )  # fmt: skip
    return None


def run_attempt(job: TranslateJob, attempt: Attempt, workers: Workers, *, staged: bool) -> None:
    """Sends what is left of a segment through Ray Data, whose row checkpoint says which files are whole.

    Args:
        job: of OUT.
        attempt: at its beginning.
        workers: as for `through`.
        staged: likewise.
    """
    rows = _file_rows(job, attempt, workers.use_gpu)
    filesystem, data = storage.open_arrow_filesystem(attempt.plan.data_path(attempt.segment))
    with row_checkpoint(attempt):
        listed = in_blocks(attempt.todo, rows)
        sink = job.sink(attempt.plan, attempt.segment, attempt.token)
        chunk = max(1, int(CHUNK_BYTES / (4 * _pixels(job, attempt))))
        translated = through(listed, job.recipe, sink, attempt.claim, rows=rows, chunk=min(rows, chunk), staged=staged, workers=workers)
        translated.write_parquet(data, filesystem=filesystem)


def _file_rows(job: TranslateJob, attempt: Attempt, use_gpu: bool) -> int:
    """Photos to a data file: few enough that files come steadily, enough that they don't become too many."""
    by_work = FILE_PIXELS["gpu" if use_gpu else "cpu"] / _pixels(job, attempt)
    by_count = attempt.segment.rows // MIN_FILES
    return job.settings.file_rows or max(1, min(MAX_FILE_ROWS, int(by_work), max(16, by_count)))


def _pixels(job: TranslateJob, attempt: Attempt) -> float:
    """Of a photo as the generator sees it, about."""
    if job.policy.shorter_side:
        return 1.3 * job.policy.shorter_side**2
    return max(1e4, _PIXELS_PER_BYTE * attempt.mean_size) if attempt.mean_size else 1e6


@contextmanager
def in_one_line(out: str) -> Iterator[None]:
    """A disk that is full, a store that is gone or a GPU that torch can't use ends the job in one line.

    Raises:
        StoppedError: the block raised something of that kind, on whatever machine.
    """
    try:
        yield
    except (InputError, StoppedError):
        raise
    except Exception as error:
        for cause in reversed(list(_causes(error))):  # the innermost says it in its own words
            if isinstance(cause, StoppedError):
                raise StoppedError(str(cause)) from error
            if reason := why_not_set_up(cause):
                raise StoppedError(f"{out}: a generator could not be set up on its worker: {reason}") from error
            if isinstance(cause, OSError):
                # by the number, where there is one: Ray puts its own remarks into the text
                reason = os.strerror(cause.errno) if cause.errno else str(cause).strip().splitlines()[-1]
                raise StoppedError(
                    f"{out}: {reason}; what is written is whole, and the same command goes on once this is mended"
                ) from error
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those behind it, as Ray wraps them."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop(0)
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += [getattr(cause, "cause", None), cause.__cause__]
