"""Colours: each mode of Pillow by value, profiles where they apply."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from cyclegan import colour
from cyclegan.colour import SRGB
from cyclegan.images import PixelFormat, decode, encode, read_photo
from cyclegan.pixels import RGB8, assemble
from tests.test_images import PHOTO, file, noise, tiff

SWAPPED = SRGB.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
"""Of files whose first values are blue and last are red."""

LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def of_mode(image: Image.Image) -> Any:
    """As read from a file of this mode; not every mode has a format that Pillow writes."""
    return assemble(colour.source(image), 1, RGB8, keep_alpha=False)[0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "LA", "La", "PA"])
def test_every_mode_keeps_its_values(mode: str) -> None:
    tones = np.array([[[0, 0, 0], [255, 255, 255]]] if mode == "1" else [[[51, 51, 51], [204, 204, 204]]], np.uint8)
    if mode in ("RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "P"):
        tones = np.array([[[204, 51, 102], [51, 153, 255]]], np.uint8)  # of the palette that Pillow converts to
    image = Image.fromarray(tones)
    if mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    elif mode == "PA":
        image = image.convert("P")
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = to_lab.apply(image)
    tolerance = {"LAB": 4, "HSV": 4, "YCbCr": 2}.get(mode, 1)  # of 8 bits a value in their own space
    assert np.abs(of_mode(image if image.mode == mode else image.convert(mode)).astype(int) - tones).max() <= tolerance


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa"])
def test_alpha_of_every_mode_is_on_white(mode: str) -> None:
    image = Image.new("RGBA", (1, 1), (60, 60, 60, 51)).convert("LA" if mode[0] == "L" else "RGBA")
    assert np.abs(of_mode(image.convert(mode)).astype(int) - round(60 * 0.2 + 255 * 0.8)).max() <= 1


def test_a_profile_of_colours_is_applied_and_alpha_left_alone() -> None:
    pixels = noise(PixelFormat(4))
    photo = read_photo(file(Image.fromarray(pixels), "png", icc_profile=SWAPPED), keep_alpha=True)
    assert photo.alpha is not None
    assert np.abs(photo.pixels[..., ::-1].astype(int) - pixels[..., :3]).max() <= 1
    assert np.array_equal(photo.alpha, pixels[..., 3:])


def test_a_profile_is_of_the_colours_behind_a_palette() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 200])
    assert np.abs(decode(file(image, "png", icc_profile=SWAPPED)).astype(int) - [200, 20, 10]).max() <= 1


@pytest.mark.parametrize("encoding", ["png", "tiff"])
def test_a_profile_of_sixteen_bits(encoding: Any) -> None:
    pixels = noise(PixelFormat(4, 16))
    data = encode(pixels, encoding)
    if encoding == "tiff":
        data = data.replace(SRGB, SWAPPED)
    else:
        assert SRGB not in data  # compressed
        eight = file(Image.new("RGB", (1, 1)), "png", icc_profile=SWAPPED)
        start, end = eight.index(b"iCCP") - 4, eight.index(b"IDAT") - 4
        ours = data.index(b"iCCP") - 4
        data = data[:ours] + eight[start:end] + data[data.index(b"IDAT") - 4 :]
    there = decode(data, PixelFormat(4, 16)).astype(int)
    assert np.abs(there[..., 2::-1] - pixels[..., :3]).max() <= 40
    assert np.array_equal(there[..., 3], pixels[..., 3])


def test_a_profile_of_grey() -> None:
    """Linear light: half of it looks far brighter than half of the values."""
    import imagecodecs

    linear = imagecodecs.cms_profile("gray", gamma=1.0)
    for grey, mode in (
        (Image.new("L", (1, 1), 128), "png"),
        (Image.new("LA", (1, 1), (128, 255)), "png"),
        (Image.new("L", (1, 1), 128), "jpeg"),
    ):
        assert np.abs(decode(file(grey, mode, icc_profile=linear)).astype(int) - 188).max() <= 1
    deep = tiff(np.full((1, 1), 128 * 257, np.uint16), photometric="minisblack", planarconfig=None, iccprofile=linear)
    assert np.abs(decode(deep, PixelFormat(1, 16)).astype(int) - 188 * 257).max() <= 200


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_profile_of_another_space_is_passed_over(mode: str) -> None:
    image = Image.fromarray(PHOTO).convert(mode)
    for wrong in (LAB, b"nonsense"):
        assert np.array_equal(decode(file(image, "tiff", icc_profile=wrong)), decode(file(image, "tiff")))


def test_a_profile_of_srgb_moves_nothing() -> None:
    """As most photos have; theirs differ from ours in time and words."""
    another = SRGB[:24] + bytes(12) + SRGB[36:]
    assert np.array_equal(decode(file(Image.fromarray(PHOTO), "png", icc_profile=another)), PHOTO)


def test_lab_is_computed_not_looked_up() -> None:
    """L*a*b* of known colours of sRGB, D50."""
    known = {(54.29, 80.80, 69.89): (255, 0, 0), (29.57, 68.29, -112.03): (0, 0, 255), (53.59, 0, 0): (128, 128, 128)}
    for (lightness, a, b), colours in known.items():
        values = (round(lightness * 2.55), round(a) % 256, round(b) % 256)
        assert np.abs(of_mode(Image.frombytes("LAB", (1, 1), bytes(values))).astype(int) - colours).max() <= 4


def test_large_photos_are_converted_in_parts() -> None:
    pixels = noise(PixelFormat(4), 1100, 1003)
    assert np.array_equal(decode(encode(pixels, "png"), PixelFormat(4)), pixels)
