"""Pixels to the bytes of an image file, which follow from the pixels and the settings alone: no time, no name, no version in them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import imagecodecs
import numpy as np
from PIL import Image
from tifffile import imwrite

from cyclegan.colour import SRGB
from cyclegan.pixels import PixelFormat, Pixels

Encoding = Literal["jpeg", "png", "webp", "tiff"]

SUFFIXES: dict[Encoding, str] = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "tiff": ".tif"}

_HOLDS: Mapping[Encoding, tuple[set[int], set[int]]] = {
    "jpeg": ({1, 3}, {8}),
    "png": ({1, 2, 3, 4}, {8, 16}),
    "webp": ({3, 4}, {8}),
    "tiff": ({1, 2, 3, 4}, {8, 16}),
}
"""Channels and bits of each encoding."""

_EXIF = b"Exif\0\0"
_AFTER_HEADER = 33
"""Bytes of a PNG up to its first chunk after the header."""


def can_hold(encoding: Encoding, pixels: PixelFormat) -> bool:
    """Whether `encode` can store such pixels; png and tiff store all."""
    channels, bits = _HOLDS[encoding]
    return pixels.channels in channels and pixels.bits in bits


def encode(pixels: Pixels, encoding: Encoding, quality: int = 95, *, exif: bytes | None = None) -> bytes:
    """The bytes of an image file; colours say that they are sRGB by an ICC profile, grey needs none.

    Args:
        pixels: uint8 or uint16 (H, W, channels), sRGB.
        encoding: jpeg holds 1 or 3 channels of 8 bits, webp 3 or 4 of 8 bits, png and tiff (deflated) all.
        quality: 1 to 100, for jpeg and webp. From 95 on a jpeg's colours are as fine as its brightness (4:4:4), below they are halved
            (4:2:0), which costs sharpness of coloured edges and saves about a third.
        exif: a block to go with it, as `Photo.exif` is.

    Raises:
        ValueError: the encoding can't hold such pixels, or so many.
        OSError: likewise.
    """
    found = PixelFormat(pixels.shape[2], pixels.itemsize * 8)
    if not can_hold(encoding, found):
        raise ValueError(f"{encoding} can't hold {found}; png and tiff can")
    profile = SRGB if found.channels > 2 else None
    if encoding == "tiff":
        return _tiff(pixels, found, profile, exif)
    if found.bits == 16:
        return _png_of_sixteen_bits(pixels, profile, exif)
    options: dict[Encoding, dict[str, Any]] = {
        "jpeg": {"quality": quality, "subsampling": "4:4:4" if quality >= 95 else "4:2:0"},
        "webp": {"quality": quality, "exact": True},  # colours under transparent pixels are the generator's too
    }
    metadata = {name: block for name, block in (("icc_profile", profile), ("exif", exif)) if block}
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if found.channels == 1 else pixels)
    image.save(buffer, format=encoding, **options.get(encoding, {}), **metadata)
    return buffer.getvalue()


def _png_of_sixteen_bits(pixels: Pixels, profile: bytes | None, exif: bytes | None) -> bytes:
    try:
        png = bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)))
    except imagecodecs.PngError as error:
        raise ValueError(f"png: {error}") from error
    # the encoder knows no metadata
    chunks = _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile)) if profile else b""
    chunks += _chunk(b"eXIf", exif.removeprefix(_EXIF)) if exif else b""
    return png[:_AFTER_HEADER] + chunks + png[_AFTER_HEADER:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _tiff(pixels: Pixels, found: PixelFormat, profile: bytes | None, exif: bytes | None) -> bytes:
    buffer = io.BytesIO()
    imwrite(
        buffer,
        pixels[..., 0] if found.channels == 1 else pixels,
        byteorder="<",
        photometric="rgb" if found.channels > 2 else "minisblack",
        planarconfig="contig" if found.channels > 1 else None,
        extrasamples=["unassalpha"] if found.has_alpha else None,
        compression="zlib",
        predictor=True,
        metadata=None,
        iccprofile=profile,
    )
    return _with_exif(buffer.getvalue(), exif) if exif else buffer.getvalue()


def _with_exif(tiff: bytes, exif: bytes) -> bytes:
    """A TIFF and the tags of an EXIF block, which is a TIFF without pixels itself; tifffile refuses to write such tags.

    The block's directory is laid behind the file for where it then stands, and a directory of both replaces the file's.
    """
    tags = Image.Exif()
    tags.load(exif)
    tags.endian = "<"
    start = len(tiff) + len(tiff) % 2  # directories begin at even places
    whole = tiff.ljust(start, b"\0") + tags.tobytes(start)[len(_EXIF) + 8 :]
    (first,) = struct.unpack_from("<I", tiff, 4)
    entries = sorted(_entries(whole, first) + _entries(whole, start), key=lambda entry: struct.unpack_from("<H", entry))
    whole = whole.ljust(len(whole) + len(whole) % 2, b"\0")
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return whole[:4] + struct.pack("<I", len(whole)) + whole[8:] + directory


def _entries(tiff: bytes, place: int) -> list[bytes]:
    """The entries of a directory, 12 bytes each."""
    (count,) = struct.unpack_from("<H", tiff, place)
    return [tiff[place + 2 + 12 * n : place + 14 + 12 * n] for n in range(count)]
