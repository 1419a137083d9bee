"""The first stage of a translation: rows of the manifest become pixels, or rows that say why not.

In: rows of the manifest. Out: rows of `LOADED_SCHEMA`, whose pixels travel as the bytes of uint8 or uint16 arrays in plain Arrow columns,
so photos of different sizes share a table and nothing is pickled. Knows no torch: with it each of the many processes that load photos for
GPUs would be more than twice as large.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from cyclegan import images
from cyclegan.ahead import made_ahead
from cyclegan.geometry import SizePolicy
from cyclegan.images import ImageError, PixelFormat, Pixels, read_photo
from cyclegan.plan import ROW_SCHEMA
from cyclegan.sources import Input, InputChangedError, read_input

LOADED_SCHEMA = pa.schema(
    [ROW_SCHEMA.field(name) for name in ("row_id", "source_uri", "status", "error_type", "error", "note")]
    + [pa.field(name, pa.large_binary()) for name in ("pixels", "alpha", "exif")]
    + [ROW_SCHEMA.field(name) for name in ("source_width", "source_height", "width", "height", "seconds")]
)
"""Rows between the stages: `pixels` holds (height, width, channels), first as the generator takes them, then as it gives them; `alpha`
(height, width) of the type that the generator gives."""

READERS = 8
"""Threads of a worker that read ahead; what they wait for is the storage."""

CHUNK_BYTES = 64 << 20
"""Pixels that a worker loads before it hands them on."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Loading:
    """What photos become before the generator: its pixels at the size of `policy`; alpha and EXIF aside where they are kept."""

    wanted: PixelFormat
    policy: SizePolicy
    keep_alpha: bool
    keep_exif: bool


def load(table: pa.Table, loading: Loading, *, threads: int, apart: Callable[[], bool]) -> Iterator[pa.Table]:
    """Manifest rows to `LOADED_SCHEMA`, in tables of at most `CHUNK_BYTES` of pixels or of one photo.

    Args:
        table: rows of the manifest.
        loading: what to make of them.
        threads: that decode at the same time.
        apart: whether to decode in another process, so that a photo that kills its process becomes a row as well.
    """
    rows: list[Row] = []
    size = 0
    alone = apart()
    decode = _DecodingApart(loading) if alone else partial(_decode, loading=loading)
    found = made_ahead(_read, table.to_pylist(), threads=READERS)
    for row in made_ahead(decode, found, threads=1 if alone else threads):
        pixels = len(row.get("pixels") or b"")
        if rows and size + pixels > CHUNK_BYTES:
            yield pa.Table.from_pylist(rows, schema=LOADED_SCHEMA)
            rows, size = [], 0
        rows.append(row)
        size += pixels
    yield pa.Table.from_pylist(rows, schema=LOADED_SCHEMA)


def unpack(packed: Any, height: int, width: int, pixels: PixelFormat) -> Pixels:
    """Pixels from the bytes of their array, in whatever buffer those are."""
    return np.frombuffer(packed, pixels.dtype).reshape(height, width, pixels.channels)


def failed(row: Row, error_type: str, error: BaseException) -> Row:
    """The row of a photo that can't be translated."""
    return row | {"status": "failed", "error_type": error_type, "error": str(error) or type(error).__name__}


def _read(listed: Row) -> tuple[Row, bytes | None]:
    row: Row = {"row_id": listed.pop("row_id"), "source_uri": listed["uri"], "status": "ok", "seconds": {}}
    started = time.perf_counter()
    try:
        data = read_input(Input(**listed))
    except InputChangedError as error:
        return failed(row, "input_changed", error), None
    except OSError as error:
        return failed(row, "unreadable", error), None
    row["seconds"]["read"] = time.perf_counter() - started
    return row, data


def _decode(found: tuple[Row, bytes | None], loading: Loading) -> Row:
    row, data = found
    if data is None:
        return row
    started = time.perf_counter()
    policy = loading.policy
    try:
        photo = read_photo(
            data, loading.wanted, keep_alpha=loading.keep_alpha, keep_exif=loading.keep_exif, shorter_side=policy.shorter_side
        )
        height, width = policy.target(photo.height, photo.width)
        pixels = images.resize(photo.pixels, height, width)
        alpha = None if photo.alpha is None else images.resize(photo.alpha, height, width)
    except ImageError as error:
        return failed(row, error.error_type, error)
    except MemoryError as error:
        return failed(row, "too_large", error)
    row |= {"source_height": photo.height, "source_width": photo.width, "height": height, "width": width}
    row |= {"pixels": pixels.tobytes(), "alpha": None if alpha is None else alpha.tobytes(), "exif": photo.exif, "note": photo.note}
    row["seconds"]["decode"] = time.perf_counter() - started
    return row


class _DecodingApart:
    """`_decode` in a process of its own, which is started anew when a photo kills it."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.process = self._start()

    def __call__(self, found: tuple[Row, bytes | None]) -> Row:
        try:
            return self.process.submit(_decode, found, self.loading).result()
        except BrokenProcessPool:
            self.process = self._start()
            return found[0] | {"status": "failed", "error_type": "kills_its_process", "error": "decoding it ends the process that tries"}

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
