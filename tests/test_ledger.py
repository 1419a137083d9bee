"""What counts of a segment: files that Ray finished, each row once, whatever else a killed run or its workers leave."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cyclegan import ledger
from cyclegan.ledger import Attempt, begin, commit, open_segments, read_commit, reopen
from cyclegan.plan import ROW_SCHEMA, Plan, Segment, make_plan
from cyclegan.sources import Input

WORKERS = {"generators": 1, "cpus": 2.0}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Nine inputs in segments of six and three."""
    inputs = [Input(f"{tmp_path}/{n}.jpg", n, str(n)) for n in range(9)]
    return make_plan(str(tmp_path / "out"), {"size": "native"}, str(tmp_path), inputs, segment_rows=6, settings={})


def write_rows(plan: Plan, segment: Segment, name: str, ids: list[int], shard: str | None = None) -> None:
    """A data file; row 0 failed; `shard` is where the pictures are."""
    rows = []
    for n in ids:
        image = {"bytes": None, "path": f"{plan.shards_path(segment)}/{shard}#{n}.jpg"} if shard else {"bytes": b"x", "path": f"{n}.jpg"}
        failed = {"status": "failed", "error_type": "empty"}
        rows.append({"row_id": n, **(failed if n == 0 else {"status": "ok", "image": image, "seconds": {"generate": 0.5}})})
    path = Path(plan.data_path(segment)) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), path)


def finish(attempt: Attempt, base: str, suffix: str = "") -> None:
    """What Ray's row checkpoint leaves of a write: finished, or `.pending`."""
    folder = Path(attempt.checkpoint_path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{base}{suffix}.parquet").touch()


def names(plan: Plan, segment: Segment) -> set[str]:
    return {path.name for path in Path(plan.data_path(segment)).iterdir()}


def todo(attempt: Attempt) -> list[int]:
    ids: list[int] = attempt.todo["row_id"].to_pylist()
    return ids


def test_a_run_takes_up_what_was_finished_and_no_more(plan: Plan) -> None:
    segment = plan.segments[0]
    first = begin(plan, segment, "first")
    assert (todo(first), first.rows, first.mean_size) == ([0, 1, 2, 3, 4, 5], 6, 2.5)
    write_rows(plan, segment, "x_000000-0.parquet", [1, 2])
    finish(first, "x_000000")
    write_rows(plan, segment, "x_000001-0.parquet", [3])  # written, but Ray did not get round to saying so
    finish(first, "x_000001", ".pending")
    (Path(plan.data_path(segment)) / "x_000002-0.parquet").write_bytes(b"PAR1 half a file")
    finish(first, "x_000002")  # what a disk can do
    second = begin(plan, segment, "second")
    assert (todo(second), second.kept) == ([0, 3, 4, 5], ("x_000000-0.parquet",))
    assert names(plan, segment) == {"x_000000-0.parquet"}
    assert not first.is_current()
    assert second.is_current()


def test_a_worker_that_outlives_its_run_doubles_nothing(plan: Plan) -> None:
    """It finishes its file, checkpoint and all, after another run has taken over."""
    segment = plan.segments[0]
    first = begin(plan, segment, "first")
    second = begin(plan, segment, "second")
    write_rows(plan, segment, "zombie_000000-0.parquet", [0, 1])
    finish(first, "zombie_000000")
    write_rows(plan, segment, "y_000000-0.parquet", [0, 1, 2, 3, 4, 5])
    finish(second, "y_000000")
    assert second.files() == {"y_000000-0.parquet"}
    record = commit(second, 2.0, WORKERS)
    assert [file["name"] for file in record["files"]] == ["y_000000-0.parquet"]
    assert names(plan, segment) == {"y_000000-0.parquet"}
    assert not Path(plan.work_path(segment)).exists()


def test_rows_of_three_runs_make_one_commit(plan: Plan) -> None:
    segment = plan.segments[0]
    for token, ids in (("a", [5, 0]), ("b", [3]), ("c", [1, 2, 4])):
        attempt = begin(plan, segment, token)
        write_rows(plan, segment, f"{token}_000000-0.parquet", ids)
        finish(attempt, f"{token}_000000")
    record = commit(attempt, 2.0, WORKERS)
    assert (record["rows"], record["ok"], record["failed"], record["translated"]) == (6, 5, 1, 3)
    assert record["error_types"] == {"empty": 1}
    assert record["stage_seconds"]["generate"] == 2.5
    assert [segment.number for segment in open_segments(plan)] == [1]
    assert ledger.commits(plan) == [record]


@pytest.mark.parametrize(
    ("ids", "reason"),
    [([0, 1, 2, 3, 4], "1 rows missing, 0 doubled"), ([0, 1, 2, 3, 4, 5, 5], "0 rows missing, 1 doubled"), ([], "6 rows")],
)
def test_what_is_not_whole_is_not_committed(plan: Plan, ids: list[int], reason: str) -> None:
    attempt = begin(plan, plan.segments[0], "a")
    write_rows(plan, attempt.segment, "x-0.parquet", ids)
    finish(attempt, "x")
    with pytest.raises(RuntimeError, match=reason):
        commit(attempt, 1.0, WORKERS)
    assert len(list(open_segments(plan))) == 2


def committed(plan: Plan, *files: list[int], shards: list[str | None] | None = None) -> Segment:
    attempt = begin(plan, plan.segments[0], "a")
    for number, ids in enumerate(files):
        shard = shards[number] if shards else None
        write_rows(plan, attempt.segment, f"x{number}-0.parquet", ids, shard)
        finish(attempt, f"x{number}")
        if shard:
            path = Path(plan.shards_path(attempt.segment)) / shard
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"tar")
    commit(attempt, 1.0, WORKERS)
    return attempt.segment


def test_failed_rows_alone_are_done_again(plan: Plan) -> None:
    segment = committed(plan, [0, 1, 2], [3, 4, 5])
    assert ledger.failed_ids(plan, segment) == [0]
    reopen(plan, segment, "b", drop=[0])
    attempt = begin(plan, segment, "c")
    assert todo(attempt) == [0]
    assert attempt.kept == ("b-x0-0.parquet", "x1-0.parquet")
    assert pq.read_table(Path(plan.data_path(segment)) / "b-x0-0.parquet").schema.equals(ROW_SCHEMA, check_metadata=True)


def test_killed_while_reopening_nothing_is_lost(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = committed(plan, [0, 1, 2], [3, 4, 5])
    with monkeypatch.context() as patch:
        patch.setattr("cyclegan.storage.remove", lambda path: 1 / 0)  # just before the commit is taken back
        with pytest.raises(ZeroDivisionError):
            reopen(plan, segment, "b", drop=[0])
    assert read_commit(plan, segment)["rows"] == 6
    reopen(plan, segment, "c", drop=[0])
    assert todo(begin(plan, segment, "d")) == [0]
    assert names(plan, segment) == {"c-x0-0.parquet", "x1-0.parquet"}


def test_a_shard_is_kept_whole_or_not_at_all(plan: Plan) -> None:
    """A shard holds samples of two files, of which one is lost: what stays of it would double the lost file's samples."""
    segment = committed(plan, [0, 1, 2], [3], [4, 5], shards=["s.tar", "s.tar", "t.tar"])
    record = read_commit(plan, segment)
    assert [(shard["name"], shard["rows"]) for shard in record["shards"]] == [("s.tar", 3), ("t.tar", 2)]
    reopen(plan, segment, "b", lost={"x1-0.parquet"})
    attempt = begin(plan, segment, "c")
    assert todo(attempt) == [1, 2, 3]
    assert attempt.kept == ("b-x0-0.parquet", "x2-0.parquet")  # the failed row never had a sample


def test_shards_of_no_row_go_with_the_commit(plan: Plan) -> None:
    segment = plan.segments[0]
    folder = Path(plan.shards_path(segment))
    folder.mkdir(parents=True)
    (folder / "left-behind.tar").touch()
    committed(plan, [0, 1, 2, 3, 4, 5], shards=["s.tar"])
    assert [path.name for path in folder.iterdir()] == ["s.tar"]


def test_a_damaged_commit_is_made_from_the_files(plan: Plan) -> None:
    segment = committed(plan, [0, 1, 2], [3, 4, 5])
    Path(plan.commit_path(segment)).write_text("{")
    reopen(plan, segment, "b")
    attempt = begin(plan, segment, "c")
    assert todo(attempt) == []
    assert commit(attempt, 1.0, WORKERS)["ok"] == 5
    assert json.loads(Path(plan.commit_path(segment)).read_text())["rows"] == 6
