"""More than 8 bits, and floats: what they mean."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from tifffile import TiffFile

from cyclegan.images import ImageError, PixelFormat, decode, read_photo
from tests.test_images import noise, tiff

GREY16 = PixelFormat(1, 16)


def grey(values: Any, kind: str, **options: Any) -> tuple[list[int], str | None]:
    """What a row of values becomes, of 16 bits, and what is said of it."""
    photo = read_photo(tiff(np.array([values], kind), **{"photometric": "minisblack", "planarconfig": None, **options}), GREY16)
    return photo.pixels[0, :, 0].tolist(), photo.note


@pytest.mark.parametrize(
    ("values", "kind", "expected", "note"),
    [
        ([0, 0.5, 1], "f4", [0, 32768, 65535], None),
        ([0, 0.25], "f2", [0, 16384], None),  # dark stays dark
        ([-0.02, 0.5, 1.04], "f8", [0, 32768, 65535], None),  # overshoot
        ([0, 51, 255], "f4", [0, 13107, 65535], "values 0 to 255 taken as black to white"),
        ([0, 30000, 65535], "f4", [0, 30000, 65535], "values 0 to 65535 taken as black to white"),
        ([0, 1, 4], "f4", [0, 16384, 65535], "values 0 to 4 taken as black to white"),  # brighter than white
        ([-1, 0, 1], "f4", [0, 32768, 65535], "values -1 to 1 taken as black to white"),
        ([1000, 1500, 3000], "f8", [0, 16384, 65535], "values 1000 to 3000 taken as black to white"),
        ([np.nan, 0.5, np.inf, -np.inf], "f4", [0, 32768, 65535, 0], None),
        ([np.nan, np.inf], "f4", [0, 65535], None),
        ([-10, 2.5, 40], "f4", [0, 16384, 65535], "values -10 to 40 taken as black to white"),
        ([7, 7], "f4", [0, 0], "values 7 to 7 taken as black to white"),
        ([0, 300, 65535], "u4", [0, 300, 65535], "values 0 to 65535 taken as black to white"),
        ([0, 2**31, 2**32 - 1], "u4", [0, 32768, 65535], None),
        ([0, 100_000], "u4", [0, 65535], "values 0 to 100000 taken as black to white"),
        ([-100, 0, 100], "i4", [0, 32768, 65535], "values -100 to 100 taken as black to white"),
        ([0, 16384, 32767], "i2", [0, 32769, 65535], "values 0 to 32767 taken as black to white"),
        ([0, 12345, 65535], "u2", [0, 12345, 65535], None),
    ],
    ids=str,
)
def test_what_values_mean(values: list[float], kind: str, expected: list[int], note: str | None) -> None:
    assert grey(values, kind) == (expected, note)


def test_twelve_bits_fill_sixteen() -> None:
    assert grey([0, 2048, 4095], "u2", bitspersample=12)[0] == [0, 32776, 65535]


def test_white_may_be_low() -> None:
    assert grey([0, 0.25, 1], "f4", photometric="miniswhite")[0] == [65535, 49151, 0]


@pytest.mark.parametrize("kind", ["f4", "u4", "f2"])
def test_colours_of_floats_and_of_32_bits(kind: str) -> None:
    rgba = np.array([[[1, 0, 0.5, 0.2], [0, 1, 0, 1]]])
    values = (rgba * (1 if kind[0] == "f" else 2**32 - 1)).astype(kind)
    photo = read_photo(tiff(values, photometric="rgb", extrasamples=["unassalpha"]), PixelFormat(), keep_alpha=True)
    assert photo.alpha is not None
    assert np.abs(np.dstack([photo.pixels, photo.alpha]) - rgba * 255).max() <= 1


def test_a_large_float_is_scaled_as_a_whole() -> None:
    """Not each part by its own extremes."""
    ramp = np.linspace(-5, 5, 1200 * 1000, dtype=np.float32).reshape(1200, 1000)
    pixels = decode(tiff(ramp, photometric="minisblack", planarconfig=None), GREY16)[..., 0]
    assert np.abs(pixels - np.linspace(0, 65535, ramp.size).reshape(ramp.shape)).max() <= 1


def test_a_broken_lzw_stream_does_not_end_the_process() -> None:
    """As it does in the decoder that tifffile takes: a stream of chance, one of those that it overruns."""
    whole = tiff(noise(PixelFormat(4, 16)), photometric="rgb", compression="lzw")
    page = TiffFile(io.BytesIO(whole)).pages.first
    start, length = page.dataoffsets[0], page.databytecounts[0]
    stream = b"\x80" + np.random.default_rng(2111).bytes(3000)
    with pytest.raises(ImageError) as caught:
        decode(whole[:start] + stream[:length].ljust(length, b"\0") + whole[start + length :])
    assert caught.value.error_type == "truncated"
