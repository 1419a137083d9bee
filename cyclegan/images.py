"""The codec: bytes of an image file to upright sRGB pixels, and back.

In: the bytes of any format that Pillow reads. Out: uint8 pixels (H, W, 3), turned as the EXIF orientation says, converted from the
embedded colour profile to sRGB, alpha composited on white. Whatever can't be read is an `ImageError` with a type from a short list.
"""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]
Encoding = Literal["jpeg", "png", "webp"]
ErrorType = Literal["unreadable", "empty", "git_lfs_pointer", "not_an_image", "too_large", "truncated", "unsupported_mode"]

MAX_PIXELS = 178_956_970
"""A file whose header promises more is refused before it is decoded; twice Pillow's warning level."""

SUFFIXES: dict[Encoding, str] = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}

_SRGB = ImageCms.createProfile("sRGB")


class ImageError(Exception):
    """A file that can't be turned into pixels: why, in one of a few types and in words."""

    def __init__(self, error_type: ErrorType, reason: str) -> None:
        super().__init__(reason)
        self.error_type = error_type


def decode(data: bytes) -> Pixels:
    """Upright sRGB pixels, uint8 (H, W, 3), of an encoded image; the first frame of an animated one.

    Raises:
        ImageError: the bytes are no whole image of a supported kind.
    """
    if not data:
        raise ImageError("empty", "the file is empty")
    if data.startswith(b"version https://git-lfs"):
        raise ImageError("git_lfs_pointer", "a Git LFS pointer, not the image; run `git lfs pull` where it came from")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings on odd files; what matters becomes an ImageError
        image = _open(data)
        try:
            image.load()
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error … on broken files
            raise ImageError("truncated", f"{image.format}: {error}") from error
        try:
            return np.asarray(_to_srgb(_upright(image)))
        except (ValueError, OSError) as error:
            raise ImageError("unsupported_mode", f"{image.format} with pixels of mode {image.mode}: {error}") from error


def encode(pixels: Pixels, encoding: Encoding, quality: int = 95) -> bytes:
    """The bytes of an image file; `pixels` is uint8 (H, W, 3) sRGB, `quality` 1 to 100 is for jpeg and webp."""
    options = {} if encoding == "png" else {"quality": quality}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=encoding, **options)
    return buffer.getvalue()


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Bicubic and antialiased, as the original CycleGAN code does it: uint8 (height, width, 3)."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except UnidentifiedImageError:
        raise ImageError("not_an_image", f"no known image format; starts with {data[:8]!r}") from None
    except Exception as error:  # a known format with a broken header
        raise ImageError("truncated", f"{type(error).__name__}: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError("too_large", f"{image.width}x{image.height} pixels; at most {MAX_PIXELS} are decoded")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image


def _to_srgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits in one channel; Pillow's own conversion would clip them to white
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        colours = _apply_profile(with_alpha.convert("RGB"), image.info.get("icc_profile"))
        white = Image.new("RGB", image.size, "white")
        white.paste(colours, mask=with_alpha.getchannel("A"))
        return white
    # a profile describes the colours behind a palette, not its indices
    direct = image if image.mode in ("RGB", "L", "CMYK", "LAB") else image.convert("RGB")
    return _apply_profile(direct, image.info.get("icc_profile"))


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
