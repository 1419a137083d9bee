"""The plan of a translation: what was asked, and every input once.

In: what a job asks for, a source. Out: OUT/plan.json, OUT/manifest/.

Inputs are listed once and cut into segments, each of which is translated and committed by itself (`ledger`). The fingerprint ties all of
it to one generator and one set of settings.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cyclegan import storage
from cyclegan.errors import InputError
from cyclegan.sources import Input, base_of

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("version", pa.string(), nullable=False),
        pa.field("container", pa.string()),
        pa.field("offset", pa.int64()),
    ]
)
"""OUT/manifest: an id, and an `Input` of `sources`."""

STAGES = ("read", "decode", "generate", "encode")
"""What is done to a photo, one after the other."""

ROW_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64()),
        pa.field("source_uri", pa.string()),
        pa.field("status", pa.string()),
        pa.field("error_type", pa.string()),
        pa.field("error", pa.string()),
        pa.field("note", pa.string()),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("sha256", pa.string()),
        pa.field("source_width", pa.int32()),
        pa.field("source_height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("seconds", pa.struct([(stage, pa.float32()) for stage in STAGES])),
    ],
    # by this the `datasets` library knows that the struct is a picture
    metadata={"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
)
"""The rows of OUT/data. `sha256` is that of the image file; `seconds` is what each stage took for this photo."""


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
    settings: dict[str, Any]
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

    @property
    def images_path(self) -> str:
        """The folder of pictures that are files of their own."""
        return storage.join(self.out, "images")

    def shards_path(self, segment: Segment) -> str:
        """The folder of one segment's WebDataset shards."""
        return storage.join(self.out, "shards", f"segment={segment.name}")

    def commit_path(self, segment: Segment) -> str:
        """What says that a segment is done."""
        return storage.join(self.out, "commits", f"{segment.name}.json")

    def work_path(self, segment: Segment) -> str:
        """What is needed to go on with a segment, until it is committed."""
        return storage.join(self.out, "work", segment.name)  # no "=": Ray would add a column


def open_plan(out: str) -> Plan | None:
    """The plan that `out` holds, None where there is no plan.json.

    Raises:
        InputError: it can't be read, or was changed.
    """
    path = storage.join(out, "plan.json")
    if not storage.exists(path):
        return None
    try:
        saved = json.loads(storage.read_text(path))
        fingerprint = saved.pop("fingerprint")
        plan = Plan(out=out, **{**saved, "segments": tuple(Segment(**segment) for segment in saved["segments"])})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a plan ({type(error).__name__}: {error}); give a new folder") from None
    if fingerprint != plan.fingerprint:
        raise InputError(f"{path}: was changed by hand: its fingerprint does not fit its content; give a new folder")
    return plan


def find_plan(out: str, request: dict[str, Any], source: str) -> Plan | None:
    """The plan that `out` holds already, None where there is nothing yet.

    Args:
        out: OUT, absolute.
        request: what decides the result, plain JSON.
        source: where the inputs come from, absolute.

    Raises:
        InputError: OUT holds the plan of another request, or something that is not ours, or can't be reached.
    """
    try:
        plan = open_plan(out)
        found = storage.names(out) if plan is None else set()
    except OSError as error:
        raise InputError(f"--out {out}: {error}") from None
    if plan is None:
        if found - {"manifest", "lock.json"}:  # what a listing that was cut short leaves
            raise InputError(f"--out {out}: is not empty and holds no plan.json; give a new folder")
        return None
    before, now = {**plan.request, "source": plan.source}, {**request, "source": source}
    different = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in sorted(before | now) if before.get(key) != now.get(key)]
    if different:
        raise InputError(f"--out {out}: belongs to another job ({'; '.join(different)}); give these again or a new folder")
    return plan


def make_plan(
    out: str, request: dict[str, Any], source: str, inputs: Iterable[Input], *, segment_rows: int, settings: dict[str, Any]
) -> Plan:
    """Writes the manifest of `inputs`, `segment_rows` to a segment, and then the plan.

    `settings` are all that the job was given, so that a repair can be made without giving them again. See `find_plan` for the other
    arguments.
    """
    segments: list[Segment] = []
    hashes: list[str] = []
    remaining = iter(inputs)
    while chunk := list(itertools.islice(remaining, segment_rows)):
        segment = Segment(len(segments), len(segments) * segment_rows, len(chunk))
        data = parquet_bytes(manifest_table(chunk, segment.first_row_id))
        storage.write_bytes(storage.join(out, "manifest", f"{segment.name}.parquet"), data)
        segments.append(segment)
        hashes.append(_sha256(data))
    plan = Plan(out, request, settings, source, base_of(source), _sha256("".join(hashes).encode()), tuple(segments))
    saved = {**asdict(plan), "fingerprint": plan.fingerprint}
    del saved["out"]  # OUT may be moved
    storage.write_text(storage.join(out, "plan.json"), json.dumps(saved, indent=2) + "\n")
    return plan


def manifest_table(inputs: Sequence[Input], first_row_id: int) -> pa.Table:
    """Inputs as rows of a manifest."""
    columns: dict[str, Any] = {name: [getattr(item, name) for item in inputs] for name in MANIFEST_SCHEMA.names[1:]}
    columns["row_id"] = np.arange(first_row_id, first_row_id + len(inputs))
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def hash_manifest(plan: Plan) -> str:
    """What `manifest_sha256` of the plan is while its manifest is untouched.

    Raises:
        OSError: a part of it can't be read.
    """
    return _sha256("".join(_sha256(storage.read_bytes(plan.manifest_path(segment))) for segment in plan.segments).encode())


def parquet_bytes(table: pa.Table) -> bytes:
    """A whole Parquet file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    data: bytes = buffer.getvalue().to_pybytes()
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
