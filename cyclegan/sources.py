"""Lists the inputs of a job and reads one.

In: a folder (searched recursively, hidden names left out), a glob, a single file, or a URI of one of these. Out: one `Input` a file,
in a fixed order; the bytes of a file. A file that is no image is listed too: what becomes of it is for the job to say.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cyclegan import storage
from cyclegan.errors import InputError


@dataclass(frozen=True, slots=True)
class Input:
    """One file: where it is, its size in bytes, and what changes when it is replaced (an etag, else the time of change)."""

    uri: str
    size: int
    version: str


def list_inputs(source: str) -> Iterator[Input]:
    """Every file of `source`, sorted by path.

    Raises:
        InputError: there is no such place, it can't be listed, it holds no files, or one whose name is not UTF-8.
    """
    found = False
    try:
        with storage.reaching(source):
            for item in _list(source):
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
    """The bytes of one input.

    Raises:
        OSError: it can't be read.
    """
    return storage.read_bytes(uri)


def base_of(source: str) -> str:
    """The folder that the names of a source are relative to: the folder itself, a file's, or a glob's before the first wildcard."""
    filesystem, path = storage.open_filesystem(source)
    if _is_glob(path) and not filesystem.exists(path):
        path = "/".join(itertools.takewhile(lambda part: not _is_glob(part), path.split("/")))
    elif filesystem.isfile(path):
        path = path.rpartition("/")[0]
    return _uri(filesystem, path)


def relative_name(uri: str, base: str) -> str:
    """The path of an input below `base`, with `/` between folders: `2024/may/IMG_1.jpg`."""
    return uri.removeprefix(base.rstrip("/") + "/")


def _is_glob(source: str) -> bool:
    return any(mark in source for mark in "*?[")


def _list(source: str) -> Iterator[Input]:
    filesystem, path = storage.open_filesystem(source)
    if storage.is_local(source) and os.path.isdir(path):
        yield from _walk(path, set())
    elif filesystem.isfile(path):
        yield from _describe(filesystem, {path: filesystem.info(path)}, base_of(source))
    elif filesystem.isdir(path):
        yield from _describe(filesystem, filesystem.find(path, detail=True), base_of(source))
    elif _is_glob(path):
        yield from _describe(filesystem, filesystem.glob(path, detail=True), base_of(source))
    else:
        raise InputError(f"{source}: no such folder or file")


def _walk(folder: str, seen: set[tuple[int, int]]) -> Iterator[Input]:
    """Local folders by scandir, which streams and follows links without going in circles."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as listing:
        entries = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, seen)
        elif entry.is_file():
            status = entry.stat()
            yield Input(entry.path, status.st_size, str(status.st_mtime_ns))


def _describe(filesystem: Any, details: dict[str, dict[str, Any]], base: str) -> Iterator[Input]:
    for path in sorted(details):
        facts, uri = details[path], _uri(filesystem, path)
        hidden = any(part.startswith(".") for part in relative_name(uri, base).split("/"))
        if facts["type"] == "file" and not hidden:
            version = next((str(facts[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if facts.get(key)), "")
            yield Input(uri, int(facts.get("size") or 0), version)


def _uri(filesystem: Any, path: str) -> str:
    return path if "file" in filesystem.protocol else str(filesystem.unstrip_protocol(path))
