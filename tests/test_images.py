"""The codec on real bytes: orientation, colour, alpha, depth, and what can't be read."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from cyclegan.images import Encoding, ImageError, PixelFormat, Pixels, can_hold, decode, encode, resize

FORMATS = [PixelFormat(channels, bits) for channels in (1, 2, 3, 4) for bits in (8, 16)]

SMOOTH = np.stack(
    [np.add.outer(np.arange(40), np.arange(60)) * 2, np.full((40, 60), 90), np.add.outer(np.arange(40), -np.arange(60)) + 100], -1
)
PHOTO = SMOOTH.clip(0, 255).astype(np.uint8)


def noise(kind: PixelFormat, height: int = 20, width: int = 31) -> Pixels:
    """Values of the whole range; alpha too."""
    return np.random.default_rng(0).integers(0, 1 << kind.bits, (height, width, kind.channels)).astype(kind.dtype)


def tiff(pixels: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **{"planarconfig": "contig", "metadata": None, **options})
    return buffer.getvalue()


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("encoding", "tolerance"), [("png", 0), ("jpeg", 4), ("webp", 6)])
def test_there_and_back(encoding: Any, tolerance: int) -> None:
    again = decode(encode(PHOTO, encoding, 95))
    assert again.dtype == np.uint8
    assert np.abs(again.astype(int) - PHOTO).max() <= tolerance


@pytest.mark.parametrize("kind", FORMATS, ids=str)
@pytest.mark.parametrize("encoding", ["png", "tiff"])
def test_every_format_there_and_back_without_loss(encoding: Encoding, kind: PixelFormat) -> None:
    pixels = noise(kind)[::-1, 1:]  # a view, as crops are
    again = decode(encode(pixels, encoding), kind)
    assert again.dtype == kind.dtype
    assert np.array_equal(again, pixels)


@pytest.mark.parametrize("kind", FORMATS, ids=str)
@pytest.mark.parametrize("encoding", ["jpeg", "png", "webp", "tiff"])
def test_what_an_encoding_holds(encoding: Encoding, kind: PixelFormat) -> None:
    smooth = np.full((16, 24, kind.channels), 0.3 * np.iinfo(kind.dtype).max).astype(kind.dtype)
    if can_hold(encoding, kind):
        again = decode(encode(smooth, encoding), kind)
        assert np.abs(again.astype(int) - smooth).max() <= 2
    else:
        with pytest.raises(ValueError, match=f"{encoding} can't hold {kind}; png and tiff can"):
            encode(smooth, encoding)


def test_more_pixels_than_an_encoding_knows() -> None:
    with pytest.raises(ValueError, match="png"):
        encode(np.zeros((1, 1_000_001, 1), np.uint16), "png")


def test_formats_that_are_none() -> None:
    for channels, bits in ((0, 8), (5, 8), (3, 12)):
        with pytest.raises(ValueError, match="1 to 4 channels of 8 or 16 bits"):
            PixelFormat(channels, bits)


def test_quality_is_used() -> None:
    pixels = noise(PixelFormat(), 64, 64)
    assert len(encode(pixels, "jpeg", 30)) < len(encode(pixels, "jpeg", 95)) / 2
    assert len(encode(pixels, "webp", 30)) < len(encode(pixels, "webp", 95)) / 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    turned = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = Image.fromarray(PHOTO)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose[turned[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(file(stored, "png", exif=exif)), PHOTO)


@pytest.mark.parametrize("orientation", [0, *range(1, 10)])
def test_orientation_is_applied_to_sixteen_bits(orientation: int) -> None:
    """As Pillow applies it to 8 bits; 0 and 9 mean nothing."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(PHOTO)
    stored.info["exif"] = exif.tobytes()
    upright = np.asarray(ImageOps.exif_transpose(stored)).astype(np.uint16) * 257
    deep = PHOTO.astype(np.uint16) * 257
    turned = tiff(deep, photometric="rgb", extratags=[(0x0112, "H", 1, orientation, True)])
    assert np.array_equal(decode(turned, PixelFormat(3, 16)), upright)
    png = encode(deep, "png")
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    for place in (33, len(png) - 12):  # behind the header, and behind the pixels
        assert np.array_equal(decode(png[:place] + chunk(b"eXIf", body) + png[place:], PixelFormat(3, 16)), upright)


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


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw", "tile": (16, 16)}, {"byteorder": ">", "bigtiff": True}], ids=str)
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_tiff_of_sixteen_bits(channels: int, options: dict[str, Any], planar: str) -> None:
    pixels = noise(PixelFormat(channels, 16))
    stored = pixels if planar == "contig" else np.moveaxis(pixels, 2, 0)
    data = tiff(stored, photometric="rgb" if channels > 2 else "minisblack", planarconfig=planar, **options)
    assert np.array_equal(decode(data, PixelFormat(channels, 16)), pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_sixteen_bits(channels: int) -> None:
    pixels = noise(PixelFormat(channels, 16))
    data = bytes(imagecodecs.png_encode(pixels[..., 0] if channels == 1 else pixels))
    assert np.array_equal(decode(data, PixelFormat(channels, 16)), pixels)


def test_bands_of_a_tiff() -> None:
    """Dark is high where the file says so, a fourth band need not be alpha, and colours may be weighted with it."""
    grey, colours = noise(PixelFormat(1, 16)), noise(PixelFormat(4, 16))
    assert np.array_equal(decode(tiff(grey[..., 0], photometric="miniswhite", planarconfig=None), PixelFormat(1, 16)), 65535 - grey)
    infrared = tiff(colours, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(decode(infrared, PixelFormat(3, 16)), colours[..., :3])
    assert np.array_equal(decode(infrared, PixelFormat(4, 16)), colours)
    weighted = tiff(np.array([[[2000, 30000, 0, 30000], [0, 0, 0, 0]]], np.uint16), photometric="rgb", extrasamples=["assocalpha"])
    assert decode(weighted, PixelFormat(4, 16)).tolist() == [[[4369, 65535, 0, 30000], [0, 0, 0, 0]]]


@pytest.mark.parametrize("encoding", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_sixteen_bits_become_eight_by_value(channels: int, encoding: Encoding) -> None:
    pixels = noise(PixelFormat(channels, 16))
    narrow = decode(encode(pixels, encoding), PixelFormat(channels, 8))
    assert np.array_equal(narrow, np.rint(pixels / 257))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_eight_bits_become_sixteen(channels: int) -> None:
    pixels = noise(PixelFormat(channels, 8))
    assert np.array_equal(decode(encode(pixels, "png"), PixelFormat(channels, 16)), pixels.astype(int) * 257)


@pytest.mark.parametrize("kind", FORMATS, ids=str)
@pytest.mark.parametrize("encoding", ["png", "tiff"])
def test_every_format_can_be_looked_at(encoding: Encoding, kind: PixelFormat) -> None:
    """As 8-bit RGB, without alpha: what evaluation and reports ask for."""
    pixels = noise(kind)
    eight = (pixels >> (kind.bits - 8)).astype(float)
    colours, alpha = (eight[..., :-1], eight[..., -1:] / 255) if kind.has_alpha else (eight, 1.0)
    assert np.abs(decode(encode(pixels, encoding)) - (colours * alpha + 255 * (1 - alpha))).max() <= 1.5


def test_colours_become_grey_and_grey_colours() -> None:
    luminance = np.asarray(Image.fromarray(PHOTO).convert("L"))[..., None]
    photo = encode(PHOTO, "png")
    assert np.array_equal(decode(photo, PixelFormat(1)), luminance)
    assert np.array_equal(decode(photo, PixelFormat(2)), np.concatenate([luminance, np.full_like(luminance, 255)], 2))
    assert np.abs(decode(encode(PHOTO.astype(np.uint16) * 257, "tiff"), PixelFormat(1, 16)) / 257 - luminance).max() <= 0.5
    grey = noise(PixelFormat(1, 16))
    assert np.array_equal(decode(encode(grey, "png"), PixelFormat(3, 16)), grey.repeat(3, 2))
    assert np.array_equal(
        decode(encode(noise(PixelFormat(1)), "jpeg"), PixelFormat(1)), decode(encode(noise(PixelFormat(1)), "jpeg"))[..., :1]
    )


def test_transparent_colour_of_sixteen_bits() -> None:
    grey = np.array([[[500], [600]]], np.uint16)
    data = encode(grey, "png")
    data = data[:33] + chunk(b"tRNS", struct.pack(">H", 600)) + data[33:]
    assert decode(data, PixelFormat(2, 16)).tolist() == [[[500, 65535], [600, 0]]]
    assert decode(data, PixelFormat(1, 16)).tolist() == [[[500], [65535]]]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert decode(file(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True))[0, 0].tolist() == [255, 0, 0]


def chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def promised_size(width: int, height: int, bits: int = 8) -> bytes:
    """A PNG whose header promises what its few bytes do not hold."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def promised_tiff(tag: int, value: int, **options: Any) -> bytes:
    """A TIFF of two bands of 16 bits, one number of whose header is another."""
    data = bytearray(tiff(noise(PixelFormat(2, 16)), photometric="minisblack", **options))
    place = data.index(struct.pack("<H", tag), 8)
    struct.pack_into("<HII", data, place + 2, 4, 1, value)
    return bytes(data)


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


DEEP = encode(noise(PixelFormat(3, 16)), "png")
WIDTH, HEIGHT, TILE_WIDTH = 256, 257, 322


@pytest.mark.parametrize("wanted", [PixelFormat(), PixelFormat(4, 16)], ids=str)
@pytest.mark.parametrize(
    ("data", "error_type"),
    [
        (promised_size(20_000, 20_000, 16), "too_large"),
        (promised_size(3_000, 3_000, 16), "truncated"),
        (DEEP[:500], "truncated"),
        (promised_tiff(WIDTH, 100_000_000), "too_large"),
        (promised_tiff(TILE_WIDTH, 16_000_000, tile=(16, 16), compression="zlib"), "too_large"),
        (promised_tiff(WIDTH, 3_000), "truncated"),
        (promised_tiff(HEIGHT, 3_000_000), "truncated"),
        (encode(noise(PixelFormat(2, 16)), "tiff")[:-40], "truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sixteen_bits_that_cannot_be_read_say_why(data: bytes, error_type: str, wanted: PixelFormat) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data, wanted)
    assert (caught.value.error_type, bool(str(caught.value))) == (error_type, True)


def test_headers_of_nonsense() -> None:
    """Each byte of the tables of a TIFF, broken in turn: pixels or an ImageError, never anything else."""
    whole = encode(noise(PixelFormat(4, 16), 4, 4), "tiff")
    for place in range(len(whole)):
        with contextlib.suppress(ImageError):
            assert decode(whole[:place] + b"\xa5" + whole[place + 1 :], PixelFormat(4, 16)).shape[2] == 4


def test_resize() -> None:
    assert resize(PHOTO, 20, 30).shape == (20, 30, 3)
    assert resize(PHOTO, 40, 60) is PHOTO


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_resize_of_every_format(channels: int) -> None:
    """Each band for itself, whatever alpha says; 16 bits as 8."""
    eight = 64 + noise(PixelFormat(channels), 40, 60) // 2
    for height, width in ((20, 33), (70, 90)):
        resized = resize(eight, height, width)
        assert resized.dtype == np.uint8
        for band in range(channels):
            alone = Image.fromarray(eight[..., band]).resize((width, height), Image.Resampling.BICUBIC)
            assert np.array_equal(resized[..., band], np.asarray(alone))
        deep = resize(eight.astype(np.uint16) * 257, height, width)
        assert deep.dtype == np.uint16
        assert np.abs(deep / 257 - resized).max() <= 1.5


def test_resize_of_sixteen_bits_stays_in_range() -> None:
    edge = np.zeros((8, 8, 1), np.uint16)
    edge[4:] = 65535
    column = resize(edge, 16, 8)[:, 0, 0].astype(int)
    assert (column[:6].max(), column[10:].min()) == (0, 65535)  # beside an edge bicubic overshoots
