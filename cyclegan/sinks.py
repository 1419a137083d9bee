"""Where translated pictures go, and how they are found again.

In: rows with the bytes of a picture. Out: the `image` column of these rows; for `images` one file each, for `webdataset` a tar shard.

Pictures are written before their rows are. A row that counts (`ledger`) so always has its picture; a picture without one is what a killed
run left: an image of that name will be written again, with the same content; a shard is deleted at the commit.
"""

from __future__ import annotations

import errno
import io
import json
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal

from cyclegan import storage
from cyclegan.encoding import SUFFIXES
from cyclegan.object_names import object_name
from cyclegan.plan import Plan

Format = Literal["parquet", "images", "webdataset"]
Row = dict[str, Any]

_THREADS = 16
"""For images as files; what they wait for is the storage."""

_UNNAMEABLE = {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
"""What a file system says of a name it can't have; everything else is no photo's fault."""


@dataclass(frozen=True)
class Sink:
    """Where the pictures of one attempt go.

    Args:
        kind: into the rows, into files, or into shards.
        base: what the names of files are relative to, in the source.
        suffix: of the files' names.
        folder: OUT/images, or the segment's folder of shards.
        token: of the attempt; no two name a shard alike.
    """

    kind: Format
    base: str
    suffix: str
    folder: str
    token: str

    def name(self, source_uri: str) -> str:
        """The path of a photo's translation below `folder`, which mirrors its path in the source."""
        return object_name(source_uri, self.base, self.suffix)

    def store(self, rows: Sequence[Row], pictures: Sequence[bytes | None]) -> list[Row]:
        """Puts pictures where they belong; `image` and `sha256` of their rows say where. Rows without a picture stay as they are.

        Raises:
            OSError: the place is full or gone.
        """
        pairs = [(row, data) for row, data in zip(rows, pictures, strict=True) if data is not None]
        for row, data in pairs:
            row["sha256"] = sha256(data).hexdigest()
        if self.kind == "parquet":
            for row, data in pairs:
                row["image"] = {"bytes": data, "path": self.name(row["source_uri"])}
        elif self.kind == "images":
            with ThreadPoolExecutor(_THREADS) as threads:
                list(threads.map(self._store_file, *zip(*pairs, strict=True))) if pairs else None
        elif pairs:
            self._store_shard(pairs)
        return list(rows)

    def _store_file(self, row: Row, data: bytes) -> None:
        path = storage.join(self.folder, self.name(row["source_uri"]))
        try:
            storage.write_bytes(path, data)
        except OSError as error:
            if error.errno not in _UNNAMEABLE:
                raise
            row |= {"status": "failed", "error_type": "not_writable", "error": str(error), "sha256": None}
        else:
            row["image"] = {"bytes": None, "path": path}

    def _store_shard(self, pairs: Sequence[tuple[Row, bytes]]) -> None:
        """One shard for these rows; a sample's key is the row's id, for a key ends at the first dot and names have dots."""
        path = storage.join(self.folder, f"{self.token}-{pairs[0][0]['row_id']:012d}.tar")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for row, data in pairs:
                key = f"{row['row_id']:012d}"
                facts = {name: row[name] for name in ("row_id", "source_uri", "source_width", "source_height", "width", "height", "note")}
                _add(tar, key + self.suffix, data)
                _add(tar, key + ".json", json.dumps(facts).encode())
                row["image"] = {"bytes": None, "path": f"{path}#{key}{self.suffix}"}
        storage.write_bytes(path, buffer.getvalue())


def place_of(plan: Plan, source_uri: str) -> str:
    """Where the picture of a photo is, if pictures are files; OUT may have been moved since its row was written."""
    return storage.join(plan.images_path, object_name(source_uri, plan.base, SUFFIXES[plan.request["encoding"]]))


def read_picture(plan: Plan, source_uri: str, image: Row) -> bytes:
    """The bytes of a translated picture, from the columns of its row.

    Raises:
        OSError: it can't be read.
    """
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    if plan.request["format"] == "images":
        return storage.read_bytes(place_of(plan, source_uri))
    *_, segment, member = image["path"].split("/")
    shard, _, name = member.partition("#")
    place = storage.join(plan.out, "shards", segment, shard)
    try:
        return _members(place)[name]
    except (KeyError, tarfile.TarError) as error:
        raise OSError(f"{place}: {type(error).__name__}: {error}") from None


@lru_cache(maxsize=1)
def _members(shard: str) -> dict[str, bytes]:
    """A whole shard: its pictures are asked for one after the other."""
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(shard))) as tar:
        return {member.name: file.read() for member in tar if (file := tar.extractfile(member))}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of the year 1970: the same rows make the same shard
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
