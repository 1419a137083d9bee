"""What is written beside the pixels: the profile, date and place; the same bytes each time."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.ExifTags import GPS, IFD, Base
from tifffile import TiffFile

from cyclegan.images import Encoding, PixelFormat, can_hold, decode, encode, read_photo
from tests.test_images import FORMATS, PHOTO, file, noise

ENCODINGS: list[Encoding] = ["jpeg", "png", "webp", "tiff"]
HELD = [(encoding, kind) for encoding in ENCODINGS for kind in FORMATS if can_hold(encoding, kind)]
PLACE = {GPS.GPSLatitudeRef: "N", GPS.GPSLatitude: (47.0, 22.0, 30.5), GPS.GPSLongitudeRef: "E", GPS.GPSLongitude: (8.0, 32.0, 1.25)}


def camera_exif() -> Image.Exif:
    """As a camera writes it: turned, with its name, its thumbnail's directory, a date and a place."""
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    exif[Base.Make] = "SECRETCAM"
    exif[Base.DateTime] = "2021:03:04 05:06:07"
    exif[IFD.Exif] = {
        Base.DateTimeOriginal: "2021:03:04 05:06:07",
        Base.OffsetTimeOriginal: "+01:00",
        Base.SubsecTimeOriginal: "123",
        Base.BodySerialNumber: "SECRETCAM 42",
    }
    exif[IFD.GPSInfo] = PLACE
    return exif


def tags_of(data: bytes, encoding: Encoding) -> Image.Exif:
    """A TIFF's tags are its EXIF; Pillow can't open each."""
    if encoding != "tiff":
        return Image.open(io.BytesIO(data)).getexif()
    exif = Image.Exif()
    exif.load(data)
    return exif


@pytest.mark.parametrize(("encoding", "kind"), HELD, ids=str)
def test_colours_say_that_they_are_srgb(encoding: Encoding, kind: PixelFormat) -> None:
    data = encode(noise(kind), encoding)
    is_tiff = encoding == "tiff"
    profile = (
        TiffFile(io.BytesIO(data)).pages.first.tags.valueof(34675) if is_tiff else Image.open(io.BytesIO(data)).info.get("icc_profile")
    )
    if kind.channels < 3:
        assert profile is None
    else:
        assert profile is not None
        assert len(profile) < 1000
        assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))


def test_bytes_follow_from_the_pixels_alone() -> None:
    """In another process, at another time; littlecms would write the time into a profile."""
    code = (
        "import hashlib, time, numpy as np; time.sleep(1.1); from cyclegan.images import encode; p = np.full((8, 8, 3), 77, np.uint8);"
        "print(hashlib.sha256(b''.join(encode(q, e) for q, e in"
        "[(p, 'jpeg'), (p, 'png'), (p, 'webp'), (p, 'tiff'), (p.astype(np.uint16), 'png'), (p.astype(np.uint16), 'tiff')])).hexdigest())"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code.replace("1.1", wait)], stdout=subprocess.PIPE) for wait in ("0", "1.1")]
    hashes = {process.communicate()[0] for process in processes}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 65


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "avif"])
def test_only_date_and_place_are_kept(kind: str) -> None:
    data = file(Image.fromarray(PHOTO), kind, exif=camera_exif().tobytes())
    photo = read_photo(data, keep_exif=True)
    assert photo.exif is not None
    assert b"SECRETCAM" in data
    assert b"SECRETCAM" not in photo.exif
    kept = Image.Exif()
    kept.load(photo.exif)
    assert set(kept) == {Base.DateTime, IFD.Exif, IFD.GPSInfo}
    assert kept[Base.DateTime] == "2021:03:04 05:06:07"
    assert kept.get_ifd(IFD.Exif).keys() == {Base.DateTimeOriginal, Base.OffsetTimeOriginal, Base.SubsecTimeOriginal}
    assert kept.get_ifd(IFD.GPSInfo) == PLACE
    assert read_photo(data).exif is None


def test_no_date_and_no_place_is_no_exif() -> None:
    exif = Image.Exif()
    exif[Base.Orientation], exif[Base.Make] = 6, "SECRETCAM"
    for data in (encode(PHOTO, "png"), file(Image.fromarray(PHOTO), "jpeg", exif=exif), encode(noise(PixelFormat(3, 16)), "tiff")):
        assert read_photo(data, keep_exif=True).exif is None


def test_a_broken_exif_block_costs_nothing() -> None:
    data = file(Image.fromarray(PHOTO), "png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x87\x69\0\x04\0\0\0\x01\xff\xff\xff\xff" * 9)
    photo = read_photo(data, keep_exif=True)
    assert np.array_equal(photo.pixels, PHOTO)
    assert photo.exif is None


@pytest.mark.parametrize(("encoding", "kind"), HELD, ids=str)
def test_exif_goes_with_every_encoding(encoding: Encoding, kind: PixelFormat) -> None:
    exif = read_photo(file(Image.fromarray(PHOTO), "jpeg", exif=camera_exif()), keep_exif=True).exif
    pixels = noise(kind)
    data = encode(pixels, encoding, exif=exif)
    tags = tags_of(data, encoding)
    assert not {Base.Orientation, Base.Make} & set(tags)
    assert (tags[Base.DateTime], tags.get_ifd(IFD.GPSInfo)) == ("2021:03:04 05:06:07", PLACE)
    assert tags.get_ifd(IFD.Exif)[Base.OffsetTimeOriginal] == "+01:00"
    assert np.array_equal(decode(data, kind), decode(encode(pixels, encoding), kind))  # not turned a second time
    assert read_photo(data, keep_exif=True).exif is not None


@pytest.mark.parametrize("block", [{Base.DateTime: "2021:03:04 05:06:07"}, {IFD.GPSInfo: PLACE}], ids=["date", "place"])
def test_one_of_both_is_enough(block: dict[int, Any]) -> None:
    exif = Image.Exif()
    for tag, value in block.items():
        exif[tag] = value
    again = read_photo(encode(PHOTO, "tiff", exif=exif.tobytes()), keep_exif=True).exif
    assert again is not None
    kept = Image.Exif()
    kept.load(again)
    assert set(kept) == set(block)


def test_fine_colours_from_quality_95_on() -> None:
    red_stripes = np.zeros((32, 32, 3), np.uint8)
    red_stripes[:, ::2, 0] = 255
    errors = [np.abs(decode(encode(red_stripes, "jpeg", quality)).astype(int) - red_stripes).mean() for quality in (94, 95)]
    assert errors[1] < 5 < errors[0]
