"""The codec on real bytes: orientation, colour, alpha, depth, and what can't be read."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from cyclegan.images import ImageError, decode, encode, resize

SMOOTH = np.stack(
    [np.add.outer(np.arange(40), np.arange(60)) * 2, np.full((40, 60), 90), np.add.outer(np.arange(40), -np.arange(60)) + 100], -1
)
PHOTO = SMOOTH.clip(0, 255).astype(np.uint8)


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("encoding", "tolerance"), [("png", 0), ("jpeg", 4), ("webp", 6)])
def test_there_and_back(encoding: Any, tolerance: int) -> None:
    again = decode(encode(PHOTO, encoding, 95))
    assert again.dtype == np.uint8
    assert np.abs(again.astype(int) - PHOTO).max() <= tolerance


def test_quality_is_used() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert len(encode(noise, "jpeg", 30)) < len(encode(noise, "jpeg", 95)) / 2
    assert len(encode(noise, "webp", 30)) < len(encode(noise, "webp", 95)) / 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    turned = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = Image.fromarray(PHOTO)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose[turned[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(file(stored, "png", exif=exif)), PHOTO)


def test_embedded_profile_is_converted_to_srgb() -> None:
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    stored = ImageCms.applyTransform(Image.fromarray(PHOTO), lab)
    assert stored is not None
    data = file(stored, "tiff", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())
    assert np.abs(decode(data).astype(int) - PHOTO).mean() < 2


def test_a_broken_profile_does_not_cost_the_photo() -> None:
    assert np.array_equal(decode(file(Image.fromarray(PHOTO), "png", icc_profile=b"nonsense")), PHOTO)


def test_alpha_is_composited_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert decode(file(image, "png")).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_transparent_palette() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decode(file(image, "png", transparency=0)).tolist() == [[[255, 255, 255], [200, 100, 50]]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(np.where(PHOTO[..., 2:] > 90, 255, 0).astype(np.uint8).repeat(3, 2)).convert(mode)
    out = decode(file(image, "tiff"))
    assert out.shape == PHOTO.shape
    assert np.abs(out.astype(int) - np.where(PHOTO[..., 2:] > 90, 255, 0)).max() <= 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    assert decode(file(Image.fromarray(ramp), "png"))[0, :, 0].tolist() == (ramp[0] >> 8).tolist()


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert decode(file(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True))[0, 0].tolist() == [255, 0, 0]


def promised_size(width: int, height: int) -> bytes:
    """A PNG whose header promises what its few bytes do not hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "error_type"),
    [
        (b"", "empty"),
        (b"hello, I am a text file", "not_an_image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git_lfs_pointer"),
        (encode(PHOTO, "jpeg")[:400], "truncated"),
        (encode(PHOTO, "png")[:100], "truncated"),
        (encode(PHOTO, "png")[:20], "truncated"),
        (promised_size(20_000, 20_000), "too_large"),
        (promised_size(13_000, 13_000), "truncated"),
        (file(Image.new("F", (4, 4), 0.5), "tiff"), "unsupported_mode"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_says_why(data: bytes, error_type: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert (caught.value.error_type, bool(str(caught.value))) == (error_type, True)


def test_resize() -> None:
    assert resize(PHOTO, 20, 30).shape == (20, 30, 3)
    assert resize(PHOTO, 40, 60) is PHOTO
