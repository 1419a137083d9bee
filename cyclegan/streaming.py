"""The way of rows of the manifest through Ray Data, as one dataset.

In: rows of the manifest. Out: a dataset of rows of `plan.ROW_SCHEMA`, which Ray works at when it is written or read.

    rows in blocks -> load (read, decode, resize) -> Translator (generator) -> store (encode, put away)

On GPUs each stage is a stage of Ray Data, with CPUs of its own. On a CPU one actor does all of it: the stages would only take the CPU from
each other, and what one process does in turn is on disk soonest. What each stage does stands in `loading`,
`generating` and `storing`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.fs
import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig
from ray.exceptions import RayActorError

from cyclegan import storage
from cyclegan.config import Cluster
from cyclegan.generating import Judge, Recipe, Translator
from cyclegan.ledger import Attempt, Claim
from cyclegan.loading import load
from cyclegan.second_try import is_second_try
from cyclegan.sinks import Sink
from cyclegan.storing import store
from cyclegan.translation_report import SHEET_PAIRS
from cyclegan.weights import Generator

_SUSPECTS = 8
"""Calls after a worker's death whose photos are decoded apart: more than Ray keeps waiting for one actor."""


@dataclass(frozen=True)
class Workers:
    """The copies of the generator.

    Args:
        use_gpu: each has a GPU; else CPUs.
        copies: how many.
        threads: of each, on CPUs.
        cpus: that Ray sets aside for each; fewer than it has threads, or none would be left for writing.
    """

    use_gpu: bool
    copies: int
    threads: int
    cpus: float

    @classmethod
    def on(cls, cluster: Cluster, *, gpu: bool | None, copies: int | None) -> Workers:
        """As many as asked for, else one for each GPU or machine, on GPUs where asked for, else where there are any.

        Raises:
            InputError: too few GPUs.
        """
        if cluster.use_gpu(gpu, copies or 1):
            return cls(True, copies or max(1, int(cluster.gpus)), threads=1, cpus=0)
        # the smallest machine says how large a copy is; a larger one has room for several
        smallest = int(min(cluster.machine_cpus, default=os.cpu_count() or 1))
        fitting = sum(int(cpus) // smallest for cpus in cluster.machine_cpus)
        threads = smallest if copies is None else max(1, min(smallest, int(cluster.cpus) // copies))
        return cls(False, copies or max(1, fitting), threads, cpus=threads * (smallest - 1) / smallest)


def in_blocks(manifest: pa.Table, rows: int) -> ray.data.Dataset:
    """Rows of the manifest in blocks of so many.

    They come from here because a task of Ray's that reads and cuts them would hold its CPU until most of them are translated, and on few
    CPUs nothing is written meanwhile.
    """
    # not from_arrow, which has a task look at each block: ten seconds and more for a segment of a million
    blocks: ray.data.Dataset = ray.data.from_blocks([manifest.slice(start, rows) for start in range(0, len(manifest), rows)])
    return blocks


def through(
    listed: ray.data.Dataset,
    recipe: Recipe,
    sink: Sink,
    claim: Claim | None,
    *,
    rows: int,
    chunk: int,
    staged: bool,
    workers: Workers,
) -> ray.data.Dataset:
    """Rows of the manifest through all stages: rows of `plan.ROW_SCHEMA`.

    Args:
        listed: in blocks of `rows`.
        recipe: of the job.
        sink: where pictures go.
        claim: to the segment that this is part of; None for a dry run.
        rows: to a block.
        chunk: rows whose pixels a generator of its own stage holds at once.
        staged: a stage of Ray Data for each stage of ours, as on GPUs; else one actor for all of them, as on CPUs.
        workers: where the generators run.
    """
    pool = ray.data.ActorPoolStrategy(size=workers.copies)
    if not staged:
        return listed.map_batches(
            Workshop,
            batch_format="pyarrow",
            batch_size=rows,
            compute=pool,
            num_cpus=workers.cpus,
            fn_constructor_kwargs={"recipe": recipe, "sink": sink, "claim": claim, "threads": workers.threads},
        )
    # no num_cpus for storing: with equal resources Ray fuses it with writing, so a block is on disk once it is translated
    return (
        listed.map_batches(partial(load, loading=recipe.loading, threads=1, apart=is_second_try), batch_format="pyarrow", batch_size=rows)
        .map_batches(
            Translator,
            batch_format="pyarrow",
            batch_size=chunk,
            compute=pool,
            num_gpus=1 if workers.use_gpu else 0,
            num_cpus=0,
            fn_constructor_kwargs={"recipe": recipe, "use_gpu": workers.use_gpu, "threads": workers.threads},
        )
        .map_batches(partial(store, storing=recipe.storing, sink=sink, claim=claim, threads=1), batch_format="pyarrow", batch_size=rows)
    )


class Workshop:
    """All stages in one worker."""

    def __init__(self, recipe: Recipe, sink: Sink, claim: Claim | None, threads: int) -> None:
        self.recipe, self.sink, self.claim, self.threads = recipe, sink, claim, threads
        self.translator = Translator(recipe, use_gpu=False, threads=threads)
        self.suspects = _SUSPECTS if is_second_try() else 0

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Rows of the manifest in, of `plan.ROW_SCHEMA` out."""
        for loaded in load(table, self.recipe.loading, threads=self.threads, apart=lambda: self.suspects > 0):
            yield store(self.translator(loaded), self.recipe.storing, self.sink, self.claim, threads=self.threads)
        self.suspects -= 1


@contextmanager
def row_checkpoint(attempt: Attempt) -> Iterator[None]:
    """Has Ray Data keep its two-phase account of the files that it writes."""
    filesystem, path = storage.open_arrow_filesystem(attempt.checkpoint_path)
    context = ray.data.DataContext.get_current()
    before = context.checkpoint_config
    # kept until the segment is committed; Ray has no rows to filter, and would not filter blocks anyway: they are what is left
    context.checkpoint_config = CheckpointConfig(
        "row_id", path, delete_checkpoint_on_success=False, override_filesystem=filesystem or pa.fs.LocalFileSystem()
    )
    try:
        yield
    finally:
        context.checkpoint_config = before


def rebuild(pictures: pa.Table, reverse: Generator, use_gpu: bool) -> pa.Table:
    """`translation_report.Rebuild`, by a worker that has what a generator needs."""
    judged = ray.data.from_arrow(pictures).map_batches(
        Judge,
        batch_format="pyarrow",
        batch_size=SHEET_PAIRS,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_gpus=1 if use_gpu else 0,
        fn_constructor_kwargs={"reverse": reverse, "use_gpu": use_gpu},
    )
    return pa.concat_tables(judged.iter_batches(batch_size=None, batch_format="pyarrow"))


def why_not_set_up(error: BaseException) -> str | None:
    """The last line of what a generator's constructor raised on its worker; None where `error` is something else."""
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return str(error).strip().splitlines()[-1]  # Ray keeps no more of it than text
    return None
