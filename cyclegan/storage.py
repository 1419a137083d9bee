"""Whole files at a path or URI, on a local disk or anything that fsspec opens.

In: `folder/file`, `/abs/file`, `file:///abs/file`, `s3://bucket/key` and the like. Out: bytes, or a file that is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

import fsspec
import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem

from cyclegan.errors import InputError


def is_local(uri: str) -> bool:
    """Whether `uri` names a place on this machine's disks."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """The same place, independent of the working directory; local ones as a plain path."""
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://"))) if is_local(uri) else uri.rstrip("/")


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Clients of object stores raise errors of their own for a store that does not answer; as OSError they are met like a disk's.

    Raises:
        OSError: whatever went wrong at a place that is not on this machine.
    """
    try:
        yield
    except (OSError, InputError):
        raise
    except Exception as error:
        if is_local(uri):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


def open_filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `uri` and the path within it.

    Raises:
        InputError: no file system for this kind of URI is installed.
    """
    if is_local(uri):
        # not through fsspec's own parser: a local name may hold "::", which it takes for a chain
        return LocalFileSystem(), absolute(uri)
    try:
        # another process may have written a moment ago
        filesystem, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise InputError(f"{uri}: {error}") from None
    return filesystem, path


def open_arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem | None, str]:
    """What `open_filesystem` gives, for Ray: None on a local disk, which Ray opens by itself, else fsspec's behind Arrow's interface.

    Ray would take Arrow's own clients for some object stores; through fsspec they are all configured in one way.
    """
    filesystem, path = open_filesystem(uri)
    return (None if is_local(uri) else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))), path


def join(uri: str, *parts: str) -> str:
    """A place below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    """Whether there is a file or folder."""
    filesystem, path = open_filesystem(uri)
    with reaching(uri):
        return bool(filesystem.exists(path))


def names(uri: str) -> set[str]:
    """What lies directly in a folder; nothing where there is none."""
    filesystem, path = open_filesystem(uri)
    with reaching(uri):
        try:
            return {name.rstrip("/").rpartition("/")[2] for name in filesystem.ls(path, detail=False)}
        except FileNotFoundError:
            return set()


def walk(uri: str) -> Iterator[str]:
    """Every file below a folder, hidden ones too, as places that the other functions take; nothing where there is no folder."""
    filesystem, path = open_filesystem(uri)
    with reaching(uri):
        for folder, _, files in filesystem.walk(path):
            for name in files:
                yield join(uri, f"{folder}/{name}".removeprefix(path).lstrip("/"))


def is_empty(uri: str) -> bool:
    """Whether there is no folder, or one with nothing in it."""
    return not names(uri)


def read_bytes(uri: str) -> bytes:
    """A whole file.

    Raises:
        OSError: it can't be read.
    """
    filesystem, path = open_filesystem(uri)
    with reaching(uri):
        data: bytes = filesystem.cat_file(path)
    return data


@contextmanager
def opened(uri: str) -> Iterator[BufferedIOBase]:
    """A file for reading a part at a time; also what is read within the block raises as said.

    Raises:
        OSError: it can't be read.
    """
    filesystem, path = open_filesystem(uri)
    with reaching(uri), filesystem.open(path) as file:
        yield file


def read_text(uri: str) -> str:
    """A whole UTF-8 file."""
    return read_bytes(uri).decode("utf-8")


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a whole file; a reader sees the old content or the new, never a part.

    Raises:
        OSError: it can't be written; what was there before is unharmed.
    """
    filesystem, path = open_filesystem(uri)
    if not is_local(uri):
        with reaching(uri):
            filesystem.pipe_file(path, data)  # object stores make an upload visible when it is complete
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp's 0600 would hide results from colleagues
        os.replace(partial, target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def write_text(uri: str, text: str) -> None:
    """Writes a whole UTF-8 file, as `write_bytes` does."""
    write_bytes(uri, text.encode("utf-8"))


def remove(uri: str) -> None:
    """Deletes a file, or a folder and all below it; nothing happens where there is none.

    Raises:
        OSError: it can't be deleted.
    """
    filesystem, path = open_filesystem(uri)
    with reaching(uri), contextlib.suppress(FileNotFoundError):
        filesystem.rm(path, recursive=True)
