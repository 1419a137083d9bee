"""What a translation's data files and shards say when they are read back.

In: a path. Out: its hash, and its rows without their pictures. Files may be large and several are read at once, so none is ever held whole.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import file_digest
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cyclegan import storage
from cyclegan.plan import STAGES

Ids = npt.NDArray[np.int64]

THREADS = 16
"""For reading files back; what they wait for is the storage."""

_FACTS = ["row_id", "status", "error_type", "note", "sha256", "image.path", "seconds"]


def describe(path: str) -> dict[str, Any]:
    """Name, bytes and sha256 of a file, as commits have them.

    Raises:
        OSError: it can't be read.
    """
    with storage.opened(path) as file:
        digest = file_digest(file, "sha256").hexdigest()
        return {"name": path.rpartition("/")[2], "bytes": file.tell(), "sha256": digest}


def read_rows(path: str, columns: list[str] = _FACTS) -> pa.Table:
    """Columns of a data file, of all its rows; `image.path` becomes a column `path` of its own.

    Raises:
        OSError: it can't be read.
        pa.ArrowInvalid: it is damaged or not finished.
        KeyError: it is not a data file.
    """
    with storage.opened(path) as file:
        table = pq.ParquetFile(file).read(columns=columns)
    if "image.path" in columns:
        table = table.append_column("path", pc.struct_field(table["image"], "path")).drop_columns(["image"])
    return table


def read_ids(path: str) -> Ids | None:
    """The ids of a data file; None where it is damaged."""
    try:
        ids: Ids = read_rows(path, ["row_id"])["row_id"].to_numpy()
    except (pa.ArrowInvalid, KeyError):
        return None
    return ids


def read_failed_ids(path: str) -> list[int]:
    """The ids of a data file whose photos failed."""
    rows = read_rows(path, ["row_id", "status"])
    ids: list[int] = rows.filter(pc.equal(rows["status"], "failed"))["row_id"].to_pylist()
    return ids


def read_shards(path: str) -> pa.Table:
    """Columns `row_id` and `shard`, which is null where the picture is elsewhere."""
    rows = read_rows(path, ["row_id", "image.path"])
    shards = [shard_of(place) for place in rows["path"].to_pylist()]
    return pa.table({"row_id": rows["row_id"], "shard": pa.array(shards, pa.string())})


def count_rows(path: str) -> tuple[int, int]:
    """Rows of a data file, and how many of them failed.

    Raises:
        OSError: it can't be read.
        pa.ArrowInvalid: it is not finished.
    """
    status = read_rows(path, ["status"])["status"]
    return len(status), pc.sum(pc.equal(status, "failed")).as_py() or 0


def shard_of(path: str | None) -> str | None:
    """The name of the shard that a row's `image.path` points into: `…/shards/segment=00000/NAME.tar#key.jpg`."""
    place, mark, _ = (path or "").rpartition(".tar#")
    return place.rpartition("/")[2] + ".tar" if mark else None


@dataclass
class Totals:
    """Of all the rows of a segment, file by file."""

    ids: list[Ids] = field(default_factory=lambda: [np.empty(0, np.int64)])
    statuses: Counter[str] = field(default_factory=Counter)
    error_types: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    samples: Counter[str] = field(default_factory=Counter)
    """Rows by the shard that holds their picture."""
    stage_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def add(self, rows: pa.Table) -> None:
        """Counts the rows of `read_rows`."""
        self.ids.append(rows["row_id"].to_numpy())
        self.statuses.update(rows["status"].to_pylist())
        self.error_types.update(rows["error_type"].drop_null().to_pylist())
        self.notes.update(rows["note"].drop_null().to_pylist())
        self.samples.update(shard for path in rows["path"].to_pylist() if (shard := shard_of(path)))
        for stage in STAGES:
            self.stage_seconds[stage] += pc.sum(pc.struct_field(rows["seconds"], stage)).as_py() or 0.0

    def record(self) -> dict[str, Any]:
        """As commits have them."""
        return {
            "ok": self.statuses["ok"],
            "failed": self.statuses["failed"],
            "error_types": dict(self.error_types.most_common()),
            "notes": dict(self.notes.most_common(20)),
            "stage_seconds": {stage: round(self.stage_seconds[stage], 3) for stage in STAGES},
        }
