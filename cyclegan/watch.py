"""Looks after an attempt at a segment while Ray Data is at work on it.

In: the attempt, and what is on disk of it. Out: a line that says how it goes; an end to it when there is no point in going on.
"""

from __future__ import annotations

import _thread
import time
from collections import deque
from contextlib import suppress

import pyarrow as pa

from cyclegan import ledger, storage
from cyclegan.errors import StoppedError
from cyclegan.lease import Lease
from cyclegan.ledger import Attempt
from cyclegan.progress import Line, duration

LOOK_EVERY = 3
"""Calls for a look at the storage, which may be slow to list."""


class Watch:
    """Looks after an attempt from a thread of its own: shows how it goes, and interrupts it when there is no point in going on.

    Args:
        max_failed_share: of all photos of the plan.
        attempt: under way.
        lease: that it needs.
    """

    def __init__(self, max_failed_share: float, attempt: Attempt, lease: Lease) -> None:
        self.max_failed_share, self.attempt, self.lease = max_failed_share, attempt, lease
        self.problem: StoppedError | None = None
        self.hopeless: str | None = None
        self.line = Line()
        self.started = time.monotonic()
        committed = ledger.commits(attempt.plan)
        self.done_before = sum(record["rows"] for record in committed)
        self.failed_before = sum(record["failed"] for record in committed)
        self._files: dict[str, tuple[int, int]] = {}
        self._looks: deque[tuple[float, int]] = deque([(self.started, 0)], maxlen=20)
        self._calls = 0
        self._interrupted = False

    def __call__(self) -> None:
        """Counts what is on disk, from the files themselves, every few calls."""
        self._calls += 1
        if self._calls % LOOK_EVERY == 0:
            self._look()

    def _look(self) -> None:
        plan, folder = self.attempt.plan, self.attempt.plan.data_path(self.attempt.segment)
        for name in storage.names(folder) - self._files.keys():
            with suppress(pa.ArrowInvalid):  # a file that is not finished
                self._files[name] = ledger.count_rows(storage.join(folder, name))
        here = sum(rows for rows, _ in self._files.values())
        done = self.done_before + here
        failed = self.failed_before + sum(failed for _, failed in self._files.values())
        self._looks.append((time.monotonic(), here - self.attempt.kept_rows))
        (since, before), (now, new) = self._looks[0], self._looks[-1]
        if new > before:
            rate = (new - before) / (now - since)
            left = duration((plan.rows - done) / rate)
            self.line.show(f"{done} of {plan.rows} images  {rate:.1f} images/s  {failed} failed  {left} left")
        if failed > self.max_failed_share * plan.rows:
            self.hopeless = (
                f"{failed} of {done} images failed so far, more than --max-failed-share {self.max_failed_share:g} of {plan.rows}"
            )
        try:
            self.lease.check()
        except StoppedError as problem:
            self.problem = problem
        if (self.problem or self.hopeless) and done < plan.rows and not self._interrupted:
            self._interrupted = True
            _thread.interrupt_main()
