"""Saying how a long job goes, while the job keeps the main thread.

In: what to say, and how often. Out: calls of it from a thread of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


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
