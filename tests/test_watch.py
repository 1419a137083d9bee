"""Who looks after a job calls it off when there is no point in going on, whatever Ctrl-C means to it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cyclegan.errors import StoppedError
from cyclegan.lease import Lease, hold
from cyclegan.ledger import begin, commit
from cyclegan.plan import ROW_SCHEMA, Plan, Segment, make_plan
from cyclegan.sources import Input
from cyclegan.watch import CalledOff, Watch

PATIENCE = 30
"""Seconds in which a watch has surely looked: it does so every three."""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Twelve inputs in segments of eight and four."""
    inputs = [Input(f"{tmp_path}/{n}.jpg", n, str(n)) for n in range(12)]
    return make_plan(str(tmp_path / "out"), {"size": "native"}, str(tmp_path), inputs, segment_rows=8, settings={})


@pytest.fixture
def lease(plan: Plan) -> Iterator[Lease]:
    with hold(plan.out) as lease:
        yield lease


def write_failed(plan: Plan, segment: Segment, ids: range) -> None:
    rows = [{"row_id": n, "status": "failed", "error_type": "empty"} for n in ids]
    path = Path(plan.data_path(segment)) / f"x_{ids.start:06d}-0.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), path)


@pytest.mark.parametrize("interrupt", [signal.default_int_handler, signal.SIG_IGN])
def test_a_hopeless_attempt_is_called_off(plan: Plan, lease: Lease, interrupt: signal.Handlers) -> None:
    """Also where a script runs it in the background, to which shells have SIGINT ignored."""
    attempt = begin(plan, plan.segments[0], lease.token)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        watch = Watch(0.25, attempt, lease)
        write_failed(plan, plan.segments[0], range(3))
        watch._look()
        calm = watch.hopeless  # three of twelve may
        write_failed(plan, plan.segments[0], range(3, 5))
        with watch, pytest.raises(CalledOff):
            time.sleep(PATIENCE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (calm, watch.hopeless) == (None, "5 of 5 images failed so far, more than --max-failed-share 0.25 of 12")
    assert watch.problem is None


def test_an_attempt_is_called_off_once_another_job_has_taken_over(plan: Plan, lease: Lease, tmp_path: Path) -> None:
    watch = Watch(1.0, begin(plan, plan.segments[0], lease.token), lease)
    (tmp_path / "out" / "lock.json").unlink()
    with watch, pytest.raises(CalledOff):
        time.sleep(PATIENCE)
    assert isinstance(watch.problem, StoppedError)


def test_no_segment_is_begun_when_those_before_are_reason_enough(plan: Plan, lease: Lease) -> None:
    first = begin(plan, plan.segments[0], lease.token)
    write_failed(plan, plan.segments[0], range(8))
    Path(first.checkpoint_path).mkdir(parents=True)
    (Path(first.checkpoint_path) / "x_000000.parquet").touch()
    commit(first, 1.0, {"generators": 1, "cpus": 2.0})
    second = begin(plan, plan.segments[1], lease.token)
    assert Watch(0.5, second, lease).hopeless == "8 of 8 images failed so far, more than --max-failed-share 0.5 of 12"
    assert Watch(0.7, second, lease).hopeless is None


def test_what_went_well_is_not_called_off(plan: Plan, lease: Lease) -> None:
    watch = Watch(0.0, begin(plan, plan.segments[0], lease.token), lease)
    usual = signal.getsignal(signal.SIGUSR1)
    with watch:
        pass
    write_failed(plan, plan.segments[0], range(8))
    watch._look()
    assert watch.hopeless
    assert signal.getsignal(signal.SIGUSR1) == usual
