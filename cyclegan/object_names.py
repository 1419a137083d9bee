"""What a translated photo is called: a name that mirrors its source's, is safe on every disk and store, and no other photo's.

In: the URI of a source, the base of all sources, the suffix of the images that are written. Out: a path with `/` between folders, to be put
below a folder. It follows from these three alone, so a photo that is done again replaces itself.

No two URIs have one name, and no name is a folder of another, because each step can be undone:

- A part of the path is percent-escaped where a disk, a store or a shell could trip over it, `%` itself too. Never left as they are: `..`,
  hidden names, the `@` that begins what is not below base, and the endings `.tar`, `.parquet` and `suffix` of a folder. An empty part
  is `%`.
- `.tar#` and `.parquet#`, the first of them, become `.tar/` and `.parquet/`, which no folder's name ends in.
- What is not below base begins with a folder for its scheme: `@s3/bucket/key`, `@/mnt/photos/IMG_1.jpg`.
- `suffix` is added to the file's name, unless it ends in it already and what is before it can't be taken for a whole name, as `IMG_1.png`
  can; where it is added to a name without any, a `%` says so: `IMG_1.jpg` stays, `IMG_1` is `IMG_1%.jpg`, `IMG_1.png` is `IMG_1.png.jpg`,
  `IMG_1.png.jpg` is `IMG_1.png.jpg.jpg`.
- Parts or paths that are too long end in `%~` and a hash of the whole.
"""

from __future__ import annotations

import hashlib
import re

_CONTAINER = re.compile(r"^(?P<path>.*?[^/]\.(?:tar|parquet))#(?P<member>.*)$", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<path>.*)$", re.DOTALL)
_LOOKS_WHOLE = re.compile(r"\.[A-Za-z][A-Za-z0-9]{2,3}$")
_ESCAPED = frozenset('%\\:*?"<>|#')
_PART_BYTES = 240
"""Disks take 255; the name of a file that is not whole yet is 10 longer."""
_PATH_BYTES = 800
"""Stores take 1024, with what is before it."""


def object_name(uri: str, base: str, suffix: str) -> str:
    """The path below the folder of translated photos.

    Args:
        uri: of the photo; in an archive or table `{container}#{name}`.
        base: the folder that names are relative to, "" for none.
        suffix: of the images that are written: `.jpg`.
    """
    assert suffix.startswith(".")
    folders, path = _split_base(uri, base)
    if container := _CONTAINER.match(path):
        *above, archive = container["path"].split("/")
        folders += [_folder(part, suffix) for part in above] + [_shorten(_escape(archive), archive[archive.rindex(".") :])]
        path = container["member"]
    *inner, file = path.split("/")
    folders += [_folder(part, suffix) for part in inner]
    name = "/".join([*folders, _shorten(_with_suffix(_escape(file), suffix), suffix)])
    return name if len(_bytes(name)) <= _PATH_BYTES else f"%~/{_digest(uri)}{suffix}"


def _split_base(uri: str, base: str) -> tuple[list[str], str]:
    folder = base.rstrip("/") + "/"
    if base and uri.startswith(folder):
        return [], uri.removeprefix(folder)
    if scheme := _SCHEME.match(uri):
        return [f"@{scheme['scheme']}"], scheme["path"]
    if uri.startswith("/"):
        return ["@"], uri[1:]
    return ["@%"], uri


def _folder(part: str, suffix: str) -> str:
    escaped = _escape(part) or "%"
    for ending in (".tar", ".parquet", suffix):
        if escaped.lower().endswith(ending.lower()):
            escaped = f"{escaped[: -len(ending)]}%2E{escaped[1 - len(ending) :]}"
    return _shorten(escaped, "")


def _escape(part: str) -> str:
    return "".join(
        "".join(f"%{byte:02X}" for byte in _bytes(letter))
        if letter in _ESCAPED or not letter.isprintable() or (place == 0 and letter in ".@") or (place == len(part) - 1 and letter in ". ")
        else letter
        for place, letter in enumerate(part)
    )


def _with_suffix(name: str, suffix: str) -> str:
    """`name` with one `suffix` more, or as it is, or with `%` and one: which of them depends only on what is before its suffixes."""
    stem = name
    while stem.endswith(suffix):
        stem = stem.removesuffix(suffix)
    if _LOOKS_WHOLE.search(stem):
        return name + suffix
    return f"{name}%{suffix}" if name == stem else name


def _shorten(part: str, ending: str) -> str:
    if len(_bytes(part)) <= _PART_BYTES:
        return part
    rest = f"%~{_digest(part)}{ending}"
    return _bytes(part)[: _PART_BYTES - len(_bytes(rest))].decode(errors="ignore") + rest


def _digest(text: str) -> str:
    return hashlib.sha256(_bytes(text)).hexdigest()[:40]


def _bytes(text: str) -> bytes:
    # half a pair of UTF-16 is no text, but may stand in a name all the same
    return text.encode("utf-8", "surrogatepass")
