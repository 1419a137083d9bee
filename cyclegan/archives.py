"""Finds the images in a tar, such as a WebDataset shard, by its headers alone, and reads one.

In: the URI of a tar that is not compressed. Out: `Member`s in the order of the tar; the bytes of one, by a single read of its place.
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from cyclegan.errors import InputError
from cyclegan.files import InputChangedError, open_file, read_range

log = logging.getLogger(__name__)

SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".tga", ".dng"),
    *(".jp2", ".j2k", ".jpx", ".jxl", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Names that end in one of these are images; shards hold labels and captions beside them."""

_HEADER = tarfile.BLOCKSIZE
_READ_AHEAD = 2**20
"""From a store, about what takes as long to fetch as the next request takes to be answered."""


class Member(NamedTuple):
    """An image in a tar: its name, where its bytes begin, how many there are."""

    name: str
    offset: int
    size: int


def list_members(uri: str, version: str = "") -> Iterator[Member]:
    """Every image in the tar at `uri`; the bytes of the images are not read.

    Raises:
        InputError: it is compressed, damaged or no tar, or holds two images of one name.
        OSError: it can't be read, or is not the one of this `version`.
    """
    refuse_compressed(uri)
    names: set[str] = set()
    links = 0
    for member in _headers(uri, version):
        name = member.name.removeprefix("./")
        if not name.lower().endswith(IMAGE_SUFFIXES) or _is_hidden(name):
            continue
        if member.issparse():
            raise InputError(f"{uri}: {name} is stored as a sparse file; pack the tar again without --sparse")
        if member.isreg():
            if name in names:
                raise InputError(f"{uri}: holds {name} twice; pack the tar again with names of their own")
            names.add(name)
            yield Member(name, member.offset_data, member.size)
        elif not member.isdir():
            links += 1
    if links:
        log.warning("%s: %d links to images are left out; their targets are not", uri, links)


def read_member(uri: str, offset: int, size: int, version: str = "") -> bytes:
    """The bytes of one image; its header, which stands right before them, shows whether it is still there.

    Raises:
        InputChangedError: the tar was replaced by another.
        OSError: it can't be read.
    """
    data = read_range(uri, offset - _HEADER, offset + size, version)
    try:
        found = tarfile.TarInfo.frombuf(data[:_HEADER], "utf-8", "surrogateescape").size
    except tarfile.HeaderError:
        found = -1
    if found != size or len(data) != _HEADER + size:
        raise InputChangedError(f"{uri}: was replaced after the plan was made (no image of {size} bytes at {offset})")
    return data[_HEADER:]


def refuse_compressed(uri: str) -> None:
    """Images in a compressed tar can't be read one by one.

    Raises:
        InputError: the name is that of a compressed tar.
    """
    if uri.lower().endswith(COMPRESSED_SUFFIXES):
        raise _compressed(uri)


def _headers(uri: str, version: str) -> Iterator[tarfile.TarInfo]:
    with open_file(uri, version, read_ahead=_READ_AHEAD) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                    yield member
                file.seek(tar.offset)
                end = file.read(_HEADER)
        except tarfile.TarError as error:
            file.seek(0)
            if file.read(2) == b"\x1f\x8b":
                raise _compressed(uri) from None
            raise InputError(f"{uri}: not a whole tar ({error}); copy or pack it again") from None
    # tarfile takes a damaged header for the end
    if end.strip(b"\0"):
        raise InputError(f"{uri}: not a whole tar (damaged at byte {tar.offset}); copy or pack it again")


def _compressed(uri: str) -> InputError:
    return InputError(f"{uri}: compressed, so its images can't be read one by one; unpack it to a plain .tar or a folder")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
