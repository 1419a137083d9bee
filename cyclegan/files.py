"""Finds files in folders, on a local disk or in a store, reads one, and notices when it was replaced meanwhile.

In: a folder (searched recursively, hidden names left out), a glob, `{000..099}` or `{a,b}` in a name, a single file. Out: one `File` each,
in a fixed order: by name within each folder. What is listed at a time is one folder, whatever the size of the tree.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from fsspec.utils import glob_translate

from cyclegan import storage
from cyclegan.errors import InputError

_BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<choices>[^{}]*,[^{}]*))\}")
_MARK = re.compile(r"[*?\[]|" + _BRACES.pattern)
"""Where the pattern in a path begins."""


class InputChangedError(OSError):
    """A file is not the one that was listed."""


class File(NamedTuple):
    """One file: where it is, its size in bytes, and what changes when it is replaced (`etag:…`, `mtime:…`, "" where unknown)."""

    uri: str
    size: int | None
    version: str


def find(source: str) -> Iterator[File]:
    """Every file of `source`.

    Raises:
        InputError: there is no such folder or file.
        OSError: it can't be listed.
    """
    filesystem, path = storage.open_filesystem(source)
    place: _Place = _LocalPlace() if storage.is_local(source) else _StorePlace(filesystem)
    if filesystem.isfile(path):
        yield place.describe(path)
    elif filesystem.isdir(path):
        yield from _walk(place, path, _Everything(), frozenset())
    elif _BRACES.search(path):
        for choice in _expand_braces(source):
            yield from find(choice)
    elif _MARK.search(path):
        folder = _folder_before_marks(path)
        if filesystem.isdir(folder):
            yield from _walk(place, folder, _Glob(folder, path), frozenset())
    else:
        raise InputError(f"{source}: no such folder or file")


def base_of(source: str) -> str:
    """The folder that the names of a source are relative to: the folder itself, a file's, or a pattern's before its first mark."""
    filesystem, path = storage.open_filesystem(source)
    if filesystem.isfile(path):
        path = path.rpartition("/")[0]
    elif _MARK.search(path) and not filesystem.exists(path):
        path = _folder_before_marks(path)
    return path if storage.is_local(source) else str(filesystem.unstrip_protocol(path))


def open_file(uri: str, version: str = "", *, read_ahead: int = 0) -> BinaryIO:
    """A file open for reading.

    Args:
        uri: where it is.
        version: what it was when it was listed; "" is not compared.
        read_ahead: bytes that are fetched from a store beyond those asked for.

    Raises:
        InputChangedError: it has another version now.
        OSError: it can't be opened.
    """
    filesystem, path = storage.open_filesystem(uri)
    file: Any
    if storage.is_local(uri):
        file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
        now = _local_version(os.fstat(file.fileno()))
    else:
        ahead = {"cache_type": "readahead", "block_size": read_ahead} if read_ahead else {"cache_type": "none"}
        with storage.reaching(uri):
            file = filesystem.open(path, "rb", **ahead)
        now = _store_version(getattr(file, "details", None) or {})
    if now and version.startswith(now.partition(":")[0] + ":") and version != now:  # versions of two kinds can't be compared
        file.close()
        raise InputChangedError(f"{uri}: was replaced after the plan was made (version {version}, now {now})")
    return cast(BinaryIO, file)


def read_file(uri: str, size: int | None, version: str) -> bytes:
    """The bytes of a file that had this size and version, where known, when it was listed.

    Raises:
        InputChangedError: it is another one now.
        OSError: it can't be read.
    """
    if storage.is_local(uri):
        with open_file(uri, version) as file:
            data = file.read()
    else:
        data = storage.read_bytes(uri)  # one request; what it answers has no version
    if size is not None and len(data) != size:
        raise InputChangedError(f"{uri}: was replaced after the plan was made ({size} bytes, now {len(data)})")
    return data


def read_range(uri: str, start: int, end: int, version: str) -> bytes:
    """The bytes from `start` up to `end`, fewer where the file ends; one request to a store.

    Raises:
        InputChangedError: a local file has another version than when it was listed.
        OSError: it can't be read.
    """
    if storage.is_local(uri):
        with open_file(uri, version) as file:
            file.seek(start)
            return file.read(end - start)
    filesystem, path = storage.open_filesystem(uri)
    with storage.reaching(uri):
        data: bytes = filesystem.cat_file(path, start=start, end=end)
    return data


class _Entry(NamedTuple):
    path: str
    is_folder: bool
    file: File | None


class _Place(Protocol):
    """A local disk or a store."""

    def describe(self, path: str) -> File: ...

    def entries(self, folder: str) -> Iterator[_Entry]:
        """What a folder holds, by name, without hidden names."""

    def identity(self, folder: str) -> object:
        """The same for all names of one folder."""


class _LocalPlace:
    """With links followed; one that leads nowhere is a file that can't be read."""

    def describe(self, path: str) -> File:
        return _local_file(path, os.stat(path))

    def entries(self, folder: str) -> Iterator[_Entry]:
        # names alone are kept while the folder is gone through; what scandir gives weighs ten times as much
        for name in sorted(name for name in os.listdir(folder) if not name.startswith(".")):
            path = os.path.join(folder, name)
            try:
                status = os.stat(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
                yield _Entry(path, False, File(path, None, ""))
                continue
            if stat.S_ISDIR(status.st_mode):
                yield _Entry(path, True, None)
            elif stat.S_ISREG(status.st_mode):
                yield _Entry(path, False, _local_file(path, status))

    def identity(self, folder: str) -> object:
        status = os.stat(folder)
        return status.st_dev, status.st_ino


@dataclass(frozen=True)
class _StorePlace:
    """Whatever fsspec opens."""

    filesystem: Any

    def describe(self, path: str) -> File:
        return self._file(path, self.filesystem.info(path))

    def entries(self, folder: str) -> Iterator[_Entry]:
        for facts in sorted(self.filesystem.ls(folder, detail=True), key=lambda facts: (facts["name"], facts["type"])):
            path = facts["name"].rstrip("/")
            # an object store may hold an empty object named like the folder
            if path != folder.rstrip("/") and not path.rpartition("/")[2].startswith("."):
                is_folder = facts["type"] == "directory"
                yield _Entry(path, is_folder, None if is_folder else self._file(path, facts))

    def identity(self, folder: str) -> object:
        return folder

    def _file(self, path: str, facts: dict[str, Any]) -> File:
        return File(self.filesystem.unstrip_protocol(path), facts.get("size"), _store_version(facts))


class _Selection(Protocol):
    def enters(self, folder: str) -> bool: ...

    def takes(self, file: str) -> bool: ...


class _Everything:
    def enters(self, folder: str) -> bool:  # noqa: ARG002
        return True

    takes = enters


class _Glob:
    """The files that match a glob, and the folders on the way to them."""

    def __init__(self, folder: str, pattern: str) -> None:
        self._start = len(folder.rstrip("/")) + 1
        parts = pattern[self._start :].split("/")
        ends = range(1, len(parts) + 1)
        *self._folders, self._files = (re.compile(glob_translate("/".join(parts[:end]))) for end in ends)
        self._any_depth = "**" in parts

    def enters(self, folder: str) -> bool:
        name = folder[self._start :]
        depth = name.count("/")
        return self._any_depth or (depth < len(self._folders) and self._folders[depth].match(name) is not None)

    def takes(self, file: str) -> bool:
        return self._files.match(file[self._start :]) is not None


def _walk(place: _Place, folder: str, selection: _Selection, above: frozenset[object]) -> Iterator[File]:
    """The files below `folder`; a link back to one of the folders `above` would go in circles and is left out."""
    identity = place.identity(folder)
    if identity in above:
        return
    for path, is_folder, file in place.entries(folder):
        if is_folder:
            if selection.enters(path):
                yield from _walk(place, path, selection, above | {identity})
        elif file and selection.takes(path):
            yield file


def _expand_braces(source: str) -> Iterator[str]:
    """`s-{08..10}.tar` to `s-08.tar`, `s-09.tar`, `s-10.tar`; `{a,b}` to each; several braces to every combination."""
    braces = _BRACES.search(source)
    if braces is None:
        yield source
        return
    if braces["choices"] is not None:
        choices: Iterator[str] = iter(braces["choices"].split(","))
    else:
        choices = (f"{number:0{len(braces['first'])}d}" for number in range(int(braces["first"]), int(braces["last"]) + 1))
    for choice in choices:
        yield from _expand_braces(source[: braces.start()] + choice + source[braces.end() :])


def _folder_before_marks(path: str) -> str:
    mark = _MARK.search(path)
    return path[: mark.start() if mark else None].rpartition("/")[0] or "/"


def _local_file(path: str, status: os.stat_result) -> File:
    return File(path, status.st_size, _local_version(status))


def _local_version(status: os.stat_result) -> str:
    return f"mtime:{status.st_mtime_ns}"


def _store_version(facts: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "mtime", "LastModified", "created"):
        if facts.get(key):
            return f"{key.lower()}:{str(facts[key]).strip(chr(34))}"
    return ""
