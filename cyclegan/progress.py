"""Saying how a long job goes, while the job keeps the main thread.

In: what to say, and how often. Out: calls of it from a thread of its own; a line on the terminal, or one now and then in a log.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

SAY_EVERY = 30.0
"""Seconds between lines of a log."""


@contextmanager
def every(seconds: float, say: Callable[[], None]) -> Iterator[None]:
    """Calls `say` every so many seconds while the block runs, and once more at its end."""
    ended = threading.Event()

    def repeat() -> None:
        over = False
        while not over:
            over = ended.wait(seconds)
            try:
                say()
            except OSError as error:  # a storage that does not answer for a moment must not silence the rest of the job
                log.warning("no progress to show: %s", error)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Line:
    """One line that is always the newest: rewritten in place on a terminal, else said every half minute.

    As a context manager, what was shown last stands at its end, and what comes next begins on a line of its own.
    """

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._last = time.monotonic()
        self._shown = False

    def show(self, text: str) -> None:
        """Shows `text` in place of what was shown before."""
        if self._on_terminal:
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()
            self._shown = True
        elif time.monotonic() - self._last >= SAY_EVERY:
            self._last = time.monotonic()
            log.info("%s", text)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\n")
