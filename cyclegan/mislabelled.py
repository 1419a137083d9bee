"""What a file is that is no picture, or none that can be read: the reason that its owner is told."""

from __future__ import annotations

from cyclegan.pixels import ErrorType

_LOOKED_AT = 512
"""Bytes at the beginning of a file."""

_BROKEN = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"BM": "BMP"}
_OTHERS = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 whose header is broken",
}
_MARKUP = (
    (b"<svg", "SVG, a drawing"),
    (b"<!doctype html", "an HTML page, such as a server sends in place of a missing file"),
    (b"<html", "an HTML page, such as a server sends in place of a missing file"),
    (b"<?xml", "an XML document, such as an object store sends in place of a missing file"),
    (b"<error", "an XML document, such as an object store sends in place of a missing file"),
)


def what_else(data: bytes) -> tuple[ErrorType, str]:
    """The type of error and the reason, for bytes in which no reader knows a picture."""
    for magic, kind in _BROKEN.items():
        if data.startswith(magic):
            return "truncated", f"{kind}: the header is broken or cut off"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "unsupported_mode", "TIFF: its kind of pixels can't be read, or its header is broken"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "truncated", "WEBP: the header is broken or cut off"
    if data[4:8] == b"ftyp":
        return _of_media_container(data[8:12])
    for magic, kind in _OTHERS.items():
        if data.startswith(magic):
            return "not_an_image", kind
    return "not_an_image", _text(data[:_LOOKED_AT]) or f"no known image format; starts with {data[:8]!r}"


def _of_media_container(brand: bytes) -> tuple[ErrorType, str]:
    """AVIF, HEIF and MP4 begin alike."""
    if brand in (b"avif", b"avis"):
        return "truncated", "AVIF: the header is broken or cut off"
    if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        return "unsupported_mode", "HEIF (HEIC), which is not read; convert it to JPEG or PNG"
    return "not_an_image", f"a video or another media file, of brand {brand!r}"


def _text(head: bytes) -> str | None:
    """What a text seems to be; None for bytes that are none."""
    lower = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, kind in _MARKUP:
        if lower.startswith(mark) or (mark == b"<svg" and lower.startswith(b"<?xml") and mark in lower):
            return kind
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < _LOOKED_AT else "ignore")
    except UnicodeDecodeError:
        return None
    is_text = all(character.isprintable() or character.isspace() for character in text)
    start = " ".join(text[:40].split())
    kind = "JSON" if lower[:1] in (b"{", b"[") else "text"
    return f"{kind}, not an image: {start!r}" if is_text and len(text) > len(head) // 2 else None
