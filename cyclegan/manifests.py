"""Reads the rows of a manifest: a table that names images.

In: CSV or JSONL, also gzipped, or Parquet, with a column `uri` and, if known, `size` (bytes), `version` or `etag`; `container` and `offset`
as in the manifest of a plan. A `uri` without a scheme or leading `/` is relative to the manifest's folder. Out: rows, a batch in memory at
a time.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cyclegan import storage
from cyclegan.errors import InputError
from cyclegan.files import open_file

TEXT_SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")

Row = tuple[str, int | None, str, str | None, int | None]
"""uri, size, version, container, offset"""

_TYPES = {
    **{name: pa.string() for name in ("uri", "version", "etag", "container")},
    **{name: pa.float64() for name in ("size", "offset")},  # what pandas makes of whole numbers, some of them unknown
}
_BATCH_ROWS = 2**15
_READ_AHEAD = 2**23
_AS_IT_IS = "^(/|[A-Za-eg-z][A-Za-z0-9+.-]*://)"
"""Most uris: absolute, and not `file://`."""


def read_text(uri: str) -> Iterator[Row]:
    """The rows of a CSV or JSONL manifest.

    Raises:
        InputError: it can't be parsed, has no column `uri`, or a row has none.
        OSError: it can't be read.
    """
    with _open_text(uri) as stream:
        is_csv = uri.lower().removesuffix(".gz").endswith(".csv")
        yield from _rows(uri, _csv_batches(uri, stream) if is_csv else _json_batches(uri, stream))


def read_parquet(uri: str, table: pq.ParquetFile) -> Iterator[Row]:
    """The rows of a Parquet manifest, open already, that has a column `uri`.

    Raises:
        InputError: it is damaged, or a row has no `uri`.
        OSError: it can't be read.
    """
    columns = [name for name in table.schema_arrow.names if name in _TYPES]
    yield from _rows(uri, table.iter_batches(_BATCH_ROWS, columns=columns))


@contextlib.contextmanager
def _open_text(uri: str) -> Iterator[pa.NativeFile]:
    compression = "gzip" if uri.lower().endswith(".gz") else None
    with open_file(uri, read_ahead=_READ_AHEAD) as file, pa.input_stream(file, compression=compression) as stream:
        yield stream


def _csv_batches(uri: str, stream: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    with _open_text(uri) as beginning:
        names = next(csv.reader(io.TextIOWrapper(beginning, encoding="utf-8-sig")), [])
    if "uri" not in names:
        raise InputError(f"{uri}: has no column uri, only {', '.join(names) or 'nothing'}; its first line must name the columns")
    # columns that are not wanted are not parsed, so nothing in them can be wrong
    options = pyarrow.csv.ConvertOptions(
        column_types=_TYPES, include_columns=[name for name in names if name in _TYPES], null_values=[""], strings_can_be_null=True
    )
    yield from pyarrow.csv.open_csv(stream, convert_options=options)


def _json_batches(uri: str, stream: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    schema = pa.schema(_TYPES)
    lines = (line for line in io.TextIOWrapper(stream, encoding="utf-8-sig") if line.strip())
    while chunk := list(itertools.islice(lines, _BATCH_ROWS)):
        rows = [json.loads(line) for line in chunk]
        if not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{uri}: not every line is a JSON object")
        yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _rows(manifest: str, batches: Iterator[pa.RecordBatch]) -> Iterator[Row]:
    folder = manifest.rpartition("/")[0]
    count = 0
    try:
        for batch in batches:
            yield from _batch_rows(manifest, folder, batch, count)
            count += len(batch)
    except InputError:
        raise
    except (ValueError, pa.ArrowException, csv.Error) as error:
        raise InputError(f"{manifest}: can't be read as a manifest: {' '.join(str(error).split())}") from None


def _batch_rows(manifest: str, folder: str, batch: pa.RecordBatch, count: int) -> Iterator[Row]:
    columns = {name: batch.column(name).cast(_TYPES[name]) for name in batch.schema.names}
    uris = columns["uri"]
    if (first := pc.index(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(uris), ""), True), True).as_py()) >= 0:
        raise InputError(f"{manifest}: row {count + first + 1} (the first is row 1) has no uri; fill it in or leave the row out")
    nothing = pa.nulls(len(batch), pa.string())
    names: list[str] = uris.to_pylist()
    if not pc.all(pc.match_substring_regex(uris, _AS_IT_IS)).as_py():
        names = [_resolve(name, folder) for name in names]
    return zip(
        names,
        _whole_numbers(columns.get("size"), len(batch)),
        pc.coalesce(columns.get("version", nothing), columns.get("etag", nothing), "").to_pylist(),
        columns.get("container", nothing).to_pylist(),
        _whole_numbers(columns.get("offset"), len(batch)),
        strict=True,
    )


def _whole_numbers(column: pa.Array | None, length: int) -> Iterable[int | None]:
    if column is None:
        return itertools.repeat(None, length)
    known = pc.if_else(pc.is_finite(column), column, None)  # pandas may have written NaN for what is unknown
    values: list[int | None] = known.cast(pa.int64()).to_pylist()
    return values


def _resolve(uri: str, folder: str) -> str:
    if uri.startswith("file://"):
        return storage.absolute(uri)
    if uri.startswith("/") or "://" in uri:
        return uri
    scheme, mark, path = folder.rpartition("://")
    joined = f"{path}/{uri}"
    # only where needed: in a store a//b is another object than a/b
    return scheme + mark + (posixpath.normpath(joined) if "./" in uri else joined)
