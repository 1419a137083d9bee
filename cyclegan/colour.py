"""Colours of whatever a file holds to sRGB: modes of Pillow, ICC profiles.

In: an image that Pillow has decoded, or values of 16 bits. Out: grey or sRGB pixels, with alpha where the file has any. A profile describes
the colours, never the alpha beside them and never the indices of a palette. One that is broken, or of another colour space than the pixels,
is passed over, as viewers do; without one, grey and RGB are taken as sRGB, LAB as CIE L*a*b* of D50, CMYK as Pillow does it. Colours are
mapped perceptually. For whatever is no matrix and curves, littlecms would look colours up in a coarse table of its own: off by up to 13 of
255, and by 20 with 16 bits. It is told to compute each.
"""

from __future__ import annotations

import functools
import io

import imagecodecs
import numpy as np
from PIL import Image, ImageCms

from cyclegan.pixels import Pixels, Source

_SRGB = ImageCms.createProfile("sRGB")
_LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def _constant_profile() -> bytes:
    """The profile without the time at which littlecms made it: what is written depends on the pixels alone."""
    profile = ImageCms.ImageCmsProfile(_SRGB).tobytes()
    return profile[:24] + bytes([0x07, 0xD0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]) + profile[36:]  # 2000-01-01


SRGB = _constant_profile()
"""The ICC profile of colours that are written; about 600 bytes, the same in every process."""


def source(image: Image.Image) -> Source:
    """What Pillow has decoded, of any mode with 8 bits or fewer, whose rows are grey or sRGB, with alpha where there is any."""

    def rows(top: int, bottom: int) -> Pixels:
        is_whole = (top, bottom) == (0, image.height)
        return _to_srgb(image if is_whole else image.crop((0, top, image.width, bottom)))

    return Source(image.height, image.width, rows)


def of_sixteen_bits(colours: Pixels, profile: bytes | None) -> Pixels:
    """Values (H, W, 1 or 3) of 16 bits in sRGB: (H, W, 3), or as they are where no profile says that they mean something else."""
    mode, space = ("L", "gray") if colours.shape[2] == 1 else ("RGB", "rgb")
    if not profile or _transform(profile, mode) is None:
        return colours
    return np.asarray(
        imagecodecs.cms_transform(
            np.ascontiguousarray(colours[..., 0] if mode == "L" else colours),
            profile,
            SRGB,
            colorspace=space,
            outcolorspace="rgb",
            outdtype="u2",
            flags=imagecodecs.CMS.FLAGS.NOOPTIMIZE,
        )
    )


def _to_srgb(image: Image.Image) -> Pixels:
    """Any mode of 8 bits or fewer as pixels of 8 bits."""
    colours, alpha = _split(image)
    profile = image.info.get("icc_profile")
    transform = _transform(profile, colours.mode) if isinstance(profile, bytes) else None
    if transform is None and colours.mode == "LAB":
        transform = _transform(_LAB, "LAB")
    if transform is not None:
        colours = transform.apply(colours)
    elif colours.mode not in ("L", "RGB"):
        colours = colours.convert("RGB")
    values = np.asarray(colours).reshape(image.height, image.width, -1)
    return values if alpha is None else np.dstack([values, np.asarray(alpha)])


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, of a mode that a profile can describe, and the alpha beside them, if any."""
    if image.mode in ("La", "RGBa"):  # weighted with alpha; Pillow knows one way back for each
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    elif image.mode not in ("LA", "RGBA") and image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    if image.mode in ("LA", "RGBA"):
        return image.convert(image.mode[:-1]), image.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


@functools.lru_cache(maxsize=8)  # building one takes longer than decoding a small photo, and a folder's photos come from few cameras
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where it can't be applied to such pixels, or changes no value by more than 1 of 255."""
    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        flags = ImageCms.Flags.NONE if described.profile.is_matrix_shaper else ImageCms.Flags.NOOPTIMIZE
        transform = ImageCms.buildTransform(described, _SRGB, mode, "RGB", flags=flags)
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode not in ("L", "RGB"):
        return transform
    steps = np.arange(0, 256, 15).astype(np.uint8)
    probe = steps[None] if mode == "L" else np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    moved = np.asarray(transform.apply(Image.fromarray(probe))).astype(int) - probe.reshape(1, steps.size ** len(mode), -1)
    return transform if np.abs(moved).max() > 1 else None
