"""Files of a training become pixels: what the tasks that decode a domain run, and the workers that stream one.

In: URIs. Out: pixels (H, W, C) of 8 or 16 bits, prepared for cropping. Knows no torch, so that the tasks are there in a second.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from cyclegan import images
from cyclegan.geometry import TooSmallError, TrainingSize
from cyclegan.images import ImageError, PixelFormat, Pixels
from cyclegan.sources import read

UNREADABLE = (OSError, ImageError)
"""What `load_image` raises for a file that a training does without."""


def load_image(uri: str, kind: PixelFormat, size: TrainingSize) -> Pixels:
    """Reads, decodes and resizes an image.

    Raises:
        OSError, ImageError: it can't be read.
        TooSmallError: it is smaller than the crop.
    """
    return size.prepare(images.decode(read(uri), kind))


def decode_rows(table: pa.Table, kinds: Mapping[str, PixelFormat], size: TrainingSize) -> pa.Table:
    """Adds `pixels` (the bytes of an array (height, width, C)) with their `height` and `width`, or `error`."""
    rows = []
    for row in table.to_pylist():
        row |= {"pixels": None, "height": None, "width": None, "error": None, "too_small": False}
        try:
            pixels = load_image(row["uri"], kinds[row["domain"]], size)
            row |= {"pixels": pixels.tobytes(), "height": pixels.shape[0], "width": pixels.shape[1]}
        except TooSmallError as error:
            row |= {"error": str(error), "too_small": True}
        except UNREADABLE as error:
            row |= {"error": str(error) or type(error).__name__}
        rows.append(row)
    decoded = [
        ("pixels", pa.large_binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("error", pa.string()),
        ("too_small", pa.bool_()),
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([*table.schema, *(pa.field(*column) for column in decoded)]))
