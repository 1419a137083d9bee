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

from cyclegan.colour import SRGB
from cyclegan.images import MAX_PIXELS, Encoding, ImageError, PixelFormat, Pixels, can_hold, decode, encode, read_photo, resize

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
    pixels = noise(PixelFormat(), 128, 128)
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
    assert decode(file(Image.fromarray(ramp), "png"))[0, :, 0].tolist() == np.rint(ramp[0] / 257).tolist()


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
    eight = pixels / (257 if kind.bits == 16 else 1)
    colours, alpha = (eight[..., :-1], eight[..., -1:] / 255) if kind.has_alpha else (eight, 1.0)
    assert np.abs(decode(encode(pixels, encoding)) - (colours * alpha + 255 * (1 - alpha))).max() <= 0.51


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


def promised_size(width: int, height: int, bits: int = 8, colours: int = 2) -> bytes:
    """A PNG whose header promises what its few bytes do not hold."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def promised_tiff(tag: int, value: int, bits: int = 16, **options: Any) -> bytes:
    """A TIFF of two bands, one number of whose header is another."""
    data = bytearray(tiff(noise(PixelFormat(2, bits)), photometric="minisblack", **options))
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
        (promised_size(13_000, 13_000), "too_large"),
        (promised_size(12_000, 12_000), "truncated"),
        (file(Image.new("RGB", (70, 70)), "webp")[:40], "truncated"),
        (file(Image.new("RGB", (70, 70)), "avif")[:60], "truncated"),
        (file(Image.new("RGB", (70, 70)), "bmp")[:-9], "truncated"),
        (file(Image.new("RGB", (70, 70)), "gif")[:12], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not_an_image"),
        (tiff(np.zeros((9, 9, 3), np.uint64), photometric="rgb"), "unsupported_mode"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported_mode"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_says_why(data: bytes, error_type: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert (caught.value.error_type, bool(str(caught.value))) == (error_type, True)


@pytest.mark.parametrize(
    ("data", "seems"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"\xef\xbb\xbf  \n<HTML><head>", "an HTML page"),
        (b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchKey</Code></Error>', "an XML document"),
        (b'<?xml version="1.0"?><svg width="9" height="9"/>', "SVG"),
        (b'{"error": "gone"}', "JSON"),
        (b"just\nsome words", "text, not an image: 'just some words'"),
        ("b\u00e4ume\n".encode() * 200, "text"),
        (b"%PDF-1.7", "a PDF"),
        (b"PK\x03\x04....", "a ZIP archive"),
        (b"\0\0\0\x18ftypisom....", "a video"),
        (b"\x07\x91\x00\xff" * 9, "no known image format"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(data: bytes, seems: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.error_type == "not_an_image"
    assert str(caught.value).startswith(seems)
    assert len(str(caught.value).splitlines()) == 1


def test_content_decides_not_the_kind_that_a_name_would_say() -> None:
    for kind in ("jpeg", "png", "webp", "avif", "tiff", "bmp", "gif", "jpeg2000", "ico"):
        flat = Image.new("RGB", (48, 32), (200, 100, 50)).quantize(4) if kind == "gif" else Image.new("RGB", (48, 32), (200, 100, 50))
        assert np.abs(decode(file(flat, kind)).astype(int) - [200, 100, 50]).max() <= 3, kind


@pytest.mark.parametrize("kind", ["gif", "webp", "avif", "png", "tiff"])
def test_an_animation_says_that_it_is_one(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    assert read_photo(file(frames[0], kind, save_all=True, append_images=frames[1:])).note == "first of 3 frames"
    assert read_photo(file(frames[0], kind)).note is None


def test_pages_of_sixteen_bits_say_so_too() -> None:
    assert read_photo(tiff(noise(PixelFormat(3, 16))[None].repeat(2, 0), photometric="rgb")).note == "first of 2 frames"


def test_a_camera_s_second_picture_is_no_frame() -> None:
    assert read_photo(file(Image.new("RGB", (16, 16)), "mpo", save_all=True, append_images=[Image.new("RGB", (8, 8))])).note is None


@pytest.mark.parametrize("kind", [PixelFormat(4), PixelFormat(2), PixelFormat(4, 16), PixelFormat(2, 16)], ids=str)
@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_is_kept_apart(kind: PixelFormat, bits: int) -> None:
    pixels = noise(kind)
    photo = read_photo(encode(pixels, "png"), PixelFormat(kind.channels - 1, bits), keep_alpha=True)
    alone = [
        decode(encode(np.ascontiguousarray(part), "png"), PixelFormat(part.shape[2], bits)) for part in (pixels[..., :-1], pixels[..., -1:])
    ]
    assert photo.alpha is not None
    assert np.array_equal(photo.pixels, alone[0])
    assert np.array_equal(photo.alpha, alone[1])
    assert not np.array_equal(decode(encode(pixels, "png"), PixelFormat(kind.channels - 1, bits)), alone[0])  # composited


def test_alpha_is_none_where_it_is_not_asked_opaque_or_in_the_pixels() -> None:
    pixels = noise(PixelFormat(4))
    assert read_photo(encode(pixels, "png")).alpha is None
    assert read_photo(encode(pixels, "png"), PixelFormat(4), keep_alpha=True).alpha is None
    pixels[..., 3] = 255
    assert read_photo(encode(pixels, "png"), keep_alpha=True).alpha is None


def test_alpha_is_turned_with_the_colours() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = noise(PixelFormat(4))
    photo = read_photo(encode(pixels, "png", exif=exif.tobytes()), keep_alpha=True)
    assert photo.alpha is not None
    assert (photo.height, photo.width) == photo.alpha.shape[:2] == (31, 20)
    assert np.array_equal(np.rot90(np.dstack([photo.pixels, photo.alpha])), pixels)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_is_decoded_smaller(mode: str) -> None:
    """As large as resizing needs, upright, and of the same colours; the size is the file's."""
    small = Image.fromarray(PHOTO).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    large = file(small.resize((1200, 800), Image.Resampling.BICUBIC), "jpeg", quality=95, exif=exif)
    whole, photo = decode(large), read_photo(large, shorter_side=90)
    assert photo.pixels.shape == (300, 200, 3)
    assert (photo.height, photo.width) == whole.shape[:2] == (1200, 800)
    assert np.abs(resize(photo.pixels, 135, 90).astype(int) - resize(whole, 135, 90)).mean() < 1
    assert read_photo(large, shorter_side=401).pixels.shape == whole.shape


def test_other_formats_are_decoded_whole() -> None:
    assert read_photo(encode(PHOTO, "png"), shorter_side=4).pixels.shape == PHOTO.shape


def test_a_profile_counts_at_reduced_scale() -> None:
    """Of a file whose first values are blue and last are red."""
    swapped = SRGB.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    large = Image.fromarray(PHOTO[..., ::-1]).resize((600, 400))
    photo = read_photo(file(large, "jpeg", quality=95, icc_profile=swapped), shorter_side=50)
    assert photo.pixels.shape == (100, 150, 3)
    assert np.abs(resize(photo.pixels, 40, 60).astype(int) - PHOTO).mean() < 2


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
        (promised_tiff(HEIGHT, 2_000_000), "truncated"),
        (promised_tiff(HEIGHT, 2_000_000, bits=8), "truncated"),
        (encode(noise(PixelFormat(2, 16)), "tiff")[:-40], "truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sixteen_bits_that_cannot_be_read_say_why(data: bytes, error_type: str, wanted: PixelFormat) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data, wanted)
    assert (caught.value.error_type, bool(str(caught.value))) == (error_type, True)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_tiles_have_two_widths(bits: int) -> None:
    """No number that could be compared with the largest."""
    data = tiff(noise(PixelFormat(2, bits), 4, 4), photometric="minisblack", tile=(16, 16))
    place = data.index(struct.pack("<H", TILE_WIDTH), 8)
    broken = data[: place + 4] + struct.pack("<I", 2) + data[place + 8 :]
    with contextlib.suppress(ImageError):
        assert decode(broken).shape == (4, 4, 3)


def icon(width: int) -> bytes:
    """An icon of 16 pixels, as its header has it, whose picture is far larger."""
    picture = promised_size(width, width)
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


@pytest.mark.parametrize(
    "data",
    [
        icon(20_000),
        promised_tiff(WIDTH, 80_000_000),
        promised_tiff(TILE_WIDTH, 16_000_000, bits=8, tile=(16, 16), compression="zlib"),
        file(Image.new("RGB", (16, 16)), "gif")[:10] + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08",
        file(Image.new("RGB", (16, 16)), "avif").replace(struct.pack(">II", 16, 16), struct.pack(">II", 12_000, 12_000)),
        promised_size(9_000, 9_000, 16, colours=6),
    ],
    ids=["icon", "tiff of 16 bits", "tile of a tiff", "gif", "avif", "png of 16 bits"],
)
@pytest.mark.parametrize("shorter_side", [None, 8])
def test_more_than_may_be_decoded_is_refused_before_it_is(data: bytes, shorter_side: int | None) -> None:
    with pytest.raises(ImageError) as caught:
        read_photo(data, shorter_side=shorter_side)
    assert caught.value.error_type == "too_large"


def test_what_is_wanted_counts_too() -> None:
    for wanted, error_type in ((PixelFormat(), "truncated"), (PixelFormat(3, 16), "too_large")):
        with pytest.raises(ImageError) as caught:
            decode(promised_size(9_000, 9_000), wanted)
        assert caught.value.error_type == error_type


def test_rows_count_where_they_are_narrow() -> None:
    with pytest.raises(ImageError, match="1x100000000 pixels"):
        decode(promised_size(1, 100_000_000))


def test_a_huge_jpeg_is_refused_even_at_reduced_scale() -> None:
    data = bytearray(encode(PHOTO, "jpeg"))
    place = data.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", data, place, 13_000, MAX_PIXELS // 13_000 + 1)
    with pytest.raises(ImageError, match="at most"):
        read_photo(bytes(data), shorter_side=8)


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
