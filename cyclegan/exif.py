"""EXIF: how a photo was held, and the part of the block that goes on to what becomes of it: when and where it was taken.

A broken block says nothing about the pixels: it counts as none.
"""

from __future__ import annotations

from PIL import Image
from PIL.ExifTags import IFD, Base

_LARGEST = 60_000
"""Bytes; a JPEG has room for 65,533, and a date and a place need some hundred."""

_TIMES = (
    *(Base.DateTimeOriginal, Base.DateTimeDigitized, Base.OffsetTime, Base.OffsetTimeOriginal, Base.OffsetTimeDigitized),
    *(Base.SubsecTime, Base.SubsecTimeOriginal, Base.SubsecTimeDigitized),
)


def orientation_of(exif: Image.Exif) -> int:
    """1 to 8; 1 where it is not said, or not understood."""
    try:
        orientation = exif.get(Base.Orientation, 1)
    except Exception:  # values are parsed as they are asked for
        return 1
    return orientation if orientation in range(1, 9) else 1


def date_and_place(exif: Image.Exif) -> bytes | None:
    """An EXIF block, from `Exif` on, of nothing but the times and the GPS directory; None where there are neither."""
    try:
        kept = Image.Exif()
        if Base.DateTime in exif:
            kept[Base.DateTime] = exif[Base.DateTime]
        times = exif.get_ifd(IFD.Exif)
        if chosen := {tag: times[tag] for tag in _TIMES if tag in times}:
            kept[IFD.Exif] = chosen
        if place := exif.get_ifd(IFD.GPSInfo):
            kept[IFD.GPSInfo] = place
        block = kept.tobytes() if len(kept) else None
    except Exception:  # whatever the bytes provoke
        return None
    return block if block and len(block) <= _LARGEST else None
