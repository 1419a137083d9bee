"""Finds the images that are kept as bytes in a Parquet file, and reads one.

In: an open Parquet file, or its URI. The column of images is one that follows the Hugging Face `Image` convention (a struct with `bytes`
and `path`), else a binary one named `image`, `image_bytes`, `img`, `img_bytes`, `bytes`, `content`, `data` or like a format (`jpg`,
`jpeg`, `png`, `webp`). Out: a name for each row; the bytes of one.

A row group is read forward, a window of it in memory at a time: rows in order are read once, whatever the size of the group; rows at random
cost little where the group fits the window. What has to be in memory is a window and a page: Arrow writes pages of 1024 rows, so groups of
fewer rows are better for large images.
"""

from __future__ import annotations

import bisect
import itertools
import json
import posixpath
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cyclegan import storage
from cyclegan.errors import InputError
from cyclegan.files import InputChangedError, open_file

SUFFIX = ".parquet"

_IMAGE_NAMES = {"image", "image_bytes", "img", "img_bytes", "bytes", "content", "data", "jpg", "jpeg", "png", "webp"}
_PATH_NAMES = ("path", "file_name", "filename", "name", "key", "__key__")
_WINDOW_BYTES = 2**25
_WINDOW_ROWS = 1024
_OPEN_GROUPS = 2
_PIECEWISE: dict[str, Any] = {"pre_buffer": False, "buffer_size": 2**20}
"""Column chunks are read as they are needed, not whole."""


class ImageColumn(NamedTuple):
    """Where the images of a table are: the column, and the field of it or other column that names them, if any.

    `bytes` and `path` are written as Parquet names leaves: `image.bytes`.
    """

    bytes: str
    path: str | None


def open_table(uri: str, version: str = "") -> pq.ParquetFile:
    """A Parquet file open for reading piece by piece.

    Raises:
        InputError: it is damaged or no Parquet.
        OSError: it can't be read, or is not the one of this `version`.
    """
    file = open_file(uri, version)
    try:
        return pq.ParquetFile(file, **_PIECEWISE)
    except pa.ArrowInvalid as error:
        file.close()
        raise InputError(f"{uri}: not a whole Parquet file ({' '.join(str(error).split())}); copy or write it again") from None


def find_image_column(uri: str, schema: pa.Schema) -> ImageColumn | None:
    """The column of images, None where there is none.

    Raises:
        InputError: several could be meant.
    """
    structs = [field.name for field in schema if _is_image_struct(field, schema)]
    plain = [field.name for field in schema if _is_binary(field.type) and field.name.lower() in _IMAGE_NAMES]
    found = structs or plain
    if len(found) > 1:
        raise InputError(f"{uri}: which column holds the images: {', '.join(found)}? Write a file with one of them")
    if not found:
        return None
    if structs:
        fields = {field.name for field in schema.field(found[0]).type}
        return ImageColumn(f"{found[0]}.bytes", f"{found[0]}.path" if "path" in fields else None)
    paths = (name for name in _PATH_NAMES if name in schema.names and _is_string(schema.field(name).type))
    return ImageColumn(found[0], next(paths, None))


def list_rows(table: pq.ParquetFile, column: ImageColumn) -> Iterator[tuple[str, int]]:
    """Name and number of every row; the images are not read.

    Rows are named by their paths if these tell all rows of the file apart, a row without one by its number; else all by their numbers.
    """
    count = table.metadata.num_rows
    numbers = pa.array(range(count), pa.int64()).cast(pa.string())
    names = numbers
    if column.path is not None:
        paths = _leaf(table.read([column.path]), column.path).cast(pa.string())
        named = pc.if_else(pc.fill_null(pc.not_equal(paths, ""), False), paths, numbers)
        names = named if pc.count_distinct(named).as_py() == count else numbers
    return zip(itertools.chain.from_iterable(chunk.to_pylist() for chunk in _chunks(names)), range(count), strict=True)


def read_row(uri: str, row: int, version: str = "") -> bytes:
    """The image of one row; where it has a path and no bytes, the file there.

    Raises:
        InputChangedError: the table was replaced by another.
        OSError: it can't be read, or the row has neither.
    """
    try:
        with storage.reaching(uri):
            data, path = _find_row(uri, row, version)
    except (pa.ArrowException, InputError) as error:
        raise OSError(f"{uri}: row {row}: {' '.join(str(error).split())}") from None
    if data is not None:
        return data
    if path:
        return storage.read_bytes(path if "://" in path else posixpath.join(uri.rpartition("/")[0], path))
    raise OSError(f"{uri}: row {row} holds no image")


def _find_row(uri: str, row: int, version: str) -> tuple[bytes | None, str | None]:
    footer = _open_footer(uri, version)
    if not 0 <= row < footer.starts[-1]:
        raise InputChangedError(f"{uri}: was replaced after the plan was made (no row {row} any more)")
    group = bisect.bisect_right(footer.starts, row) - 1
    return _open_group(uri, version, group)[row - footer.starts[group]]


class _Footer(NamedTuple):
    metadata: Any
    column: ImageColumn
    starts: list[int]
    """The first row of each row group, and the number of rows."""


class _RowGroup:
    """The images of a row group, by their place in it."""

    def __init__(self, uri: str, version: str, number: int) -> None:
        self._uri, self._version, self._number = uri, version, number
        self._footer = _open_footer(uri, version)
        self._lock = threading.Lock()
        self._start = 0
        self._windows: Iterator[Any]
        self._window: Any
        self._rewind()

    def __getitem__(self, row: int) -> tuple[bytes | None, str | None]:
        with self._lock:
            if row < self._start:
                self._rewind()
            while row >= self._start + len(self._window):
                following = next(self._windows, None)
                if following is None:
                    raise OSError(f"{self._uri}: row group {self._number} is damaged")
                self._start += len(self._window)
                self._window = following
            column = self._footer.column
            chosen = self._window.slice(row - self._start, 1)
            path = _leaf(chosen, column.path)[0].as_py() if column.path and _is_in_struct(column) else None
            return _leaf(chosen, column.bytes)[0].as_py(), path

    def _rewind(self) -> None:
        column, rows = self._footer.column, self._window_rows()
        wanted = [column.bytes, column.path] if _is_in_struct(column) else [column.bytes]
        table = pq.ParquetFile(open_file(self._uri, self._version), metadata=self._footer.metadata, **_PIECEWISE)
        self._windows = table.iter_batches(rows, row_groups=[self._number], columns=wanted)
        self._start, self._window = 0, next(self._windows)
        if len(self._window) == self._footer.metadata.row_group(self._number).num_rows:
            self._windows = iter(())  # lets go of the file and of what was read of it

    def _window_rows(self) -> int:
        group = self._footer.metadata.row_group(self._number)
        leaves = (group.column(index) for index in range(group.num_columns))
        size: int = next(leaf.total_uncompressed_size for leaf in leaves if leaf.path_in_schema == self._footer.column.bytes)
        rows: int = group.num_rows
        return max(1, min(_WINDOW_ROWS, _WINDOW_BYTES * rows // max(1, size)))


@lru_cache(maxsize=8)
def _open_footer(uri: str, version: str) -> _Footer:
    with open_file(uri, version) as file:
        table = pq.ParquetFile(file)
        column = find_image_column(uri, table.schema_arrow)
        if column is None:
            raise InputChangedError(f"{uri}: was replaced after the plan was made (no column of images any more)")
        rows = (table.metadata.row_group(number).num_rows for number in range(table.num_row_groups))
        return _Footer(table.metadata, column, list(itertools.accumulate(rows, initial=0)))


_open_group = lru_cache(maxsize=_OPEN_GROUPS)(_RowGroup)


def _is_in_struct(column: ImageColumn) -> bool:
    """Whether the path is the image's own, which may stand in place of its bytes."""
    return column.path is not None and "." in column.path


def _leaf(table: Any, name: str) -> Any:
    """A column, or a field of one, of a table or batch."""
    column, _, field = name.partition(".")
    values = table.column(column)
    return pc.struct_field(values, field) if field else values


def _chunks(values: Any) -> Iterator[pa.Array]:
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    return (chunk.slice(start, 2**15) for chunk in chunks for start in range(0, len(chunk), 2**15))


def _is_image_struct(field: pa.Field, schema: pa.Schema) -> bool:
    if not pa.types.is_struct(field.type) or "bytes" not in [part.name for part in field.type]:
        return False
    # sound is kept in the same way; only the metadata tells which is which
    metadata = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(metadata)["info"]["features"] if metadata else {}
    return _is_binary(field.type.field("bytes").type) and features.get(field.name, {}).get("_type", "Image") == "Image"


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
