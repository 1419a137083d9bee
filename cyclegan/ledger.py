"""What of a plan is done: rows that count, commits, and the way back from both.

In: a plan, the files that Ray Data left. Out: OUT/work while a segment is open, OUT/commits once it was read back and found whole.

Ray's row checkpoint says of each data file of one run whether it was finished (its ids are renamed from `.pending` to a plain name). A
run that takes over counts these files once, writes down their names and what is left to do, and from then on only they and its own
count: whatever a worker of a killed run still writes is a stranger, and is thrown away at the commit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cyclegan import storage
from cyclegan.ahead import made_ahead
from cyclegan.data_files import THREADS, Ids, Totals, describe, read_failed_ids, read_ids, read_rows, read_shards
from cyclegan.plan import Plan, Segment, parquet_bytes

_PENDING = ".pending.parquet"


@dataclass(frozen=True)
class Claim:
    """Which run is at work on a segment, by its token; workers ask before they write."""

    plan: Plan
    segment: Segment
    token: str

    def is_current(self) -> bool:
        """Whether no other run has taken the segment up since."""
        return bool(read_attempt(self.plan, self.segment)["token"] == self.token)


@dataclass(frozen=True)
class Attempt(Claim):
    """One run's work on one segment: `kept` data files of earlier runs count, `todo` is the part of the manifest that is left."""

    kept: tuple[str, ...]
    todo: pa.Table

    @property
    def claim(self) -> Claim:
        """What workers need of it."""
        return Claim(self.plan, self.segment, self.token)

    @property
    def rows(self) -> int:
        """How many inputs this attempt is to translate."""
        return len(self.todo)

    @property
    def kept_rows(self) -> int:
        """How many were translated before."""
        return self.segment.rows - self.rows

    @property
    def mean_size(self) -> float | None:
        """Of what is left, in bytes; None where nothing says how large the inputs are."""
        mean: float | None = pc.mean(self.todo["size"]).as_py()
        return mean

    @property
    def checkpoint_path(self) -> str:
        """Ray's row checkpoint."""
        return storage.join(self.plan.work_path(self.segment), self.token, "written")

    def files(self) -> set[str]:
        """Names of the data files that count now."""
        written = _written(self.checkpoint_path)
        return {name for name in storage.names(self.plan.data_path(self.segment)) if name in self.kept or _base(name) in written}


def open_segments(plan: Plan) -> Iterator[Segment]:
    """The segments that are not committed."""
    committed = storage.names(storage.join(plan.out, "commits"))
    return (segment for segment in plan.segments if f"{segment.name}.json" not in committed)


def commits(plan: Plan) -> list[dict[str, Any]]:
    """What was committed so far, in the order of the segments."""
    committed = storage.names(storage.join(plan.out, "commits"))
    return [read_commit(plan, segment) for segment in plan.segments if f"{segment.name}.json" in committed]


def read_commit(plan: Plan, segment: Segment) -> dict[str, Any]:
    """The commit of one segment.

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    record: dict[str, Any] = json.loads(storage.read_text(plan.commit_path(segment)))
    if not isinstance(record, dict) or not {"fingerprint", "segment", "rows", "files", "shards"} <= record.keys():
        raise ValueError("holds no commit")
    return record


def read_attempt(plan: Plan, segment: Segment) -> dict[str, Any]:
    """Of an open segment: the `token` of the run that is, or was last, at work on it, and the files `kept` from before."""
    path = storage.join(plan.work_path(segment), "attempt.json")
    record: dict[str, Any] = json.loads(storage.read_text(path)) if storage.exists(path) else {"token": None, "kept": [], "renewed": []}
    return record


def begin(plan: Plan, segment: Segment, token: str) -> Attempt:
    """Takes a segment up: counts what earlier runs finished, deletes what they left unfinished, finds out what is left.

    Args:
        plan: of OUT.
        segment: one that is not committed.
        token: of the run; no two runs share one.
    """
    before = read_attempt(plan, segment)
    written = _written(storage.join(plan.work_path(segment), before["token"], "written")) if before["token"] else set()
    folder = plan.data_path(segment)
    found = storage.names(folder)
    candidates = sorted(name for name in found if name in before["kept"] or _base(name) in written)
    done = np.zeros(segment.rows, bool)
    kept = []
    for name, ids in zip(
        candidates, made_ahead(lambda name: read_ids(storage.join(folder, name)), candidates, threads=THREADS), strict=True
    ):
        if ids is not None and _fits(ids, segment) and not done[ids - segment.first_row_id].any():
            done[ids - segment.first_row_id] = True
            kept.append(name)
    manifest = pq.read_table(pa.BufferReader(storage.read_bytes(plan.manifest_path(segment))))
    todo = _as_they_are_now(manifest.filter(pa.array(~done)), before["renewed"])
    _write_attempt(plan, segment, token, kept, before["renewed"])
    # from here on nothing that an earlier run does counts
    _remove_all(folder, found - set(kept))
    _remove_all(plan.work_path(segment), storage.names(plan.work_path(segment)) - {token, "attempt.json"})
    return Attempt(plan, segment, token, tuple(kept), todo)


def commit(attempt: Attempt, seconds: float, workers: dict[str, float]) -> dict[str, Any]:
    """Reads a segment back and, if it is whole, says so in OUT/commits; then deletes what is not part of it.

    Args:
        attempt: at its end.
        seconds: that it took.
        workers: how many `generators` and `cpus` it had.

    Returns:
        The commit: files with rows and hashes, counts by status and by type of error, seconds.

    Raises:
        RuntimeError: rows are missing or doubled.
    """
    plan, segment = attempt.plan, attempt.segment
    folder, shards = plan.data_path(segment), plan.shards_path(segment)
    found, found_shards = storage.names(folder), storage.names(shards)
    names = sorted(attempt.files())
    paths = [storage.join(folder, name) for name in names]
    totals, files = Totals(), []
    for description, rows in made_ahead(lambda path: (describe(path), read_rows(path)), paths, threads=THREADS):
        files.append(description | {"rows": len(rows)})
        totals.add(rows)
    _check_ids(plan, segment, np.concatenate(totals.ids))
    samples = totals.samples
    record = {
        "fingerprint": plan.fingerprint,
        "segment": segment.number,
        "rows": segment.rows,
        **totals.record(),
        "seconds": round(seconds, 3),
        "translated": attempt.rows,
        "workers": workers,
        "files": files,
        "shards": list(
            made_ahead(lambda name: {"rows": samples[name], **describe(storage.join(shards, name))}, sorted(samples), threads=THREADS)
        ),
    }
    storage.write_text(plan.commit_path(segment), json.dumps(record, indent=2) + "\n")
    _remove_all(folder, found - set(names))
    _remove_all(shards, found_shards - set(samples))
    storage.remove(plan.work_path(segment))
    return record


def reopen(
    plan: Plan, segment: Segment, token: str, *, drop: Collection[int] = (), lost: Collection[str] = (), renew: bool = False
) -> None:
    """Undoes a commit: the rows `drop` and those of the data files and shards `lost` are to be done again, all others stay.

    With `renew` the inputs of the rows `drop` may have been replaced since they were listed: nothing has come of them so far.

    A shard whose rows don't all stay is given up whole, or its samples would be there twice. Killed in between, this leaves either the
    commit or an open segment in which every row counts once.
    """
    folder = plan.data_path(segment)
    try:
        record = read_commit(plan, segment)
    except ValueError:  # a damaged commit: `begin` finds out which files hold whole rows; shards it would take on trust
        shards = [{"name": name, "rows": 0} for name in storage.names(plan.shards_path(segment))]
        record = {"files": [{"name": name} for name in storage.names(folder)], "shards": shards}
    names = [file["name"] for file in record["files"] if file["name"] not in lost]
    present = {name: read_shards(storage.join(folder, name)) for name in names}
    dropped = pa.array(sorted(drop), pa.int64())
    stays = Counter[str]()
    for table in present.values():
        stays.update(table.filter(pc.invert(pc.is_in(table["row_id"], dropped)))["shard"].drop_null().to_pylist())
    broken = pa.array([s["name"] for s in record["shards"] if s["name"] in lost or stays[s["name"]] != s["rows"]], pa.string())
    kept = []
    for name, table in present.items():
        goes = pc.or_(pc.is_in(table["row_id"], dropped), pc.fill_null(pc.is_in(table["shard"], broken), False))
        if not pc.any(goes).as_py():
            kept.append(name)
        elif not pc.all(goes).as_py():
            whole = pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(folder, name))))
            rest = f"{token}-{name}"
            storage.write_bytes(storage.join(folder, rest), parquet_bytes(whole.filter(pc.invert(goes))))
            kept.append(rest)
    _write_attempt(plan, segment, None, kept, sorted(drop) if renew else [])
    storage.remove(plan.commit_path(segment))


def failed_ids(plan: Plan, segment: Segment) -> list[int]:
    """The ids of a committed segment whose photos failed."""
    ids: list[int] = []
    for file in read_commit(plan, segment)["files"]:
        ids += read_failed_ids(storage.join(plan.data_path(segment), file["name"]))
    return ids


def _check_ids(plan: Plan, segment: Segment, ids: Ids) -> None:
    here = ids[(ids >= segment.first_row_id) & (ids < segment.first_row_id + segment.rows)]
    missing = segment.rows - len(np.unique(here))
    surplus = len(ids) - (segment.rows - missing)
    if missing or surplus:
        raise RuntimeError(
            f"{plan.data_path(segment)}: {missing} rows missing, {surplus} doubled or foreign; the same command does it again"
        )


def _fits(ids: Ids, segment: Segment) -> bool:
    inside = bool(((ids >= segment.first_row_id) & (ids < segment.first_row_id + segment.rows)).all())
    return inside and len(np.unique(ids)) == len(ids)


def _base(name: str) -> str:
    """What Ray calls the write of a data file: `BASE-0.parquet` -> `BASE`."""
    return name.removesuffix(".parquet").rpartition("-")[0]


def _written(checkpoint: str) -> set[str]:
    """The writes that Ray finished: ids under a plain name, no longer a pending one."""
    return {name.removesuffix(".parquet") for name in storage.names(checkpoint) if not name.endswith(_PENDING)}


def _write_attempt(plan: Plan, segment: Segment, token: str | None, kept: list[str], renewed: list[int]) -> None:
    path = storage.join(plan.work_path(segment), "attempt.json")
    storage.write_text(path, json.dumps({"token": token, "kept": kept, "renewed": renewed}) + "\n")


def _as_they_are_now(manifest: pa.Table, renewed: list[int]) -> pa.Table:
    """Forgets of some inputs how large and of which version they were; of a part of an archive only the latter, for it is found by both."""
    chosen = pc.is_in(manifest["row_id"], pa.array(renewed, pa.int64()))
    sizes = pc.if_else(pc.and_(chosen, pc.is_null(manifest["container"])), pa.scalar(None, pa.int64()), manifest["size"])
    versions = pc.if_else(chosen, "", manifest["version"])
    columns = {**{name: manifest[name] for name in manifest.column_names}, "size": sizes, "version": versions}
    return pa.table(columns, schema=manifest.schema)


def _remove_all(folder: str, names: Iterable[str]) -> None:
    for name in sorted(names):
        storage.remove(storage.join(folder, name))
