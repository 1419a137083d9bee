"""The codec: bytes of an image file to upright pixels of a wanted format, and back.

In: the bytes of any picture that Pillow reads, JPEG, PNG, WebP, AVIF, TIFF, BMP and GIF among them, and PNG and TIFF of more than 8
bits, which it does not. What a file is follows from its content, not from its name. Out: pixels (H, W, channels), uint8 or uint16, of
sRGB or grey; turned as the EXIF orientation says, converted from the embedded colour profile, composited on white where no alpha is
wanted. Whatever is wrong with a file is an `ImageError` with a type from a short list. One file takes less than about 2 GB to decode,
its own bytes among them.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from tifffile import TiffPage

from cyclegan import colour, deep
from cyclegan.encoding import SUFFIXES, Encoding, can_hold, encode
from cyclegan.exif import date_and_place, orientation_of
from cyclegan.mislabelled import what_else
from cyclegan.pixels import RGB8, ErrorType, ImageError, PixelFormat, Pixels, Source, assemble, resize

__all__ = [
    "MAX_PIXELS",
    "RGB8",
    "SUFFIXES",
    "Encoding",
    "ImageError",
    "Photo",
    "PixelFormat",
    "Pixels",
    "can_hold",
    "decode",
    "encode",
    "read_photo",
    "resize",
]

MAX_PIXELS = 152_000_000
"""A file whose header promises more is refused before it is decoded. Where a pixel takes more than 4 bytes, read or wanted, fewer are."""

_HEAVY = {"WEBP": 8, "AVIF": 8, "JPEG2000": 8}
"""For readers that hold canvases of their own or 4 bytes a value: as if so many bytes a pixel."""
_PROGRESSIVE = 6
"""Likewise for a progressive JPEG, whose coefficients are in memory all at once."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded file."""

    pixels: Pixels
    """(H, W, channels) as wanted, upright."""
    alpha: Pixels | None
    """(H, W, 1) of the same type, where it was to be kept, is not in the pixels and not opaque; these are then not composited."""
    height: int
    """Of the whole file, upright, even where it was decoded at a smaller scale."""
    width: int
    exif: bytes | None
    """An EXIF block with date and place only, where it was to be kept and the file has either."""
    note: str | None
    """What its owner should know although it could be read, such as `first of 12 frames`."""


def decode(data: bytes, wanted: PixelFormat = RGB8) -> Pixels:
    """The pixels of `read_photo`."""
    return read_photo(data, wanted).pixels


def read_photo(
    data: bytes, wanted: PixelFormat = RGB8, *, keep_alpha: bool = False, keep_exif: bool = False, shorter_side: int | None = None
) -> Photo:
    """An encoded image, upright, (H, W, channels) as `wanted`; the first frame of an animated one.

    8 bits become 16 by a factor of 257, 16 bits become 8 by the same factor, rounded; what becomes of more bits and of floats, `deep`
    says. Grey is the luminance of ITU-R 601. Alpha is opaque where the file has none.

    Args:
        data: the file.
        wanted: of the pixels.
        keep_alpha: give alpha apart where `wanted` has none, instead of compositing on white.
        keep_exif: give the date and the place.
        shorter_side: to which the photo will be shrunk. A JPEG is then decoded at a half, a quarter or an eighth, still at least twice
            as large as that, which is faster and leaves bicubic resizing all that it needs; other formats are decoded whole.

    Raises:
        ImageError: the bytes are no whole image of a supported kind.
    """
    if not data:
        raise ImageError("empty", "the file is empty")
    if data.startswith(b"version https://git-lfs"):
        raise ImageError("git_lfs_pointer", "a Git LFS pointer, not the image; run `git lfs pull` where it came from")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings on odd files; what matters becomes an ImageError
        page = deep.tiff_page(data)
        found = _read_tiff(page, data, wanted) if page else _read(data, wanted, shorter_side)
        orientation = orientation_of(found.exif)
        with _blaming(found.kind, "unsupported_mode"):
            pixels, alpha = assemble(found.source, orientation, wanted, keep_alpha)
        height, width = (found.width, found.height) if orientation > 4 else (found.height, found.width)
        notes = [note for note in (found.frames, found.source.note) if note]
        exif = date_and_place(found.exif) if keep_exif else None
    return Photo(pixels, alpha, height, width, exif, "; ".join(notes) or None)


@dataclass(frozen=True, slots=True)
class _Found:
    """What was read from a file before its pixels are turned and converted."""

    kind: str
    source: Source
    height: int
    width: int
    exif: Image.Exif
    frames: str | None


def _read(data: bytes, wanted: PixelFormat, shorter_side: int | None) -> _Found:
    image = _open(data, wanted)
    kind, profile = str(image.format), image.info.get("icc_profile")
    if _is_deep_png(image, data):
        height, width = image.height, image.width
        with _blaming(kind, "truncated"):
            source = deep.read_png(data, profile)
    else:
        height, width = _load(image, wanted, shorter_side)
        with _blaming(kind, "unsupported_mode"):
            # `F`, `I` and `I;16` of any order of bytes hold more than 8 bits
            is_deep = image.mode[0] in "FI"
            source = (
                deep.source(np.asarray(image)[..., None], profile, 16 if "16" in image.mode else 32) if is_deep else colour.source(image)
            )
    return _Found(kind, source, height, width, _exif(image, data), _frames(image))


def _read_tiff(page: TiffPage, data: bytes, wanted: PixelFormat) -> _Found:
    with _blaming("TIFF", "truncated"):
        width, height = max(page.imagewidth, page.tilewidth), max(page.imagelength, page.tilelength)
        _refuse_too_large(width, height, page.samplesperpixel * np.dtype(page.dtype).itemsize, wanted)
        source = deep.read_tiff(page, data, wanted)
    exif = Image.Exif()
    exif.bigtiff, exif.endian = page.parent.is_bigtiff, page.parent.byteorder
    frames = 1
    with contextlib.suppress(Exception):  # what follows the first page says nothing about it
        exif.load_from_fp(io.BytesIO(data), page.offset)
        frames = len(page.parent.pages)
    return _Found("TIFF", source, source.height, source.width, exif, _first_of(frames))


def _open(data: bytes, wanted: PixelFormat) -> Image.Image:
    """The header, of a size that may be decoded."""
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except UnidentifiedImageError:
        raise ImageError(*what_else(data)) from None
    except Exception as error:  # a known format with a broken header
        raise ImageError("truncated", f"{type(error).__name__}: {error}") from error
    if image.format == "EPS":
        raise ImageError("not_an_image", "EPS, a program that draws; it is not run")
    with _blaming(str(image.format), "truncated"):
        # tiles may be larger than the picture, and are decoded whole
        tags = getattr(image, "tag_v2", {})
        tile_width, tile_height = (tags.get(tag, 0) for tag in (322, 323))
        _refuse_too_large(max(image.width, tile_width), max(image.height, tile_height), _held(image, data), wanted)
        if tags and max(tile.extents[3] for tile in image.tile if tile.extents) < tags[257]:
            raise ValueError("strips are missing")  # which would be taken as black
    return image


def _held(image: Image.Image, data: bytes) -> int:
    """Bytes a pixel that decoding it takes, to compare with the 4 that Pillow's pixels of 8 bits take."""
    if _is_deep_png(image, data):
        return 8 if data[25] & 2 else 4  # colours or grey, and alpha, which a transparent colour becomes
    return _PROGRESSIVE if image.info.get("progressive") else _HEAVY.get(str(image.format), 4)


def _is_deep_png(image: Image.Image, data: bytes) -> bool:
    return image.format == "PNG" and data[24:25] == b"\x10"


def _load(image: Image.Image, wanted: PixelFormat, shorter_side: int | None) -> tuple[int, int]:
    """Decodes the pixels; the height and the width of the whole file."""
    size = image.size
    is_jpeg = isinstance(image, JpegImageFile)
    if shorter_side and is_jpeg:
        image.draft(None, (2 * shorter_side, 2 * shorter_side))
    with _blaming(str(image.format), "truncated"):
        image.load()
    width, height = size if is_jpeg else image.size  # that of an icon is known only now
    _refuse_too_large(width, height, 4, wanted)
    return height, width


def _refuse_too_large(width: int, height: int, held: int, wanted: PixelFormat) -> None:
    """Before anything is decoded; `held` is the bytes a pixel that the reader holds."""
    each = max(held, 4, wanted.bits // 2)  # the result takes up to 4 or 8, with alpha
    most = MAX_PIXELS * 4 // each
    if max(width, 16) * height > most:  # each row takes 8 bytes besides, which tells where rows are narrow
        raise ImageError("too_large", f"{width}x{height} pixels; at most {most} of such are decoded")


@contextlib.contextmanager
def _blaming(kind: str, error_type: ErrorType) -> Iterator[None]:
    """Whatever a decoder raises is the file's fault: OSError, SyntaxError, ValueError, struct.error and more."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("too_large", f"{kind}: more than there is memory for") from error
    except Exception as error:
        raise ImageError(error_type, f"{kind}: {error or type(error).__name__}") from error


def _exif(image: Image.Image, data: bytes) -> Image.Exif:
    # a PNG is asked only where there may be some: for one of 16 bits Pillow looks behind the pixels, and decodes them on the way
    is_worth_a_look = image.format != "PNG" or any(mark in data for mark in (b"eXIf", b"exif", b"XML:com.adobe.xmp"))
    with contextlib.suppress(Exception):  # a broken block says nothing about the pixels
        return image.getexif() if is_worth_a_look else Image.Exif()
    return Image.Exif()


def _frames(image: Image.Image) -> str | None:
    frames = 1
    # a camera's multi-picture JPEG (MPO) holds previews, depth and the like beside the photo: nothing to remark on
    with contextlib.suppress(Exception):  # what follows the first frame says nothing about it
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    return _first_of(frames)


def _first_of(frames: int) -> str | None:
    return f"first of {frames} frames" if frames > 1 else None
