"""Ray Data streams photos through a trained generator into Parquet.

In: `TranslateSettings`. Out: the folder OUT of the design, its rows as in `plan.ROW_SCHEMA`.

    manifest -> load (read, decode, prepare: CPU) -> Translator (generator: GPU or CPU) -> encode -> Parquet

Between the stages pixels travel as the bytes of uint8 or uint16 arrays in plain Arrow columns, so photos of different sizes share a block
and nothing is pickled. A photo that can't be read, decoded or encoded is a row with its reason.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import platform
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

import cyclegan
from cyclegan import images, report, storage
from cyclegan.config import Cluster, TranslateSettings
from cyclegan.errors import InputError
from cyclegan.geometry import SizePolicy, from_unit_range, pad_to_multiple, to_unit_range
from cyclegan.images import Encoding, ImageError, PixelFormat, Pixels
from cyclegan.plan import ROW_SCHEMA, Plan, Segment, commit, find_plan, make_plan, summarise
from cyclegan.progress import duration, every
from cyclegan.sources import list_inputs, read, relative_name
from cyclegan.weights import Generator, load_generator

log = logging.getLogger(__name__)

LOADED_SCHEMA = pa.schema(
    [ROW_SCHEMA.field(name) for name in ("row_id", "source_uri", "status", "error_type", "error")]
    + [pa.field("pixels", pa.large_binary())]
    + [ROW_SCHEMA.field(name) for name in ("source_width", "source_height", "width", "height")]
)
"""Rows between the stages: `pixels` holds (height, width, channels), first as the generator takes them, then as it gives them."""

SHEET_PAIRS = 8
"""Before-and-after pairs in the report."""

Row = dict[str, Any]


@dataclass(frozen=True)
class TranslateJob:
    """A translation that can begin or go on: its settings, its generator and its plan."""

    settings: TranslateSettings
    generator: Generator
    policy: SizePolicy
    plan: Plan


@dataclass(frozen=True)
class TranslateResult:
    """Where a translation stands: its folder and the content of its summary.json."""

    out: str
    summary: dict[str, Any]

    @property
    def failed_share(self) -> float:
        """Failed photos among those done."""
        failed, done = int(self.summary["failed"]), int(self.summary["done"])
        return failed / max(1, done)


def prepare(settings: TranslateSettings) -> TranslateJob:
    """Finds all that can be found wrong without Ray, and writes the plan or takes up the one that OUT holds.

    Raises:
        InputError: no generator, an encoding that can't hold its pixels, an empty source, an OUT of another job. Nothing has been
            written then.
    """
    out, source = storage.absolute(settings.out), storage.absolute(settings.source)
    generator = load_generator(settings.generator, settings.direction)
    if not images.can_hold(settings.encoding, generator.output):
        raise InputError(f"--encoding {settings.encoding}: can't hold {generator.output}; give --encoding png or tiff")
    policy = SizePolicy.parse(settings.size or f"resize:{generator.size}")
    request = describe_request(settings, generator, policy)
    plan = find_plan(out, request, source)
    if plan is None:
        inputs = list_inputs(source)
        first = next(inputs)  # an empty source is found before anything is written
        plan = make_plan(out, request, source, itertools.chain([first], inputs), settings.segment_rows)
    return TranslateJob(settings, generator, policy, plan)


def translate(job: TranslateJob, cluster: Cluster) -> TranslateResult:
    """Translates every input of the plan that is not committed yet.

    Raises:
        InputError: too few GPUs.
    """
    settings, plan = job.settings, job.plan
    use_gpu = cluster.use_gpu(settings.gpu, settings.generators or 1)
    copies = settings.generators or (max(1, int(cluster.gpus)) if use_gpu else 1)
    for segment in plan.open_segments():
        started = time.monotonic()
        storage.remove_folder(plan.data_path(segment))
        with every(10, Progress(plan, segment)):
            _run_segment(job, segment, cluster=cluster, use_gpu=use_gpu, copies=copies)
        record = commit(plan, segment, time.monotonic() - started)
        log.info(
            "segment %d of %d: %d ok, %d failed, %.1f images/s",
            segment.number + 1, len(plan.segments), record["ok"], record["failed"], record["rows"] / record["seconds"],
        )  # fmt: skip
    summary = summarise(plan)
    _write_report(plan, summary)
    return TranslateResult(plan.out, summary)


def describe_request(settings: TranslateSettings, generator: Generator, policy: SizePolicy) -> dict[str, Any]:
    """All that decides the translated pixels; two runs into one OUT must agree on it."""
    return {
        "generator_sha256": generator.sha256,
        "direction": generator.direction,
        "size": str(policy),
        "format": settings.format,
        "encoding": settings.encoding,
        "quality": settings.quality if settings.encoding in ("jpeg", "webp") else None,
        "cyclegan": cyclegan.__version__,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "machine": platform.machine(),
    }


def load(table: pa.Table, policy: SizePolicy, wanted: PixelFormat) -> pa.Table:
    """Manifest rows to `LOADED_SCHEMA`: reads and decodes each input as `wanted` and brings it to its target size."""
    rows = [_load_row(row["row_id"], row["uri"], policy, wanted) for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, schema=LOADED_SCHEMA)


class Translator:
    """Holds the generator and sends batches of loaded rows through it, photos of one size together.

    Args:
        generator: its weights.
        use_gpu: run on this worker's GPU.
        threads: for the CPU.
    """

    def __init__(self, generator: Generator, use_gpu: bool, threads: int) -> None:
        self.stride = generator.spec.stride
        self.input, self.output = generator.input, generator.output
        self.device = torch.device("cuda" if use_gpu else "cpu")
        if not use_gpu:
            torch.set_num_threads(threads)
        self.network = generator.build().to(self.device).to(memory_format=torch.channels_last)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of `LOADED_SCHEMA` in and out, in the format that the generator takes and gives; `pixels` of failed rows stay null."""
        heights, widths = table["height"].to_pylist(), table["width"].to_pylist()
        pixels: list[bytes | None] = [None] * len(table)
        groups: dict[tuple[int, ...], list[tuple[int, Pixels]]] = defaultdict(list)
        for index, value in enumerate(table["pixels"]):
            if value.is_valid:
                photo = _unpack(value.as_buffer(), heights[index], widths[index], self.input)
                padded = pad_to_multiple(photo, self.stride)
                groups[padded.shape].append((index, padded))
        for members in groups.values():
            translated = self.translate(np.stack([photo for _, photo in members]))
            for (index, _), photo in zip(members, translated, strict=True):
                pixels[index] = photo[: heights[index], : widths[index]].tobytes()
        return table.set_column(table.schema.get_field_index("pixels"), "pixels", pa.array(pixels, pa.large_binary()))

    def translate(self, photos: Pixels) -> Pixels:
        """(N, H, W, channels) as the generator takes them to what it makes of them; H and W multiples of its stride."""
        with torch.inference_mode():
            batch = torch.from_numpy(photos).to(self.device).permute(0, 3, 1, 2)  # NHWC in memory is channels_last
            translated = self.network(to_unit_range(batch))
            result: Pixels = from_unit_range(translated, self.output.bits).permute(0, 2, 3, 1).cpu().numpy()
        return result


def encode_rows(table: pa.Table, base: str, encoding: Encoding, quality: int, pixels: PixelFormat) -> pa.Table:
    """Rows of `LOADED_SCHEMA` with such `pixels` to `plan.ROW_SCHEMA`: they become the bytes of an image file."""
    rows = [_encode_row(row, base, encoding, quality, pixels) for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


class Progress:
    """Says on the driver how many rows of a segment are on disk, from the footers of its files."""

    def __init__(self, plan: Plan, segment: Segment) -> None:
        self.plan = plan
        self.segment = segment
        self.started = time.monotonic()
        self._rows: dict[str, int] = {}

    def __call__(self) -> None:
        """Logs rows done, the rate and the time left, as soon as there is a first file."""
        filesystem, folder = storage.open_filesystem(self.plan.data_path(self.segment))
        for path in filesystem.glob(f"{folder}/*.parquet"):
            if path not in self._rows:
                with filesystem.open(path) as file, contextlib.suppress(pa.ArrowInvalid):  # a file that is not finished
                    self._rows[path] = pq.read_metadata(file).num_rows
        if done := sum(self._rows.values()):
            rate = done / (time.monotonic() - self.started)
            left = duration((self.segment.rows - done) / rate)
            total = self.segment.first_row_id + done
            log.info("%d of %d images  %.1f images/s  %s left in this segment", total, self.plan.rows, rate, left)


def _run_segment(job: TranslateJob, segment: Segment, *, cluster: Cluster, use_gpu: bool, copies: int) -> None:
    settings, plan = job.settings, job.plan
    filesystem, manifest = storage.open_arrow_filesystem(plan.manifest_path(segment))
    _, out = storage.open_arrow_filesystem(plan.data_path(segment))
    # enough blocks for every CPU, few enough rows in each that the first files come soon
    rows_per_block = max(settings.batch_size, min(256, segment.rows // max(1, int(cluster.cpus) * 2)))
    threads = max(1, (os.cpu_count() or 1) // copies)
    # no num_cpus for load and encode: with equal resources Ray fuses encoding with writing, so a block is on disk once translated
    (
        ray.data.read_parquet(manifest, filesystem=filesystem)
        .repartition(target_num_rows_per_block=rows_per_block)
        .map_batches(partial(load, policy=job.policy, wanted=job.generator.input), batch_format="pyarrow", batch_size=settings.batch_size)
        .map_batches(
            Translator,
            batch_format="pyarrow",
            batch_size=settings.batch_size,
            compute=ray.data.ActorPoolStrategy(size=copies),
            num_gpus=1 if use_gpu else 0,
            # on a CPU the generator's threads share the machine with decoding and encoding
            num_cpus=0 if use_gpu else 1,
            fn_constructor_kwargs={"generator": job.generator, "use_gpu": use_gpu, "threads": threads},
        )
        .map_batches(
            partial(encode_rows, base=plan.base, encoding=settings.encoding, quality=settings.quality, pixels=job.generator.output),
            batch_format="pyarrow",
            batch_size=settings.batch_size,
        )
        .write_parquet(out, filesystem=filesystem)
    )


def _load_row(row_id: int, uri: str, policy: SizePolicy, wanted: PixelFormat) -> Row:
    row: Row = {"row_id": row_id, "source_uri": uri, "status": "ok"}
    try:
        photo = images.decode(read(uri), wanted)
        target = policy.apply(photo)
    except OSError as error:
        return _failed(row, "unreadable", error)
    except ImageError as error:
        return _failed(row, error.error_type, error)
    row |= {"source_height": photo.shape[0], "source_width": photo.shape[1]}
    return row | {"height": target.shape[0], "width": target.shape[1], "pixels": target.tobytes()}


def _encode_row(row: Row, base: str, encoding: Encoding, quality: int, pixels: PixelFormat) -> Row:
    packed = row.pop("pixels")
    if row["status"] != "ok":
        return row
    try:
        data = images.encode(_unpack(packed, row["height"], row["width"], pixels), encoding, quality)
    except (OSError, ValueError) as error:  # such as more pixels on a side than the format knows
        return _failed(row, "not_encodable", error)
    name = PurePosixPath(relative_name(row["source_uri"], base))
    return row | {"image": {"bytes": data, "path": str(name.with_suffix(images.SUFFIXES[encoding]))}}


def _unpack(packed: Any, height: int, width: int, pixels: PixelFormat) -> Pixels:
    """Pixels from the bytes of their array, in whatever buffer those are."""
    return np.frombuffer(packed, pixels.dtype).reshape(height, width, pixels.channels)


def _failed(row: Row, error_type: str, error: Exception) -> Row:
    return row | {"status": "failed", "error_type": error_type, "error": str(error) or type(error).__name__}


def translated_pairs(out: str) -> Iterator[tuple[str, Pixels, Pixels]]:
    """Translated photos beside their sources, in the order of the files: (path, source, translation), both to be looked at: 8-bit RGB."""
    filesystem, folder = storage.open_filesystem(storage.join(out, "data"))
    for path in sorted(filesystem.glob(f"{folder}/*/*.parquet")):
        with filesystem.open(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(16, columns=["status", "source_uri", "image"]):
                for row in batch.to_pylist():
                    if row["status"] == "ok":
                        source = images.decode(read(row["source_uri"]))
                        yield row["image"]["path"], source, images.decode(row["image"]["bytes"])


def _write_report(plan: Plan, summary: dict[str, Any]) -> None:
    pairs = list(itertools.islice(translated_pairs(plan.out), SHEET_PAIRS))
    facts = {name.replace("_", " "): value for name, value in summary.items() if not isinstance(value, dict)}
    sections = [report.Section(heading="Totals", facts=facts)]
    if summary["error_types"]:
        sections.append(report.Section(heading="Failures by type", facts=summary["error_types"]))
    if pairs:
        sheet = report.sheet([[before for _, before, _ in pairs], [after for _, _, after in pairs]], cell=256)
        sections.append(report.Section(heading="Before and after", figures=[report.Figure("Sources above, translations below.", sheet)]))
    sections.append(report.Section(heading="Plan", code=json.dumps({"source": plan.source, **plan.request}, indent=2)))
    storage.write_text(storage.join(plan.out, "report.html"), report.page(f"Translation: {plan.out}", sections))
