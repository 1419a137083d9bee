"""Pixels: what they are, and how one kind becomes another. Below the codec; nothing here knows files.

Pixels are (H, W, channels), uint8 or uint16: grey, grey and alpha, sRGB, or sRGB and alpha. Alpha is straight: colours are not weighted
with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8 | np.uint16]
ErrorType = Literal["unreadable", "empty", "git_lfs_pointer", "not_an_image", "too_large", "truncated", "unsupported_mode"]

_BAND = 1 << 20
"""Pixels that are converted at a time: the conversions' own arrays stay small however large the photo."""


class ImageError(Exception):
    """A file that can't be turned into pixels: why, in one of a few types and in words of one line."""

    def __init__(self, error_type: ErrorType, reason: str) -> None:
        super().__init__(" ".join(reason.split()))
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


@dataclass(frozen=True, slots=True)
class Source:
    """A decoded file, not yet upright. Its rows become pixels as they are asked for: conversions need no second copy of a large photo."""

    height: int
    width: int
    rows: Callable[[int, int], Pixels]
    """From the first number to before the second: (rows, width, channels), of 1 to 4 channels and 8 or 16 bits, the same for all rows."""
    note: str | None = None
    """How values without an agreed range were read."""


def assemble(source: Source, orientation: int, wanted: PixelFormat, keep_alpha: bool) -> tuple[Pixels, Pixels | None]:
    """Upright pixels as `wanted`, and the alpha that is not in them: (H, W, 1), or None where there is none or it is opaque.

    Args:
        source: what was decoded.
        orientation: as EXIF counts, 1 to 8.
        wanted: of the pixels.
        keep_alpha: give alpha apart where `wanted` has none, instead of compositing on white.
    """
    height, width = (source.width, source.height) if orientation > 4 else (source.height, source.width)
    pixels = np.empty((height, width, wanted.channels), wanted.dtype)
    alpha: Pixels | None = None
    step = max(1, _BAND // source.width)
    for top in range(0, source.height, step):
        bottom = min(top + step, source.height)
        rows = source.rows(top, bottom)
        if keep_alpha and not wanted.has_alpha and rows.shape[2] in (2, 4):
            alpha = np.empty((height, width, 1), wanted.dtype) if alpha is None else alpha
            _as_stored(alpha, orientation)[top:bottom] = _of_bits(rows[..., -1:], wanted.bits)
            rows = rows[..., :-1]
        _as_stored(pixels, orientation)[top:bottom] = convert(rows, wanted)
    is_opaque = alpha is None or alpha.min() == np.iinfo(alpha.dtype).max
    return pixels, None if is_opaque else alpha


def convert(pixels: Pixels, wanted: PixelFormat) -> Pixels:
    """Pixels of any kind as `wanted`.

    8 bits become 16 by a factor of 257, 16 bits become 8 by the same factor, rounded. Grey is the luminance of ITU-R 601. Alpha that is not
    wanted is composited on white, alpha that there is not is opaque.
    """
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
    if wanted.has_alpha:
        opaque = np.full((*pixels.shape[:2], 1), largest, pixels.dtype)
        colours = np.concatenate([colours, pixels[..., -1:] if has_alpha else opaque], 2)
    return _of_bits(colours, wanted.bits)


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


def _of_bits(pixels: Pixels, bits: int) -> Pixels:
    if bits == 16 and pixels.dtype == np.uint8:
        return pixels.astype(np.uint16) * 257
    if bits == 8 and pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels


def _as_stored(upright: Pixels, orientation: int) -> Pixels:
    """A view of upright pixels whose rows and columns are those of the file."""
    turned = upright[:, ::-1] if orientation in (2, 3, 6, 7) else upright
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
    return turned.swapaxes(0, 1) if orientation > 4 else turned
