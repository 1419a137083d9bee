"""The images of a training: decoded once through Ray Data into the object store, or streamed by the workers.

In: the files of both domains. Out: on the driver, what the workers need to know; in a worker, two `Domain`s. Small domains are decoded once
and kept as whole numbers, which all workers of a machine share. Large ones are never held: each worker reads and decodes the images of its
next batches. In both cases a batch follows from seed and position alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from cyclegan.config import Cluster, TrainSettings
from cyclegan.domain import Domain, Images, StreamedImages
from cyclegan.errors import InputError
from cyclegan.geometry import Fit, TrainingSize
from cyclegan.images import PixelFormat, Pixels
from cyclegan.model import generator_spec
from cyclegan.run import Unreadable
from cyclegan.sources import Input
from cyclegan.training_images import UNREADABLE, decode_rows, load_image

log = logging.getLogger(__name__)

_SHARE_OF_STORE = 0.3
"""Domains that fill more of Ray's object store than this are streamed, unless asked otherwise."""
_GROWING_STORE_BYTES = 4e9
"""The same, where machines that don't exist yet will have to hold them."""
_COMPRESSION = 12
"""Bytes of pixels for a byte of a file, about, for images whose size is not known before they are decoded."""


@dataclass(frozen=True)
class TrainData:
    """What a worker needs to make batches; travels to it through Ray.

    Args:
        counts: images of each domain.
        blocks: tables of decoded images in the object store; empty where they are streamed.
        names: of the files to stream, in the object store; None where all is decoded.
        unreadable: files that were left out.
    """

    counts: Mapping[str, int]
    blocks: list[ray.ObjectRef[pa.Table]] = field(default_factory=list)
    names: Mapping[str, ray.ObjectRef[pa.Array]] | None = None
    unreadable: list[Unreadable] = field(default_factory=list)


def prepare_data(files: Mapping[str, list[Input]], settings: TrainSettings, cluster: Cluster) -> TrainData:
    """Decodes both domains, or finds out that they are to be streamed.

    Raises:
        InputError: a domain holds too few images for a step, none that can be read, or some that are too small; or they don't fit.
    """
    wanted = sum(_decoded_bytes(domain, inputs, settings) for domain, inputs in files.items())
    limit = _GROWING_STORE_BYTES if cluster.can_grow else _SHARE_OF_STORE * cluster.object_store_bytes
    cache = settings.data.cache if settings.data.cache != "auto" else "stream" if wanted > limit else "memory"
    if cache == "stream":
        data = _offer_stream(files, settings)
    elif wanted > cluster.object_store_bytes and not cluster.can_grow:
        raise InputError(
            f"--data.cache memory: both domains need about {wanted / 1e9:.1f} GB decoded, Ray's object store has "
            f"{cluster.object_store_bytes / 1e9:.1f} GB; give --data.cache stream"
        )
    else:
        data = _decode_once(files, settings)
    together = settings.max_workers * settings.batch_size
    for domain, count in data.counts.items():
        if count < together:
            raise InputError(
                f"--data.{domain}: {count} images are too few for {settings.max_workers} workers x --batch-size {settings.batch_size}, "
                "which would take some twice in a step; give a smaller batch or fewer workers"
            )
    return data


def open_domains(data: TrainData, settings: TrainSettings) -> tuple[Domain, Domain]:
    """Both domains, in a worker."""
    size = training_size(settings)
    kept: Mapping[str, Images] = _streamed(data.names, settings) if data.names else _collect(data.blocks, settings)
    domain_a, domain_b = (
        Domain(kept[name], seed=(settings.seed, number), size=size, flip=settings.flip) for number, name in enumerate("ab")
    )
    return domain_a, domain_b


def training_size(settings: TrainSettings) -> TrainingSize:
    """How images of any size become what the networks see."""
    fits: Mapping[str, Fit] = {"resize_and_crop": "square", "scale_width_and_crop": "width", "scale_width": "width"}
    crop = settings.size if settings.crops else None
    return TrainingSize(fits.get(settings.preprocess, "keep"), settings.load_size, crop, generator_spec(settings, "a2b").stride)


def pixel_format(settings: TrainSettings, domain: str) -> PixelFormat:
    """How the images of a domain are kept."""
    return PixelFormat(settings.data.channels_a if domain == "a" else settings.data.channels_b, settings.data.bits)


def _decoded_bytes(domain: str, inputs: list[Input], settings: TrainSettings) -> float:
    kind = pixel_format(settings, domain)
    if settings.preprocess == "resize_and_crop":
        return len(inputs) * settings.load_size**2 * kind.channels * kind.bits / 8
    return _COMPRESSION * sum(item.size or 0 for item in inputs) * kind.bits / 8


def _offer_stream(files: Mapping[str, list[Input]], settings: TrainSettings) -> TrainData:
    names = {domain: pa.array([item.uri for item in inputs], pa.large_string()) for domain, inputs in files.items()}
    for domain, kept in _streamed(names, settings).items():
        try:
            kept[0]  # what is wrong with all of them shows now, not after the workers have started
        except InputError as error:
            raise InputError(f"--data.{domain}: {error}") from None
    log.info("images are read when their turn comes; --data.cache memory keeps them")
    return TrainData({domain: len(inputs) for domain, inputs in files.items()}, names={k: ray.put(v) for k, v in names.items()})


def _streamed(names: Mapping[str, Any], settings: TrainSettings) -> dict[str, StreamedImages]:
    size = training_size(settings)
    arrays = {domain: array if isinstance(array, pa.Array) else ray.get(array) for domain, array in names.items()}
    return {
        domain: StreamedImages(array, partial(load_image, kind=pixel_format(settings, domain), size=size), UNREADABLE)
        for domain, array in arrays.items()
    }


def _decode_once(files: Mapping[str, list[Input]], settings: TrainSettings) -> TrainData:
    size, blocks = training_size(settings), []
    for domain, inputs in files.items():
        ids = pa.array(range(len(inputs)), pa.int64())
        table = pa.table({"domain": [domain] * len(inputs), "row_id": ids, "uri": [item.uri for item in inputs]})
        blocks += [table.slice(start, 64) for start in range(0, len(table), 64)]
    kinds = {domain: pixel_format(settings, domain) for domain in files}
    rows = ray.data.from_arrow(blocks).map_batches(partial(decode_rows, kinds=kinds, size=size), batch_format="pyarrow")

    counts = dict.fromkeys(files, 0)
    unreadable: list[Unreadable] = []
    kept: list[ray.ObjectRef[pa.Table]] = []
    tables: Iterable[Any] = rows.iter_batches(batch_size=None, batch_format="pyarrow")
    for table in tables:
        for row in table.select(["domain", "uri", "error", "too_small"]).to_pylist():
            if row["too_small"]:
                raise InputError(f"--data.{row['domain']}: {row['uri']}: {row['error']}")
            if row["error"] is None:
                counts[row["domain"]] += 1
            else:
                unreadable.append(Unreadable(row["domain"], row["uri"], row["error"]))
        # beside the driver, whose end is the job's: on the machine that decoded them they could be lost with it
        kept.append(ray.put(table.select(["domain", "row_id", "pixels", "height", "width"])))
    for domain, count in counts.items():
        failed = [item for item in unreadable if item.domain == domain]
        if count == 0:
            raise InputError(f"--data.{domain}: none of {len(failed)} files can be read; {failed[0].uri}: {failed[0].reason}")
        if failed:
            log.warning("domain %s: %d of %d files can't be read and are left out", domain, len(failed), len(files[domain]))
    return TrainData(counts, blocks=kept, unreadable=unreadable)


def _collect(blocks: list[ray.ObjectRef[pa.Table]], settings: TrainSettings) -> dict[str, list[Pixels]]:
    """The images of each domain in the order of their ids, as views into the object store.

    Every worker draws from the whole of both domains, so it takes the blocks as they are and not through a split of the dataset.
    """
    found: dict[str, dict[int, Any]] = {"a": {}, "b": {}}
    for block in ray.get(blocks):
        columns = (block[name].to_pylist() for name in ("domain", "row_id", "height", "width"))
        for domain, row_id, height, width, value in zip(*columns, block["pixels"], strict=True):
            if value.is_valid:
                kind = pixel_format(settings, domain)
                found[domain][row_id] = np.frombuffer(value.as_buffer(), kind.dtype).reshape(height, width, kind.channels)
    return {domain: [pixels for _, pixels in sorted(rows.items())] for domain, rows in found.items()}
