"""Ray Data compares translated images with their true counterparts.

In: `EvaluateSettings`: an OUT of jobs.translate or a folder of images, and the folder with the truth. Out: means over all pairs of
the mean absolute error (0 to 255), PSNR (dB) and SSIM (at most 1), with how many pairs were found, missing and unreadable.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray.data
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from cyclegan import images, storage
from cyclegan.config import EvaluateSettings
from cyclegan.errors import InputError
from cyclegan.images import Pixels
from cyclegan.plan import Plan, manifest_table, open_plan
from cyclegan.sinks import read_picture
from cyclegan.sources import Input, base_of, list_inputs, read_input, relative_name

PAIR_SCHEMA = pa.schema(
    [
        pa.field("status", pa.string()),
        pa.field("mean_absolute_error", pa.float64()),
        pa.field("mean_squared_error", pa.float64()),
        pa.field("ssim", pa.float64()),
    ]
)


@dataclass(frozen=True)
class EvaluateJob:
    """An evaluation that can begin: its settings, and where the truth of each name is."""

    settings: EvaluateSettings
    truth: dict[str, Input]


@dataclass(frozen=True)
class PairedResult:
    """Means over `pairs` pairs; `missing` had no counterpart in the truth, `unreadable` could not be decoded or had failed."""

    pairs: int
    missing: int
    unreadable: int
    mean_absolute_error: float
    psnr: float
    ssim: float


def prepare(settings: EvaluateSettings) -> EvaluateJob:
    """Finds what can be found wrong without Ray.

    Raises:
        InputError: a folder is missing or empty.
    """
    if not settings.paired:
        raise InputError("--paired is required: only images with a known counterpart can be compared so far")
    next(list_inputs(settings.generated))
    base = base_of(settings.real)
    return EvaluateJob(settings, {_stem(item.uri, base): item for item in list_inputs(settings.real)})


def evaluate(job: EvaluateJob) -> PairedResult:
    """Compares images of the same path below their folders, whatever their endings.

    Where sizes differ the truth is brought to the size of the generated image.

    Raises:
        InputError: no pair was found.
    """
    settings = job.settings
    place = storage.absolute(settings.generated)
    plan = open_plan(place)
    compared = partial(_compare_rows, truth=ray.put(job.truth), plan=plan)
    pairs = (_rows_of_translation(plan) if plan else _rows_of_folder(place)).map_batches(compared, batch_format="pyarrow")
    table = pa.concat_tables([pa.Table.from_batches([], PAIR_SCHEMA), *pairs.iter_batches(batch_size=None, batch_format="pyarrow")])
    rows = table.to_pylist()
    ok = [row for row in rows if row["status"] == "ok"]
    if not ok:
        raise InputError(f"--generated {settings.generated}: no image can be paired with one of the same name in {settings.real}")
    result = PairedResult(
        pairs=len(ok),
        missing=sum(row["status"] == "missing" for row in rows),
        unreadable=sum(row["status"] == "unreadable" for row in rows),
        mean_absolute_error=float(np.mean([row["mean_absolute_error"] for row in ok])),
        psnr=float(np.mean([_psnr(row["mean_squared_error"]) for row in ok])),
        ssim=float(np.mean([row["ssim"] for row in ok])),
    )
    if settings.out:
        storage.write_text(settings.out, json.dumps(asdict(result), indent=2) + "\n")
    return result


def compare(generated: Pixels, real: Pixels) -> dict[str, float]:
    """Mean absolute and mean squared error and SSIM (Wang et al. 2004) of two images, uint8 (H, W, 3).

    The truth is resized where the sizes differ. SSIM needs 11 pixels a side; below it is NaN.
    """
    real = images.resize(real, *generated.shape[:2])
    difference = generated.astype(np.float64) - real
    batch = [torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32)) for picture in (generated, real)]
    large_enough = min(generated.shape[:2]) >= 11
    ssim = structural_similarity_index_measure(batch[0], batch[1], data_range=255.0) if large_enough else math.nan
    return {
        "mean_absolute_error": float(np.abs(difference).mean()),
        "mean_squared_error": float(np.square(difference).mean()),
        "ssim": float(cast(torch.Tensor, ssim)),
    }


def _rows_of_translation(plan: Plan) -> ray.data.Dataset:
    """Of each picture its `name`, and the columns of its row."""
    filesystem, data = storage.open_arrow_filesystem(storage.join(plan.out, "data"))
    return ray.data.read_parquet(data, filesystem=filesystem).map_batches(partial(_named, base=plan.base), batch_format="pyarrow")


def _rows_of_folder(place: str) -> ray.data.Dataset:
    """Of each picture its `name`, and the fields of an `Input`."""
    inputs, base = list(list_inputs(place)), base_of(place)
    table = manifest_table(inputs, 0).append_column("name", pa.array([_stem(item.uri, base) for item in inputs]))
    return ray.data.from_arrow([table.slice(start, 64) for start in range(0, len(table), 64)])


def _named(table: pa.Table, base: str) -> pa.Table:
    names = [_stem(uri, base) for uri in table["source_uri"].to_pylist()]
    return pa.table({"name": names, **{column: table[column] for column in ("source_uri", "image", "status")}})


def _compare_rows(table: pa.Table, truth: ray.ObjectRef[dict[str, Input]], plan: Plan | None) -> pa.Table:
    inputs = ray.get(truth)
    return pa.Table.from_pylist([_compare_row(row, inputs, plan) for row in table.to_pylist()], schema=PAIR_SCHEMA)


def _compare_row(row: dict[str, Any], truth: dict[str, Input], plan: Plan | None) -> dict[str, Any]:
    if row["name"] not in truth:
        return {"status": "missing"}
    if row.get("status", "ok") != "ok":
        return {"status": "unreadable"}
    try:
        if plan:
            data = read_picture(plan, row["source_uri"], row["image"])
        else:
            data = read_input(Input(**{name: row[name] for name in Input._fields}))
        return {"status": "ok", **compare(images.decode(data), images.decode(read_input(truth[row["name"]])))}
    except (OSError, images.ImageError):
        return {"status": "unreadable"}


def _psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / MSE); 100 stands for identical images."""
    return 10 * math.log10(255**2 / mean_squared_error) if mean_squared_error > 0 else 100.0


def _stem(uri: str, base: str) -> str:
    return str(PurePosixPath(relative_name(uri, base)).with_suffix(""))
