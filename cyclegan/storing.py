"""The last stage of a translation: the generator's pixels become image files, and go where the sink says.

In: rows of `loading.LOADED_SCHEMA` as the generator gives them. Out: rows of `plan.ROW_SCHEMA`. A photo that can't be encoded is a row with
its reason. Knows no torch, as `loading`.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from cyclegan import images
from cyclegan.errors import StoppedError
from cyclegan.images import Encoding, PixelFormat, Pixels
from cyclegan.ledger import Claim
from cyclegan.loading import Row, failed, unpack
from cyclegan.plan import ROW_SCHEMA
from cyclegan.sinks import Sink


@dataclass(frozen=True)
class Storing:
    """What becomes of the generator's pixels.

    Args:
        gives: what they are.
        alpha_bits: of the photo's own alpha, where it was kept aside.
        encoding: of the pictures.
        quality: likewise.
        restore_size: bring translations back to the size of their photos.
    """

    gives: PixelFormat
    alpha_bits: int
    encoding: Encoding
    quality: int
    restore_size: bool


def store(table: pa.Table, storing: Storing, sink: Sink, claim: Claim | None, *, threads: int) -> pa.Table:
    """Encodes the pixels of each row and puts them away.

    Raises:
        StoppedError: `claim` is not current any more: another run has taken the segment up.
        OSError: the place is full or gone.
    """
    if claim and not claim.is_current():
        raise StoppedError(f"{claim.plan.out}: another job has taken over; this one has stopped, and nothing is lost")
    with ThreadPoolExecutor(threads) as encoders:
        pairs = list(encoders.map(partial(_encode, storing=storing), table.to_pylist()))
    rows = sink.store([row for row, _ in pairs], [data for _, data in pairs])
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def _encode(row: Row, storing: Storing) -> tuple[Row, bytes | None]:
    packed, alpha, exif = (row.pop(name) for name in ("pixels", "alpha", "exif"))
    if row["status"] != "ok":
        return row, None
    started = time.perf_counter()
    gives = storing.gives
    pixels = unpack(packed, row["height"], row["width"], gives)
    if alpha is not None:
        kept = PixelFormat(1, storing.alpha_bits)
        pixels = np.dstack([pixels, _to_bits(unpack(alpha, row["height"], row["width"], kept), gives.bits)])
    if storing.restore_size:
        row |= {"height": row["source_height"], "width": row["source_width"]}
        pixels = images.resize(pixels, row["height"], row["width"])
    try:
        data = images.encode(pixels, storing.encoding, storing.quality, exif=exif)
    except (OSError, ValueError) as error:  # such as more pixels on a side than the format knows
        return failed(row, "not_encodable", error), None
    row["seconds"]["encode"] = time.perf_counter() - started
    return row, data


def _to_bits(pixels: Pixels, bits: int) -> Pixels:
    """8 bits become 16 by a factor of 257, 16 become 8 by the same, rounded."""
    if pixels.itemsize * 8 == bits:
        return pixels
    return pixels.astype(np.uint16) * np.uint16(257) if bits == 16 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
