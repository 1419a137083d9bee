"""Looks after an attempt at a segment while Ray Data is at work on it.

In: the attempt, and what is on disk of it. Out: a line that says how it goes; an end to it when there is no point in going on.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from types import TracebackType

import pyarrow as pa

from cyclegan import ledger, storage
from cyclegan.data_files import count_rows
from cyclegan.errors import StoppedError
from cyclegan.lease import Lease
from cyclegan.ledger import Attempt
from cyclegan.progress import Line, duration, every

LOOK_EVERY = 3
"""Calls for a look at the storage, which may be slow to list."""


_SIGNAL = signal.SIGUSR1
"""Not SIGINT: a shell has that ignored by what a script runs in the background."""


class CalledOff(KeyboardInterrupt):
    """Raised in the main thread by a `Watch`; of Ctrl-C's kind, since that is what Ray leaves its work for."""


class Watch:
    """Looks after an attempt from a thread of its own while the block runs: shows how it goes, and calls it off when there is no point.

    The block must be the main thread's. It is left with `CalledOff`, and `problem` or `hopeless` says why.

    Args:
        max_failed_share: of all photos of the plan.
        attempt: to be looked after.
        lease: that it needs.

    Attributes:
        problem: that OUT is not this job's any more.
        hopeless: in words, that more photos have failed than may; known from the start where earlier segments suffice for it.
    """

    def __init__(self, max_failed_share: float, attempt: Attempt, lease: Lease) -> None:
        self.max_failed_share, self.attempt, self.lease = max_failed_share, attempt, lease
        self.problem: StoppedError | None = None
        self.hopeless: str | None = None
        self.line = Line()
        committed = ledger.commits(attempt.plan)
        self.done_before = sum(record["rows"] for record in committed)
        self.failed_before = sum(record["failed"] for record in committed)
        self._files: dict[str, tuple[int, int]] = {}
        self._looks: deque[tuple[float, int]] = deque(maxlen=20)
        self._calls = 0
        self._may_call_off = False
        self._leaving = ExitStack()
        self._judge(self.done_before, self.failed_before)

    def __enter__(self) -> Watch:
        before = signal.signal(_SIGNAL, _call_off)
        self._leaving.callback(signal.signal, _SIGNAL, before)
        self._leaving.enter_context(self.line)
        self._leaving.enter_context(every(1, self))
        self._may_call_off = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._may_call_off = False
        self._leaving.close()

    def __call__(self) -> None:
        """Counts what is on disk, from the files themselves, every few calls."""
        self._calls += 1
        if self._calls % LOOK_EVERY == 0:
            self._look()

    def _look(self) -> None:
        plan, folder = self.attempt.plan, self.attempt.plan.data_path(self.attempt.segment)
        for name in storage.names(folder) - self._files.keys():
            with suppress(pa.ArrowInvalid):  # a file that is not finished
                self._files[name] = count_rows(storage.join(folder, name))
        here = sum(rows for rows, _ in self._files.values())
        done = self.done_before + here
        failed = self.failed_before + sum(failed for _, failed in self._files.values())
        if here > self.attempt.kept_rows:  # how long the first took says little of the rate
            self._looks.append((time.monotonic(), here))
            (since, before), (now, new) = self._looks[0], self._looks[-1]
            rate = (new - before) / max(1e-9, now - since)
            pace = f"  {rate:.1f} images/s  {duration((plan.rows - done) / rate)} left" if rate else ""
            self.line.show(f"{done} of {plan.rows} images  {failed} failed{pace}")
        self._judge(done, failed)
        try:
            self.lease.check()
        except StoppedError as problem:
            self.problem = problem
        if (self.problem or self.hopeless) and done < plan.rows and self._may_call_off:
            self._may_call_off = False
            signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)  # wakes it even where it waits

    def _judge(self, done: int, failed: int) -> None:
        rows = self.attempt.plan.rows
        if failed > self.max_failed_share * rows:
            self.hopeless = f"{failed} of {done} images failed so far, more than --max-failed-share {self.max_failed_share:g} of {rows}"


def _call_off(*_: object) -> None:
    raise CalledOff
