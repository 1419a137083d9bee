"""One driver at a time on an OUT.

In: OUT. Out: OUT/lock.json, there while a driver is at work, refreshed so that others see that it lives.

The lock is how a second driver learns that it is one too many; it is not what keeps rows single. Should two pass it all the same (a store
that answers late, a machine that slept), then one finds within seconds that it has lost OUT, and `ledger` counts only the winner's files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cyclegan import storage
from cyclegan.errors import InputError, StoppedError

log = logging.getLogger(__name__)

REFRESH = 5.0
"""Seconds between signs of life."""

PATIENCE = 30.0
"""Seconds without one after which a driver on another machine counts as gone."""

_SETTLE = 0.5
"""Seconds after which two drivers that took OUT in the same moment both see who was last."""


@dataclass(frozen=True)
class Lease:
    """The right to write to `out`; `token` is the run's own."""

    out: str
    token: str

    def check(self) -> None:
        """Makes sure that the right still stands.

        Raises:
            StoppedError: another driver has taken over.
        """
        holder = _read(self.out)
        if holder is None or holder["token"] != self.token:
            taken = f"was taken over by {_name(holder)}" if holder else "has lost its lock.json"
            raise StoppedError(f"{self.out}: {taken}; this job has stopped, and nothing is lost")


@contextmanager
def hold(out: str) -> Iterator[Lease]:
    """Keeps all other drivers from `out` while the block runs.

    Raises:
        InputError: another driver is at work there, or it can't be written to.
    """
    lease = Lease(out, uuid.uuid4().hex[:12])
    try:
        _wait_for_the_last(out)
        beat = _take(lease)
    except OSError as error:
        raise InputError(f"--out {out}: {error}") from None
    over = threading.Event()
    thread = threading.Thread(target=_stay, args=(lease, beat, over), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError, StoppedError):
            lease.check()
            storage.remove(_path(out))


def _wait_for_the_last(out: str) -> None:
    """Returns once nobody is at work in `out`: there is no lock, or its owner is dead or has shown no sign of life for `PATIENCE`."""
    first = holder = _read(out)
    deadline = time.monotonic() + PATIENCE
    while holder is not None and time.monotonic() < deadline:
        if holder["host"] == socket.gethostname() and not _is_alive(holder["pid"]):
            return
        if holder != first:
            raise InputError(f"--out {out}: another job is at work there, {_name(holder)}; wait for it, stop it or give another folder")
        if time.monotonic() + PATIENCE - deadline < 1:
            log.info("%s was last held by %s; waiting up to %.0f s for a sign of life", out, _name(holder), PATIENCE)
        time.sleep(1)
        holder = _read(out)


def _take(lease: Lease) -> dict[str, Any]:
    beat = {"token": lease.token, "host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T%z"), "beat": 0}
    _write(lease.out, beat)
    time.sleep(_SETTLE)
    holder = _read(lease.out)
    if holder is None or holder["token"] != lease.token:
        raise InputError(f"--out {lease.out}: another job began there in the same moment; wait for it or give another folder")
    return beat


def _stay(lease: Lease, beat: dict[str, Any], over: threading.Event) -> None:
    while not over.wait(REFRESH):
        try:
            lease.check()
            beat = {**beat, "beat": beat["beat"] + 1}
            _write(lease.out, beat)
        except StoppedError:
            return  # whoever asks the lease will hear of it
        except OSError as error:
            log.warning("%s: %s", _path(lease.out), error)


def _path(out: str) -> str:
    return storage.join(out, "lock.json")


def _read(out: str) -> dict[str, Any] | None:
    try:
        holder: dict[str, Any] = json.loads(storage.read_text(_path(out)))
        return holder if {"token", "host", "pid", "beat"} <= holder.keys() else None
    except (FileNotFoundError, ValueError):
        return None


def _write(out: str, holder: dict[str, Any]) -> None:
    storage.write_text(_path(out), json.dumps(holder) + "\n")


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']} since {holder.get('since')}"


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # this very process has left it behind; threads of one process don't compete for an OUT
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
