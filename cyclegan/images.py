"""The codec: bytes of an image file to upright pixels of a wanted format, and back.

In: the bytes of any format that Pillow reads. Out: pixels (H, W, channels), uint8 or uint16: grey, grey and alpha, sRGB, or sRGB and
alpha; turned as the EXIF orientation says, composited on white where no alpha is wanted, converted from the embedded colour profile to
sRGB. Pillow would narrow a PNG or TIFF of 16 bits to 8: where more than 8-bit RGB is wanted, other readers take its values as they are,
whatever its profile. Whatever can't be read is an `ImageError` with a type from a short list.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from tifffile import EXTRASAMPLE, PHOTOMETRIC, TiffFile, TiffPage, imwrite

Pixels = npt.NDArray[np.uint8 | np.uint16]
Encoding = Literal["jpeg", "png", "webp", "tiff"]
ErrorType = Literal["unreadable", "empty", "git_lfs_pointer", "not_an_image", "too_large", "truncated", "unsupported_mode"]

MAX_PIXELS = 178_956_970
"""A file whose header promises more is refused before it is decoded; twice Pillow's warning level."""

SUFFIXES: dict[Encoding, str] = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "tiff": ".tif"}

_SRGB = ImageCms.createProfile("sRGB")

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its remarks on odd files; what matters becomes an ImageError


class ImageError(Exception):
    """A file that can't be turned into pixels: why, in one of a few types and in words."""

    def __init__(self, error_type: ErrorType, reason: str) -> None:
        super().__init__(reason)
        self.error_type = error_type


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """What the pixels of an image are; as text, such as `3 channels of 8 bits`.

    Args:
        channels: 1 is grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        bits: of each value, 8 or 16.
    """

    channels: int = 3
    bits: int = 8

    def __post_init__(self) -> None:
        if self.channels not in range(1, 5) or self.bits not in (8, 16):
            raise ValueError(f"{self}: pixels have 1 to 4 channels of 8 or 16 bits")

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' if self.channels != 1 else ''} of {self.bits} bits"

    @property
    def dtype(self) -> np.dtype[np.uint8 | np.uint16]:
        """The type of each value."""
        return np.dtype(np.uint8) if self.bits == 8 else np.dtype(np.uint16)

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.channels in (2, 4)


RGB8 = PixelFormat()
"""What pixels are unless something else is said."""

_HOLDS: Mapping[Encoding, tuple[set[int], set[int]]] = {
    "jpeg": ({1, 3}, {8}),
    "png": ({1, 2, 3, 4}, {8, 16}),
    "webp": ({3, 4}, {8}),
    "tiff": ({1, 2, 3, 4}, {8, 16}),
}
"""Channels and bits of each encoding."""


def can_hold(encoding: Encoding, pixels: PixelFormat) -> bool:
    """Whether `encode` can store such pixels; png and tiff store all."""
    channels, bits = _HOLDS[encoding]
    return pixels.channels in channels and pixels.bits in bits


def decode(data: bytes, wanted: PixelFormat = RGB8) -> Pixels:
    """Upright pixels of an encoded image, (H, W, channels) as `wanted`; the first frame of an animated one.

    8 bits become 16 by a factor of 257. 16 bits become 8 by the same factor, rounded; in 8-bit RGB they are the high byte. Grey is the
    luminance of ITU-R 601. Alpha is opaque where the file has none.

    Raises:
        ImageError: the bytes are no whole image of a supported kind.
    """
    if not data:
        raise ImageError("empty", "the file is empty")
    if data.startswith(b"version https://git-lfs"):
        raise ImageError("git_lfs_pointer", "a Git LFS pointer, not the image; run `git lfs pull` where it came from")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings on odd files; what matters becomes an ImageError
        if data.startswith(b"\x89PNG\r\n\x1a\n") and data[24:25] == b"\x10" and wanted != RGB8:
            pixels = _read_png(data)
        elif page := _tiff_page(data, wanted):
            pixels = _read_tiff(page, wanted)
        else:
            pixels = _read(data)
    if pixels.dtype == np.uint16 and wanted == RGB8:
        pixels = (pixels >> 8).astype(np.uint8)  # as Pillow narrows the colours that it reads
    return _convert(pixels, wanted)


def encode(pixels: Pixels, encoding: Encoding, quality: int = 95) -> bytes:
    """The bytes of an image file.

    Args:
        pixels: uint8 or uint16 (H, W, channels), sRGB.
        encoding: jpeg holds 1 or 3 channels of 8 bits, webp 3 or 4 of 8 bits, png and tiff (deflated) all.
        quality: 1 to 100, for jpeg and webp.

    Raises:
        ValueError: the encoding can't hold such pixels, or so many.
        OSError: likewise.
    """
    found = PixelFormat(pixels.shape[2], pixels.itemsize * 8)
    if not can_hold(encoding, found):
        raise ValueError(f"{encoding} can't hold {found}; png and tiff can")
    values = pixels[..., 0] if found.channels == 1 else pixels
    buffer = io.BytesIO()
    if encoding == "tiff":
        imwrite(
            buffer,
            values,
            photometric="rgb" if found.channels > 2 else "minisblack",
            planarconfig="contig" if found.channels > 1 else None,
            extrasamples=["unassalpha"] if found.has_alpha else None,
            compression="zlib",
            predictor=True,
            metadata=None,
        )
    elif found.bits == 16:
        try:
            return bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))
        except imagecodecs.PngError as error:
            raise ValueError(f"{encoding}: {error}") from error
    else:
        # exact: colours under transparent pixels are the generator's too
        options: dict[Encoding, dict[str, Any]] = {"jpeg": {"quality": quality}, "webp": {"quality": quality, "exact": True}}
        Image.fromarray(values).save(buffer, format=encoding, **options.get(encoding, {}))
    return buffer.getvalue()


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Bicubic and antialiased, as the original CycleGAN code does it: (height, width, channels) of the same type."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    # band by band: Pillow knows no colours of 16 bits, and would weight those of 8 with their alpha
    bands = np.moveaxis(pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32), 2, 0)
    resized = np.stack([np.asarray(Image.fromarray(band).resize((width, height), Image.Resampling.BICUBIC)) for band in bands], -1)
    return resized if resized.dtype == np.uint8 else resized.round().clip(0, 65535).astype(np.uint16)


def _read(data: bytes) -> Pixels:
    """What Pillow makes of a file, upright: grey of 16 bits, else sRGB of 8 bits, with alpha where there is any."""
    image = _open(data)
    try:
        image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error … on broken files
        raise ImageError("truncated", f"{image.format}: {error}") from error
    try:
        return _to_srgb(_upright(image))
    except (ValueError, OSError) as error:
        raise ImageError("unsupported_mode", f"{image.format} with pixels of mode {image.mode}: {error}") from error


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except UnidentifiedImageError:
        raise ImageError("not_an_image", f"no known image format; starts with {data[:8]!r}") from None
    except Exception as error:  # a known format with a broken header
        raise ImageError("truncated", f"{type(error).__name__}: {error}") from error
    _refuse_too_large(image.width, image.height)
    return image


def _refuse_too_large(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError("too_large", f"{width}x{height} pixels; at most {MAX_PIXELS} are decoded")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image


def _to_srgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16 bits in one channel; Pillow's own conversion would clip them to white
        return np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16)[..., None]
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        colours = _apply_profile(with_alpha.convert("RGB"), image.info.get("icc_profile"))
        return np.dstack([np.asarray(colours), np.asarray(with_alpha.getchannel("A"))])
    # a profile describes the colours behind a palette, not its indices
    direct = image if image.mode in ("RGB", "L", "CMYK", "LAB") else image.convert("RGB")
    return np.asarray(_apply_profile(direct, image.info.get("icc_profile")))


def _apply_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
            assert converted is not None
            return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile that is broken or of another colour space: take the pixels as sRGB, as viewers do
    return image.convert("RGB")


def _read_png(data: bytes) -> Pixels:
    """A PNG of 16 bits, upright."""
    image = _open(data)
    try:
        pixels = imagecodecs.png_decode(data)
    except Exception as error:  # whatever the bytes provoke
        raise ImageError("truncated", f"PNG: {error}") from error
    # asked only where there may be an answer: Pillow looks behind the pixels for it, and decodes them on the way
    may_be_turned = any(mark in data for mark in (b"eXIf", b"exif", b"XML:com.adobe.xmp"))
    try:
        orientation = image.getexif().get(0x0112, 1) if may_be_turned else 1
    except Exception:  # as in `_upright`
        orientation = 1
    return _turn(pixels.reshape(*pixels.shape[:2], -1), orientation)


def _tiff_page(data: bytes, wanted: PixelFormat) -> TiffPage | None:
    """The first page of a TIFF of 16 bits that Pillow would narrow to 8 where more is wanted, or can't read at all."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        page = TiffFile(io.BytesIO(data)).pages.first
        kind, bands = page.photometric, page.samplesperpixel
        width, height = max(page.imagewidth, page.tilewidth), max(page.imagelength, page.tilelength)
        is_deep = page.dtype == np.uint16 and page.bitspersample == 16 and page.imagedepth == 1
    except Exception:  # Pillow reads it nevertheless, or says what is wrong with it
        return None
    if not is_deep or bands not in range(1, 5) or kind not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB):
        return None
    if wanted == RGB8 and (kind == PHOTOMETRIC.RGB or (kind == PHOTOMETRIC.MINISBLACK and bands == 1)):
        return None
    _refuse_too_large(width, height)
    return page


def _read_tiff(page: TiffPage, wanted: PixelFormat) -> Pixels:
    """A page of 1 to 4 bands of 16 bits, upright."""
    try:
        if len(page.dataoffsets) < math.prod(page.chunked):
            raise ValueError("strips or tiles are missing")  # tifffile would take them as black
        planes = page.asarray(squeeze=False, maxworkers=1)[:, 0]  # (1, H, W, bands), or (bands, H, W, 1) where they are stored apart
    except Exception as error:  # whatever the bytes provoke
        raise ImageError("truncated", f"TIFF: {error}") from error
    pixels = np.moveaxis(planes, 0, -1).reshape(*planes.shape[1:3], -1).astype(np.uint16)
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        pixels[..., 0] = 65535 - pixels[..., 0]
    if page.extrasamples[-1:] == (EXTRASAMPLE.ASSOCALPHA,):
        colours, alpha = pixels[..., :-1], pixels[..., -1:]
        pixels[..., :-1] = (colours * (65535 / alpha.clip(1))).round().clip(0, 65535)
    if pixels.shape[2] == 4 and page.extrasamples[-1:] == (EXTRASAMPLE.UNSPECIFIED,) and wanted.channels < 4:
        pixels = pixels[..., :3]  # a band that is not said to be alpha, such as infrared
    return _turn(pixels, page.tags.valueof(0x0112, 1))


def _turn(pixels: Pixels, orientation: object) -> Pixels:
    """Upright, as `ImageOps.exif_transpose` does it to what Pillow reads; an unknown orientation is none."""
    turned = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    turned = turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
    return np.ascontiguousarray(turned)


def _convert(pixels: Pixels, wanted: PixelFormat) -> Pixels:
    """Grey, RGB, with alpha or without, of 8 or 16 bits, to what is wanted."""
    has_alpha, largest = pixels.shape[2] in (2, 4), np.iinfo(pixels.dtype).max
    colours = pixels[..., :-1] if has_alpha else pixels
    if has_alpha and not wanted.has_alpha:
        alpha = pixels[..., -1:].astype(np.uint32)  # the square of the largest value still fits
        colours = ((colours * alpha + largest * (largest - alpha) + largest // 2) // largest).astype(pixels.dtype)
    if colours.shape[2] == 1 and wanted.channels > 2:
        colours = colours.repeat(3, 2)
    elif colours.shape[2] == 3 and wanted.channels < 3:
        luminance = (colours @ np.array([19595, 38470, 7471], np.uint32) + 0x8000) >> 16  # Pillow's weights, which sum to 65536
        colours = luminance.astype(pixels.dtype)[..., None]
    converted = colours
    if wanted.has_alpha:
        opaque = np.full((*pixels.shape[:2], 1), largest, pixels.dtype)
        converted = np.concatenate([colours, pixels[..., -1:] if has_alpha else opaque], 2)
    if wanted.bits == 16 and converted.dtype == np.uint8:
        return converted.astype(np.uint16) * 257
    if wanted.bits == 8 and converted.dtype == np.uint16:
        return ((converted.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return converted
