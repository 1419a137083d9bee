"""Proof that a translation is whole, or what is wrong with it.

In: an OUT. Out: `Findings`, and their repair: files that don't belong there are deleted, segments in which something is missing or
damaged are opened again, so that the job translates exactly those rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cyclegan import ledger, storage
from cyclegan.ahead import made_ahead
from cyclegan.data_files import THREADS, describe, read_ids, read_rows
from cyclegan.errors import InputError
from cyclegan.plan import Plan, Segment, hash_manifest
from cyclegan.sinks import place_of

Hashes = npt.NDArray[np.uint64]

_COLUMNS = ["row_id", "source_uri", "status", "sha256"]


@dataclass(frozen=True)
class Problem:
    """Something that is not as it must be.

    Args:
        kind: of it.
        place: the file or folder.
        reason: in words.
        segment: whose rows are to be done again; None where deleting `place` is all there is to do.
        rows: which of them; where there are none, those that `place` holds.
    """

    kind: Literal["missing", "doubled", "corrupt", "foreign"]
    place: str
    reason: str
    segment: int | None = None
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}: {self.place}: {self.reason}"


@dataclass
class Findings:
    """What a look at all of OUT has shown."""

    planned: int
    ok: int = 0
    failed: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether planned = ok + failed, with nothing missing, doubled, damaged or foreign."""
        return not self.problems and self.planned == self.ok + self.failed


def verify(plan: Plan, show: Callable[[str], None] = lambda _: None) -> Findings:
    """Reads every file of OUT back and holds it against the plan.

    Args:
        plan: of OUT.
        show: told now and then how far that is.

    Raises:
        InputError: the manifest was changed; nothing can be held against it then.
        OSError: OUT can't be read.
    """
    if hash_manifest(plan) != plan.manifest_sha256:
        raise InputError(f"{plan.out}/manifest: is damaged or was changed, and it can't be told what belongs here; give a new folder")
    findings = Findings(plan.rows)
    committed = storage.names(storage.join(plan.out, "commits"))
    named = [np.empty(0, np.uint64)]
    for segment in plan.segments:
        if f"{segment.name}.json" not in committed:
            reason = f"segment {segment.number} is not committed; the job itself goes on with it"
            findings.problems.append(Problem("missing", plan.data_path(segment), reason, segment.number))
            continue
        check = _check_segment(plan, segment, findings.ok + findings.failed, show)
        findings.ok += check.statuses["ok"]
        findings.failed += check.statuses["failed"]
        findings.problems += check.problems
        named.append(check.pictures)
    # while rows are missing, so are the names of pictures that belong here; a picture that is missing is named by its row
    all_named = all(problem.segment is None or problem.rows for problem in findings.problems)
    findings.problems += _strangers(plan, committed, np.concatenate(named) if all_named else None)
    return findings


def repair(plan: Plan, findings: Findings, token: str) -> None:
    """Deletes what doesn't belong there and opens the segments in which something is wrong, for the job to go on with.

    Args:
        plan: of OUT.
        findings: of `verify`.
        token: of this run, as for `ledger.begin`.
    """
    wrong: dict[int, list[Problem]] = defaultdict(list)
    for problem in findings.problems:
        if problem.segment is None:
            storage.remove(problem.place)
        else:
            wrong[problem.segment].append(problem)
    for number, problems in wrong.items():
        segment = plan.segments[number]
        if storage.exists(plan.commit_path(segment)):
            rows = {row for problem in problems for row in problem.rows}
            lost = {problem.place.rpartition("/")[2] for problem in problems if not problem.rows}
            ledger.reopen(plan, segment, token, drop=rows, lost=lost)


@dataclass
class _Check:
    """Of one committed segment; `pictures` are hashes of the names of its image files."""

    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    pictures: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))


def _check_segment(plan: Plan, segment: Segment, before: int, show: Callable[[str], None]) -> _Check:
    check = _Check()
    try:
        record = ledger.read_commit(plan, segment)
    except ValueError as error:
        check.problems.append(Problem("corrupt", plan.commit_path(segment), str(error), segment.number))
        return check
    files, shards = record["files"], record["shards"]
    if record["fingerprint"] != plan.fingerprint:
        check.problems.append(Problem("corrupt", plan.commit_path(segment), "is of another plan", segment.number))
        return check
    folder, shard_folder = plan.data_path(segment), plan.shards_path(segment)
    ids, pictures = [np.empty(0, np.int64)], [check.pictures]
    for problem in made_ahead(lambda shard: _compare(shard_folder, shard, segment), shards, threads=THREADS):
        check.problems += [problem] if problem else []
    for file, problem in zip(files, made_ahead(lambda file: _compare(folder, file, segment), files, threads=THREADS), strict=True):
        if problem:
            check.problems.append(problem)
            continue
        table = read_rows(storage.join(folder, file["name"]), _COLUMNS)
        check.statuses.update(table["status"].to_pylist())
        show(f"{before + check.statuses.total()} of {plan.rows} rows read back")
        ids.append(table["row_id"].to_numpy())
        if plan.request["format"] != "images":
            continue
        rows = [{**row, "place": place_of(plan, row["source_uri"])} for row in table.to_pylist() if row["status"] == "ok"]
        pictures.append(np.array([_hash(row["place"]) for row in rows], np.uint64))
        damaged = made_ahead(lambda row: _check_picture(row, segment), rows, threads=THREADS)
        check.problems += [damage for damage in damaged if damage]
    here = np.concatenate(ids)
    check.pictures = np.concatenate(pictures)
    if missing := segment.rows - len(np.unique(here)):
        check.problems.append(Problem("missing", folder, f"{missing} of {segment.rows} rows are in no whole file", segment.number))
    for name in sorted(storage.names(folder) - {file["name"] for file in files}):
        check.problems.append(_stranger_in_data(storage.join(folder, name), here))
    for name in sorted(storage.names(shard_folder) - {shard["name"] for shard in shards}):
        check.problems.append(Problem("foreign", storage.join(shard_folder, name), "no commit names it"))
    return check


def _compare(folder: str, expected: dict[str, Any], segment: Segment) -> Problem | None:
    """What is wrong with a file that a commit names."""
    path = storage.join(folder, expected["name"])
    try:
        found = describe(path)
    except FileNotFoundError:
        return Problem("missing", path, "the file is gone", segment.number)
    if found["sha256"] != expected["sha256"]:
        reason = f"{found['bytes']} bytes that are not the {expected['bytes']} which were committed"
        return Problem("corrupt", path, reason, segment.number)
    return None


def _check_picture(row: dict[str, Any], segment: Segment) -> Problem | None:
    """What is wrong with an image file."""
    path, rows = row["place"], (row["row_id"],)
    try:
        found = describe(path)["sha256"]
    except FileNotFoundError:
        return Problem("missing", path, "the file is gone", segment.number, rows)
    if found != row["sha256"]:
        return Problem("corrupt", path, f"its sha256 is {found[:12]}…, its row says {row['sha256'][:12]}…", segment.number, rows)
    return None


def _stranger_in_data(path: str, ids: npt.NDArray[np.int64]) -> Problem:
    """A file that the commit doesn't name: rows that are there already, or none of ours."""
    try:
        found = read_ids(path)
    except OSError:  # a folder, even
        found = None
    if found is not None and (doubled := int(np.isin(found, ids).sum())):
        return Problem("doubled", path, f"{doubled} rows that are in other files already; no commit names it")
    return Problem("foreign", path, "no commit names it")


def _strangers(plan: Plan, committed: set[str], pictures: Hashes | None) -> Iterator[Problem]:
    """What lies in our folders and belongs to no segment; of images, what no row names, where all names are known."""
    names = {segment.name for segment in plan.segments}
    folders = {f"segment={name}" for name in names}
    is_open = {name for name in names if f"{name}.json" not in committed}
    known = {
        "data": folders,
        "shards": folders,
        "work": is_open,
        "manifest": {f"{name}.parquet" for name in names},
        "commits": {f"{name}.json" for name in names},
    }
    for folder, expected in known.items():
        for name in sorted(storage.names(storage.join(plan.out, folder)) - expected):
            reason = "belongs to a segment that is committed" if name in names else "belongs to no segment"
            yield Problem("foreign", storage.join(plan.out, folder, name), reason)
    if pictures is not None:
        ordered = np.sort(pictures)
        for path in storage.walk(plan.images_path):
            place = int(np.searchsorted(ordered, _hash(path)))
            if place == len(ordered) or ordered[place] != _hash(path):
                yield Problem("foreign", path, "no row names it")


def _hash(path: str) -> np.uint64:
    """Of a name; ten million take 80 MB, and hardly a chance in a hundred thousand that two are alike."""
    return np.uint64(int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "little"))
