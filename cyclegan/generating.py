"""The middle stage of a translation: loaded pixels through the generator; and the judge, who sends some of them back.

In and out: rows of `loading.LOADED_SCHEMA`, in the format that the generator takes, then in the one that it gives.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from cyclegan import images
from cyclegan.geometry import SizePolicy
from cyclegan.images import Encoding, ImageError, PixelFormat
from cyclegan.inference import Precision, PreparedGenerator
from cyclegan.loading import LOADED_SCHEMA, Loading, unpack
from cyclegan.storing import Storing
from cyclegan.weights import Generator


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
        """What comes before the generator, without its weights."""
        takes, gives = self.generator.input, self.generator.output
        # around a generator that knows no alpha, where the encoding can hold it
        keep_alpha = not (takes.has_alpha or gives.has_alpha) and images.can_hold(
            self.encoding, PixelFormat(gives.channels + 1, gives.bits)
        )
        return Loading(takes, self.policy, keep_alpha, self.keep_exif)

    @property
    def storing(self) -> Storing:
        """What comes after it."""
        return Storing(self.generator.output, self.generator.input.bits, self.encoding, self.quality, self.restore_size)


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
        photos = [unpack(row["pixels"], row["height"], row["width"], self.takes) for row in loaded]
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
