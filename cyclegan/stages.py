"""What the workers of a translation do, table in and table out.

    load (read, decode, resize) -> Translator (generator) -> encode (encode, put away)

In: rows of the manifest. Out: rows of `plan.ROW_SCHEMA`. In between pixels travel as the bytes of uint8 or uint16 arrays in plain Arrow
columns, so photos of different sizes share a table and nothing is pickled. A photo that can't be read, decoded or encoded is a row with
its reason.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cyclegan import images
from cyclegan.ahead import made_ahead
from cyclegan.errors import StoppedError
from cyclegan.geometry import SizePolicy
from cyclegan.images import Encoding, ImageError, PixelFormat, Pixels, read_photo
from cyclegan.inference import Precision, PreparedGenerator
from cyclegan.ledger import Claim
from cyclegan.plan import ROW_SCHEMA
from cyclegan.sinks import Sink
from cyclegan.sources import Input, InputChangedError, read_input
from cyclegan.weights import Generator

LOADED_SCHEMA = pa.schema(
    [ROW_SCHEMA.field(name) for name in ("row_id", "source_uri", "status", "error_type", "error", "note")]
    + [pa.field(name, pa.large_binary()) for name in ("pixels", "alpha", "exif")]
    + [ROW_SCHEMA.field(name) for name in ("source_width", "source_height", "width", "height", "seconds")]
)
"""Rows between the stages: `pixels` holds (height, width, channels), first as the generator takes them, then as it gives them; `alpha`
(height, width) of the type that the generator gives."""

READERS = 8
"""Threads of a worker that read ahead; what they wait for is the storage."""

CHUNK_BYTES = 64 << 20
"""Pixels that a worker loads before it hands them on."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Loading:
    """What photos become before the generator: its pixels at the size of `policy`; alpha and EXIF aside where they are kept."""

    wanted: PixelFormat
    policy: SizePolicy
    keep_alpha: bool
    keep_exif: bool


@dataclass(frozen=True)
class Recipe:
    """All that workers need to know of a job.

    Args:
        generator: its weights.
        policy: sizes before the generator.
        restore_size: bring translations back to the size of their photos.
        encoding: of the pictures.
        quality: likewise.
        keep_exif: carry date and place over.
        precision: of the generator.
        batch_size: None to find it.
    """

    generator: Generator
    policy: SizePolicy
    restore_size: bool
    encoding: Encoding
    quality: int
    keep_exif: bool
    precision: Precision
    batch_size: int | None

    @property
    def loading(self) -> Loading:
        """The part that `load` needs, without the weights."""
        takes, gives = self.generator.input, self.generator.output
        # around a generator that knows no alpha, where the encoding can hold it
        keep_alpha = not (takes.has_alpha or gives.has_alpha) and images.can_hold(
            self.encoding, PixelFormat(gives.channels + 1, gives.bits)
        )
        return Loading(takes, self.policy, keep_alpha, self.keep_exif)


def load(table: pa.Table, loading: Loading, *, threads: int, apart: bool = False) -> Iterator[pa.Table]:
    """Manifest rows to `LOADED_SCHEMA`, in tables of at most `CHUNK_BYTES` of pixels or of one photo.

    Args:
        table: rows of the manifest.
        loading: what to make of them.
        threads: that decode at the same time.
        apart: decode in another process, so that a photo that kills its process becomes a row as well.
    """
    rows: list[Row] = []
    size = 0
    decode = _DecodingApart(loading) if apart else partial(_decode, loading=loading)
    found = made_ahead(_read, table.to_pylist(), threads=READERS)
    for row in made_ahead(decode, found, threads=1 if apart else threads):
        pixels = len(row.get("pixels") or b"")
        if rows and size + pixels > CHUNK_BYTES:
            yield pa.Table.from_pylist(rows, schema=LOADED_SCHEMA)
            rows, size = [], 0
        rows.append(row)
        size += pixels
    yield pa.Table.from_pylist(rows, schema=LOADED_SCHEMA)


class Translator:
    """Holds the generator and sends loaded rows through it.

    Args:
        recipe: of the job.
        use_gpu: run on this worker's GPU.
        threads: for the CPU.
    """

    def __init__(self, recipe: Recipe, *, use_gpu: bool, threads: int) -> None:
        if not use_gpu:
            torch.set_num_threads(threads)
        device = torch.device("cuda" if use_gpu else "cpu")
        self.takes = recipe.generator.input
        self.generator = PreparedGenerator(
            recipe.generator, device, precision=recipe.precision, batch_size=recipe.batch_size, tile=recipe.policy.tile
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of `LOADED_SCHEMA` in and out, in the format that the generator takes and gives; `pixels` of failed rows stay null."""
        rows = table.to_pylist()
        loaded = [row for row in rows if row["pixels"] is not None]
        photos = [_unpack(row["pixels"], row["height"], row["width"], self.takes) for row in loaded]
        started = time.perf_counter()
        translated = self.generator.translate(photos)
        # a photo's share of the time is its share of the pixels
        seconds_per_pixel = (time.perf_counter() - started) / max(1, sum(photo.size for photo in photos))
        for index, (row, photo, result) in enumerate(zip(loaded, photos, translated, strict=True)):
            row["pixels"] = result.tobytes()
            row["seconds"]["generate"] = seconds_per_pixel * photo.size
            if index in self.generator.tiled:
                row["note"] = "; ".join(filter(None, [row["note"], "translated in tiles"]))
        return pa.Table.from_pylist(rows, schema=LOADED_SCHEMA)


def encode(table: pa.Table, recipe: Recipe, sink: Sink, claim: Claim | None, *, threads: int) -> pa.Table:
    """Rows of `LOADED_SCHEMA` as the generator gives them to `plan.ROW_SCHEMA`: pixels become image files and go where `sink` says.

    Raises:
        StoppedError: `claim` is not current any more: another run has taken the segment up.
        OSError: the place is full or gone.
    """
    if claim and not claim.is_current():
        raise StoppedError(f"{claim.plan.out}: another job has taken over; this one has stopped, and nothing is lost")
    with ThreadPoolExecutor(threads) as encoders:
        pairs = list(encoders.map(partial(_encode, recipe=recipe), table.to_pylist()))
    rows = sink.store([row for row, _ in pairs], [data for _, data in pairs])
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


class Judge:
    """Translates pictures back and says how far they are from the photos that they were made of.

    Args:
        reverse: the generator of the other direction.
        use_gpu: run on this worker's GPU.
    """

    def __init__(self, reverse: Generator, *, use_gpu: bool) -> None:
        self.takes, self.gives = reverse.input, reverse.output
        self.generator = PreparedGenerator(reverse, torch.device("cuda" if use_gpu else "cpu"))

    def __call__(self, table: pa.Table) -> pa.Table:
        """As `translation_report.Rebuild` says; a picture or photo that can't be decoded any more is left out."""
        rows = []
        for row in table.to_pylist():
            try:
                picture, photo = images.decode(row["picture"], self.takes), images.decode(row["source"], self.gives)
            except ImageError:
                continue
            (rebuilt,) = self.generator.translate([picture])
            photo = images.resize(photo, *rebuilt.shape[:2])
            largest = np.iinfo(photo.dtype).max
            error = float(np.abs(rebuilt.astype(np.float32) - photo).mean()) * 255 / largest
            rows.append({"row_id": row["row_id"], "error": error, "rebuilt": images.encode(rebuilt, "png")})
        schema = pa.schema([("row_id", pa.int64()), ("error", pa.float64()), ("rebuilt", pa.large_binary())])
        return pa.Table.from_pylist(rows, schema=schema)


def _read(listed: Row) -> tuple[Row, bytes | None]:
    row: Row = {"row_id": listed.pop("row_id"), "source_uri": listed["uri"], "status": "ok", "seconds": {}}
    started = time.perf_counter()
    try:
        data = read_input(Input(**listed))
    except InputChangedError as error:
        return _failed(row, "input_changed", error), None
    except OSError as error:
        return _failed(row, "unreadable", error), None
    row["seconds"]["read"] = time.perf_counter() - started
    return row, data


def _decode(found: tuple[Row, bytes | None], loading: Loading) -> Row:
    row, data = found
    if data is None:
        return row
    started = time.perf_counter()
    policy = loading.policy
    try:
        photo = read_photo(
            data, loading.wanted, keep_alpha=loading.keep_alpha, keep_exif=loading.keep_exif, shorter_side=policy.shorter_side
        )
        height, width = policy.target(photo.height, photo.width)
        pixels = images.resize(photo.pixels, height, width)
        alpha = None if photo.alpha is None else images.resize(photo.alpha, height, width)
    except ImageError as error:
        return _failed(row, error.error_type, error)
    except MemoryError as error:
        return _failed(row, "too_large", error)
    row |= {"source_height": photo.height, "source_width": photo.width, "height": height, "width": width}
    row |= {"pixels": pixels.tobytes(), "alpha": None if alpha is None else alpha.tobytes(), "exif": photo.exif, "note": photo.note}
    row["seconds"]["decode"] = time.perf_counter() - started
    return row


class _DecodingApart:
    """`_decode` in a process of its own, which is started anew when a photo kills it."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.process = self._start()

    def __call__(self, found: tuple[Row, bytes | None]) -> Row:
        try:
            return self.process.submit(_decode, found, self.loading).result()
        except BrokenProcessPool:
            self.process = self._start()
            return found[0] | {"status": "failed", "error_type": "kills_its_process", "error": "decoding it ends the process that tries"}

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _encode(row: Row, recipe: Recipe) -> tuple[Row, bytes | None]:
    packed, alpha, exif = (row.pop(name) for name in ("pixels", "alpha", "exif"))
    if row["status"] != "ok":
        return row, None
    started = time.perf_counter()
    gives = recipe.generator.output
    pixels = _unpack(packed, row["height"], row["width"], gives)
    if alpha is not None:
        takes = PixelFormat(1, recipe.generator.input.bits)
        pixels = np.dstack([pixels, _to_bits(_unpack(alpha, row["height"], row["width"], takes), gives.bits)])
    if recipe.restore_size:
        row |= {"height": row["source_height"], "width": row["source_width"]}
        pixels = images.resize(pixels, row["height"], row["width"])
    try:
        data = images.encode(pixels, recipe.encoding, recipe.quality, exif=exif)
    except (OSError, ValueError) as error:  # such as more pixels on a side than the format knows
        return _failed(row, "not_encodable", error), None
    row["seconds"]["encode"] = time.perf_counter() - started
    return row, data


def _to_bits(pixels: Pixels, bits: int) -> Pixels:
    """8 bits become 16 by a factor of 257, 16 become 8 by the same, rounded."""
    if pixels.itemsize * 8 == bits:
        return pixels
    return pixels.astype(np.uint16) * np.uint16(257) if bits == 16 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _unpack(packed: Any, height: int, width: int, pixels: PixelFormat) -> Pixels:
    """Pixels from the bytes of their array, in whatever buffer those are."""
    return np.frombuffer(packed, pixels.dtype).reshape(height, width, pixels.channels)


def _failed(row: Row, error_type: str, error: BaseException) -> Row:
    return row | {"status": "failed", "error_type": error_type, "error": str(error) or type(error).__name__}
