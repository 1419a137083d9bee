"""The plan of a translation: what was asked, every input once, and which parts are done.

In: what a job asks for, a source. Out: OUT/plan.json, OUT/manifest/, OUT/commits/, OUT/summary.json.

Inputs are listed once and cut into segments. A segment counts as done when it has been read back, found whole and committed; what a
killed run left of an uncommitted segment is thrown away and done again. The fingerprint ties all of it to one generator and one set
of settings.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cyclegan import storage
from cyclegan.errors import InputError
from cyclegan.sources import Input, base_of

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
    ]
)

ROW_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64()),
        pa.field("source_uri", pa.string()),
        pa.field("status", pa.string()),
        pa.field("error_type", pa.string()),
        pa.field("error", pa.string()),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("source_width", pa.int32()),
        pa.field("source_height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ],
    # by this the `datasets` library knows that the struct is a picture
    metadata={"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
)
"""The rows of OUT/data."""


@dataclass(frozen=True)
class Segment:
    """Inputs that are committed together: `rows` of them, their ids from `first_row_id` on."""

    number: int
    first_row_id: int
    rows: int

    @property
    def name(self) -> str:
        """As in `segment=00000` and `00000.json`."""
        return f"{self.number:05d}"


@dataclass(frozen=True)
class Plan:
    """What OUT is for. See `open_plan`."""

    out: str
    request: dict[str, Any]
    source: str
    base: str
    manifest_sha256: str
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """How many inputs there are."""
        return sum(segment.rows for segment in self.segments)

    @property
    def fingerprint(self) -> str:
        """One hash for all that decides the result: request and manifest."""
        return _sha256(json.dumps([self.request, self.manifest_sha256], sort_keys=True).encode())

    def manifest_path(self, segment: Segment) -> str:
        """The manifest of one segment."""
        return storage.join(self.out, "manifest", f"{segment.name}.parquet")

    def data_path(self, segment: Segment) -> str:
        """The folder of one segment's rows."""
        return storage.join(self.out, "data", f"segment={segment.name}")

    def commit_path(self, segment: Segment) -> str:
        """What says that a segment is done."""
        return storage.join(self.out, "commits", f"{segment.name}.json")

    def open_segments(self) -> Iterator[Segment]:
        """The segments that are not committed."""
        return (segment for segment in self.segments if not storage.exists(self.commit_path(segment)))

    def commits(self) -> list[dict[str, Any]]:
        """What was committed so far, in the order of the segments."""
        paths = [self.commit_path(segment) for segment in self.segments]
        return [json.loads(storage.read_text(path)) for path in paths if storage.exists(path)]


def find_plan(out: str, request: dict[str, Any], source: str) -> Plan | None:
    """The plan that `out` holds already, None where there is nothing yet.

    Args:
        out: OUT, absolute.
        request: what decides the result, plain JSON.
        source: where the inputs come from, absolute.

    Raises:
        InputError: OUT holds the plan of another request, or something that is not ours.
    """
    path = storage.join(out, "plan.json")
    if not storage.exists(path):
        filesystem, place = storage.open_filesystem(out)
        found = [name.rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(place, detail=False)] if filesystem.exists(place) else []
        if set(found) - {"manifest"}:  # a manifest alone is what a listing that was cut short leaves
            raise InputError(f"--out {out}: is not empty and holds no plan.json; give a new folder")
        return None
    try:
        saved = json.loads(storage.read_text(path))
        plan = Plan(
            out, saved["request"], saved["source"], saved["base"], saved["manifest_sha256"], tuple(Segment(**s) for s in saved["segments"])
        )
        fingerprint = saved["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a plan ({type(error).__name__}: {error}); give a new folder") from None
    before, now = {**plan.request, "source": plan.source}, {**request, "source": source}
    different = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in sorted(before | now) if before.get(key) != now.get(key)]
    if different:
        raise InputError(f"--out {out}: belongs to another job ({'; '.join(different)}); give these again or a new folder")
    if fingerprint != plan.fingerprint:
        raise InputError(f"{path}: was changed by hand: its fingerprint does not fit its content; give a new folder")
    return plan


def make_plan(out: str, request: dict[str, Any], source: str, inputs: Iterable[Input], segment_rows: int) -> Plan:
    """Writes the manifest of `inputs`, `segment_rows` to a segment, and then the plan.

    See `find_plan` for the other arguments.
    """
    segments: list[Segment] = []
    hashes: list[str] = []
    remaining = iter(inputs)
    while chunk := list(itertools.islice(remaining, segment_rows)):
        segment = Segment(len(segments), len(segments) * segment_rows, len(chunk))
        columns = {
            "row_id": np.arange(segment.first_row_id, segment.first_row_id + segment.rows),
            "uri": [item.uri for item in chunk],
            "size": [item.size for item in chunk],
            "version": [item.version for item in chunk],
        }
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), buffer)
        data = buffer.getvalue().to_pybytes()
        storage.write_bytes(storage.join(out, "manifest", f"{segment.name}.parquet"), data)
        segments.append(segment)
        hashes.append(_sha256(data))
    plan = Plan(out, request, source, base_of(source), _sha256("".join(hashes).encode()), tuple(segments))
    saved = {**asdict(plan), "fingerprint": plan.fingerprint}
    del saved["out"]  # OUT may be moved
    storage.write_text(storage.join(out, "plan.json"), json.dumps(saved, indent=2) + "\n")
    return plan


def commit(plan: Plan, segment: Segment, seconds: float) -> dict[str, Any]:
    """Reads a segment back and, if it is whole, says so in OUT/commits.

    Returns:
        The commit: files with rows and hashes, counts by status and by type of error, seconds.

    Raises:
        RuntimeError: rows are missing, doubled or foreign.
    """
    filesystem, folder = storage.open_filesystem(plan.data_path(segment))
    files, ids = [], []
    statuses: Counter[str] = Counter()
    error_types: Counter[str] = Counter()
    for path in sorted(filesystem.glob(f"{folder}/*.parquet")):
        data = filesystem.cat_file(path)
        table = pq.read_table(pa.BufferReader(data), columns=["row_id", "status", "error_type"])
        files.append({"name": path.rsplit("/", 1)[-1], "rows": len(table), "bytes": len(data), "sha256": _sha256(data)})
        ids.append(table["row_id"].combine_chunks())
        statuses.update(table["status"].to_pylist())
        error_types.update(table["error_type"].drop_null().to_pylist())
    _check_ids(plan, segment, pa.chunked_array(ids, pa.int64()))
    record = {
        "fingerprint": plan.fingerprint,
        "segment": segment.number,
        "rows": segment.rows,
        "ok": statuses["ok"],
        "failed": statuses["failed"],
        "error_types": dict(error_types.most_common()),
        "seconds": round(seconds, 3),
        "files": files,
    }
    storage.write_text(plan.commit_path(segment), json.dumps(record, indent=2) + "\n")
    return record


def summarise(plan: Plan) -> dict[str, Any]:
    """Totals over all commits; also written to OUT/summary.json."""
    commits = plan.commits()
    error_types: Counter[str] = Counter()
    for record in commits:
        error_types.update(record["error_types"])
    seconds = sum(record["seconds"] for record in commits)
    done = sum(record["rows"] for record in commits)
    summary = {
        "fingerprint": plan.fingerprint,
        "planned": plan.rows,
        "done": done,
        "ok": sum(record["ok"] for record in commits),
        "failed": sum(record["failed"] for record in commits),
        "error_types": dict(error_types.most_common()),
        "segments": len(plan.segments),
        "segments_committed": len(commits),
        "bytes": sum(file["bytes"] for record in commits for file in record["files"]),
        "seconds": round(seconds, 3),
        "images_per_second": round(done / seconds, 2) if seconds else None,
    }
    storage.write_text(storage.join(plan.out, "summary.json"), json.dumps(summary, indent=2) + "\n")
    return summary


def _check_ids(plan: Plan, segment: Segment, ids: pa.ChunkedArray) -> None:
    wanted = pa.array(np.arange(segment.first_row_id, segment.first_row_id + segment.rows))
    missing = segment.rows - pc.sum(pc.is_in(wanted, value_set=ids)).as_py()
    surplus = len(ids) - (segment.rows - missing)
    if missing or surplus:
        raise RuntimeError(
            f"{plan.data_path(segment)}: {missing} rows missing, {surplus} doubled or foreign; the same command does it again"
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
