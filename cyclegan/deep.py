"""Files with more than 8 bits a value, which Pillow would narrow, clip or not read: PNG of 16 bits, TIFF of 9 to 32 bits and of floats.

Values become 16 bits by what they mean: a whole number of up to 16 bits, unsigned, is white at the largest that its bits hold. For
others, which have no agreed range, 0 is black, and white is the first of these whose range the file's values fill:

- whole numbers: 65535, the largest of their type;
- floats: 1, 255, 65535.

Values fill a range where none is outside, for floats by more than 5 % (interpolation overshoots; that is clipped), and where, but for the
first range, the largest comes to a sixteenth of it. Where they fill none, as heights or temperatures do, the file's smallest value is
black and its largest white. What is not a number is black, infinity white and minus infinity black.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from tifffile import EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, TiffFile, TiffPage

from cyclegan import colour
from cyclegan.pixels import PixelFormat, Pixels, Source

Values = npt.NDArray[Any]

_KINDS = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB)
_TYPES = {np.dtype(kind) for kind in ("u2", "i2", "u4", "i4", "f2", "f4", "f8")}

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its remarks on odd files; what matters becomes an ImageError


def read_png(data: bytes, profile: bytes | None) -> Source:
    """A PNG of 16 bits. Raises whatever a broken one provokes."""
    values = imagecodecs.png_decode(data)
    return source(values.reshape(*values.shape[:2], -1), profile)


def tiff_page(data: bytes) -> TiffPage | None:
    """The first page of a TIFF of 1 to 4 bands of more than 8 bits; None for any other file."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        page = TiffFile(io.BytesIO(data)).pages.first
        is_deep = page.dtype in _TYPES and page.samplesperpixel in range(1, 5) and page.imagedepth == 1
        return page if is_deep and page.photometric in _KINDS else None
    except Exception:  # Pillow reads it nevertheless, or says what is wrong with it
        return None


def read_tiff(page: TiffPage, data: bytes, wanted: PixelFormat) -> Source:
    """Such a page of a file. Raises whatever a broken one provokes."""
    if len(page.dataoffsets) < math.prod(page.chunked):
        raise ValueError("strips or tiles are missing")  # which would be taken as black
    # by libtiff: a broken LZW stream ends the process in the decoder that tifffile takes
    values = imagecodecs.tiff_decode(data)
    if page.planarconfig == PLANARCONFIG.SEPARATE and page.samplesperpixel > 1:
        values = np.moveaxis(values, 0, -1)
    values = values.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    if values.shape[2] == 4 and page.extrasamples[-1:] == (EXTRASAMPLE.UNSPECIFIED,) and wanted.channels < 4:
        values = values[..., :3]  # a band that is not said to be alpha, such as infrared
    profile = page.tags.valueof(34675)
    return source(
        values,
        profile if isinstance(profile, bytes) else None,
        bits=page.bitspersample,
        is_inverted=page.tags.valueof(262) == PHOTOMETRIC.MINISWHITE,  # as said, not as taken where nothing is said
        is_weighted=page.extrasamples[-1:] == (EXTRASAMPLE.ASSOCALPHA,),
    )


def source(values: Values, profile: bytes | None, bits: int = 16, is_inverted: bool = False, is_weighted: bool = False) -> Source:
    """Rows of 16 bits from values of any type.

    Args:
        values: (H, W, 1 to 4) of whole numbers or floats; the last of 2 or 4 is alpha.
        profile: of the colours, ICC.
        bits: that unsigned values of up to 16 bits use.
        is_inverted: 0 is white.
        is_weighted: colours are multiplied with alpha.
    """
    num_colours = values.shape[2] - (values.shape[2] in (2, 4))
    black, white = _range(values[..., :num_colours], bits)
    alpha_range = _range(values[..., num_colours:], bits) if num_colours < values.shape[2] else None

    def rows(top: int, bottom: int) -> Pixels:
        colours = _scaled(values[top:bottom, :, :num_colours], black, white)
        if is_inverted:
            colours = (65535 - colours).astype(np.uint16)
        if alpha_range is None:
            return colour.of_sixteen_bits(colours, profile)
        alpha = _scaled(values[top:bottom, :, num_colours:], *alpha_range)
        if is_weighted:
            colours = (colours * (65535 / alpha.clip(1))).round().clip(0, 65535).astype(np.uint16)
        return np.concatenate([colour.of_sixteen_bits(colours, profile), alpha], 2)

    is_agreed = (black, white) in ((0, 1), (0, (1 << bits) - 1))
    note = None if is_agreed else f"values {black:g} to {white:g} taken as black to white"
    return Source(values.shape[0], values.shape[1], rows, note)


def _range(values: Values, bits: int) -> tuple[float, float]:
    """What is black and what is white; see the module."""
    if values.dtype.kind == "u" and values.itemsize == 2:
        return 0, (1 << bits) - 1
    smallest, largest = _extremes(values)
    whites: Sequence[int] = (1, 255, 65535)
    if values.dtype.kind in "iu":
        full = (1 << bits) - 1 if values.dtype.kind == "u" else int(np.iinfo(values.dtype).max)
        whites = (min(full, 65535), full)
    overshoot = 0.05 if values.dtype.kind == "f" else 0
    for white in whites:
        is_first = white == whites[0]
        lowest = -overshoot * (white if is_first else largest)
        if lowest <= smallest and largest <= white * (1 + overshoot) and (is_first or largest >= white / 16):
            return 0, white
    return smallest, largest


def _extremes(values: Values) -> tuple[float, float]:
    """The smallest and the largest that is a number; 0 and 1 where none is."""
    smallest, largest = math.inf, -math.inf
    for row in values:  # row by row: a mask of the whole would cost another photo
        numbers = row[np.isfinite(row)]
        if numbers.size:
            smallest, largest = min(smallest, float(numbers.min())), max(largest, float(numbers.max()))
    return (smallest, largest) if smallest <= largest else (0.0, 1.0)


def _scaled(values: Values, black: float, white: float) -> Pixels:
    if values.dtype.kind == "u" and white == 65535:
        return values.astype(np.uint16, copy=False)
    span = max(white - black, np.finfo(np.float64).tiny)
    numbers = np.nan_to_num(values.astype(np.float64), nan=black, posinf=white, neginf=black)
    scaled: npt.NDArray[np.float64] = np.rint((numbers - black) * (65535 / span)).clip(0, 65535)
    return scaled.astype(np.uint16)
