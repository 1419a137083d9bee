"""Lists the inputs of a job and reads one, whatever kind of source it is.

In: a folder, a glob, a single file or a URI of one of these (`files`); a manifest (`manifests`); Parquet files that hold images
(`image_tables`); tars such as WebDataset shards (`archives`). In a folder Parquet files and tars are opened; CSV and JSONL only where the
source itself is called so, as labels may lie among photos. Out: one `Input` an image, in a fixed order; its bytes. A file that is no image
is listed too: what becomes of it is for the job to say.
"""

from __future__ import annotations

import mimetypes
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from cyclegan import archives, image_tables, manifests, storage
from cyclegan.errors import InputError
from cyclegan.files import File, InputChangedError, base_of, find, read_file

__all__ = ["Input", "InputChangedError", "base_of", "list_inputs", "read", "read_input", "relative_name"]

_ACCEPTED = (
    "give a folder, a glob or an image; a CSV, JSONL or Parquet manifest with a column uri; Parquet files with images; or .tar shards"
)
_MORE_SUFFIXES = (".7z", ".rar", ".mkv", ".npz", ".arrow", ".feather", ".tfrecord", ".lmdb", ".yaml", ".yml", ".xlsx", ".pth", ".pkl")
"""No images either, and unknown to `mimetypes`."""
_TARS_AHEAD = 16
_CONTAINER = re.compile(r"\.(?:tar|parquet)#", re.IGNORECASE)


class Input(NamedTuple):
    """One image: where it is, its size in bytes (None if unknown), and what changes when it is replaced ("" if unknown).

    In an archive or a table, `container` is the URI of that file, whose version it is then, and `offset` says where in it: the byte at
    which the image begins in a tar, its row in a Parquet file; `uri` is the container's, `#`, and the image's name in it.
    """

    uri: str
    size: int | None
    version: str
    container: str | None = None
    offset: int | None = None


def list_inputs(source: str) -> Iterator[Input]:
    """Every input of `source`, file by file sorted by path.

    Raises:
        InputError: there is no such place, it can't be listed, it is of a wrong kind, it holds no files, or one whose name is not UTF-8.
    """
    found = False
    try:
        with storage.reaching(source):
            for item in _in_order(find(source), source):
                found = True
                item.uri.encode()
                yield item
    except UnicodeEncodeError as error:
        raise InputError(f"{error.object!a}: the name is not valid UTF-8 and can't be kept in a table; rename it") from None
    except OSError as error:
        raise InputError(f"{source}: {error}") from None
    if not found:
        raise InputError(f"{source}: no files found; give a folder, a glob or a URI that holds images")


def read(uri: str) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it can't be read.
    """
    return storage.read_bytes(uri)


def read_input(item: Input) -> bytes:
    """The bytes of one input, whatever it is kept in.

    Raises:
        InputChangedError: it is not what was listed any more.
        OSError: it can't be read.
    """
    if item.container is None or item.offset is None:
        return read_file(item.uri, item.size, item.version)
    if item.container.lower().endswith(image_tables.SUFFIX):
        return image_tables.read_row(item.container, item.offset, item.version)
    return archives.read_member(item.container, item.offset, item.size or 0, item.version)


def relative_name(uri: str, base: str) -> str:
    """The path of an input below `base`, with `/` between folders: `2024/may/IMG_1.jpg`, `shards-000/IMG_1.jpg`.

    One that is not below it has its whole path: `bucket/photos/IMG_1.jpg`.
    """
    folder = base.rstrip("/") + "/"
    name = uri.removeprefix(folder) if uri.startswith(folder) else uri.rpartition("://")[2].lstrip("/")
    return _CONTAINER.sub("/", name, count=1)


def _in_order(files: Iterator[File], source: str) -> Iterator[Input]:
    """The inputs of all files; tars in a store are gone through by threads, some ahead, as it takes a request for every few headers."""
    pool = ThreadPoolExecutor(_TARS_AHEAD, thread_name_prefix="tars")
    waiting: deque[Callable[[], Iterable[Input]]] = deque()
    try:
        for file in files:
            if file.uri.lower().endswith(archives.SUFFIX) and not storage.is_local(file.uri):
                waiting.append(pool.submit(lambda tar: list(_inputs_of(tar, source)), file).result)
            else:
                waiting.append(partial(_inputs_of, file, source))
            if len(waiting) > _TARS_AHEAD:
                yield from waiting.popleft()()
        while waiting:
            yield from waiting.popleft()()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _inputs_of(file: File, source: str) -> Iterator[Input]:
    uri, size, version = file
    name = uri.lower()
    if name.endswith(image_tables.SUFFIX):
        yield from _rows_of_table(uri, version)
    elif name.endswith(archives.SUFFIX):
        for member in archives.list_members(uri, version):
            yield Input(f"{uri}#{member.name}", member.size, version, uri, member.offset)
    elif name.endswith(manifests.TEXT_SUFFIXES) and source.lower().endswith(manifests.TEXT_SUFFIXES):
        yield from map(Input._make, manifests.read_text(uri))
    else:
        _refuse_others(uri, source)
        yield Input(uri, size, version)


def _rows_of_table(uri: str, version: str) -> Iterator[Input]:
    with image_tables.open_table(uri, version) as table:
        names = table.schema_arrow.names
        column = image_tables.find_image_column(uri, table.schema_arrow)
        if column is not None:
            for name, row in image_tables.list_rows(table, column):
                yield Input(f"{uri}#{name}", None, version, uri, row)
        elif "uri" in names:
            yield from map(Input._make, manifests.read_parquet(uri, table))
        else:
            raise InputError(f"{uri}: has neither a column uri nor one of images, only {', '.join(names)}")


def _refuse_others(uri: str, source: str) -> None:
    archives.refuse_compressed(uri)
    name = uri.rpartition("/")[2]
    if source.endswith(name):  # among the files of a folder there may be others
        kind, compression = mimetypes.MimeTypes().guess_type(name)
        if compression or (kind and not kind.startswith("image/")) or name.lower().endswith(_MORE_SUFFIXES):
            raise InputError(f"{source}: is no kind of source; {_ACCEPTED}")
