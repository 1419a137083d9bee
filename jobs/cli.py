"""What all jobs share: reading options, connecting to Ray, and turning the outcome into an exit code.

Exit codes: 0 all done; 1 a crash, or a stop that is named in one line; 2 a bad option, file or weight, named in one line; 3 too many
failed images; 130 Ctrl-C; 143 SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from cyclegan.config import Cluster, Settings
from cyclegan.errors import InputError, StoppedError
from cyclegan.options import load_settings
from cyclegan.storage import is_local

S = TypeVar("S", bound=Settings)


def run(job: Callable[[Sequence[str]], int]) -> None:
    """Runs a job's `main` on this process's command line and exits with its code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cyclegan").setLevel(logging.INFO)
    try:
        sys.exit(job(sys.argv[1:]))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except StoppedError as error:
        print(f"stopped: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(143 if isinstance(interrupt, _Terminated) else 130)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, such as from a scheduler that wants the machine back: it ends a job as Ctrl-C does."""


def _terminate(*_: object) -> None:
    raise _Terminated


def parse(settings: type[S], name: str, argv: Sequence[str]) -> S:
    """The settings of the job `name`.

    Raises:
        InputError: a setting is wrong, or the result would be lost.
    """
    read = load_settings(settings, argv, f"python -m jobs.{name}")
    out = getattr(read, "out", None)
    if out and "/working_dir_files/" in os.getcwd() and is_local(out) and not os.path.isabs(out):
        raise InputError(f"--out {out}: lies in the cluster's passing copy of your folder; give a URI or an absolute path that is shared")
    return read


@contextmanager
def ray_session() -> Iterator[Cluster]:
    """Connects to the cluster that RAY_ADDRESS names, else starts Ray inside this process; either way undone at the end.

    Raises:
        InputError: no cluster answers at RAY_ADDRESS.
    """
    remote = bool(os.environ.get("RAY_ADDRESS"))
    import ray  # slow, and not needed to find an option wrong
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name, level in (
        ("ray.data", logging.WARNING),
        ("ray.data._internal.progress", logging.ERROR),  # that its progress bars are off
        # the failures of tasks, over pages: they end the job, which says so itself
        ("ray.data.exceptions", logging.CRITICAL),
        ("ray.data._internal.execution.streaming_executor_state", logging.CRITICAL),
        ("ray.data.dataset", logging.ERROR),  # that there are no CPUs, in the moment before Ray has counted them
        ("ray._private.authentication", logging.ERROR),  # that a local Ray asks for a token
    ):
        logging.getLogger(name).setLevel(level)
    # What workers say is Ray's own account of itself; their errors reach the driver as exceptions, the rest is in Ray's log folder.
    if remote:
        try:
            ray.init(logging_level=logging.WARNING, log_to_driver=False)
        except ConnectionError as error:
            raise InputError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no cluster answers; start it or unset RAY_ADDRESS ({error})"
            ) from None
    else:
        # Ray would put its workers behind everything else on the machine, its own bookkeeping first, and they are the work
        os.environ.setdefault("RAY_worker_niceness", "0")
        # a single logical CPU would leave none for reading while a generator holds it
        cpus = max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    signal.signal(signal.SIGTERM, _terminate)  # Ray has put its own in its place, which leaves without a word
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        machines = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        yield Cluster(
            machine_cpus=tuple(cpus for cpus in machines if cpus),
            gpus=resources.get("GPU", 0),
            object_store_bytes=resources.get("object_store_memory", 0),
            can_grow=remote,
        )
    finally:
        ray.shutdown()
