"""Ray Train runs the CycleGAN data-parallel; what it reports becomes the files of a RUN.

In: `TrainSettings`. Out: RUN/config.yaml, checkpoints/, metrics.jsonl, tensorboard/, samples/, generators/, report.html.
The driver decodes both domains once through Ray Data; every worker holds them as uint8 and takes its share of each batch, whose
content follows from seed and position alone. The same settings again go on from the last checkpoint.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from torch import Tensor

from cyclegan import images, run, storage
from cyclegan.config import Cluster, TrainSettings
from cyclegan.domain import Domain
from cyclegan.errors import InputError
from cyclegan.model import LOSS_NAMES, CycleGAN
from cyclegan.progress import every
from cyclegan.sources import list_inputs, read

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainJob:
    """A training that can begin: settings that fit its folder, and the files of both domains."""

    settings: TrainSettings
    out: str
    uris: dict[str, list[str]]


@dataclass(frozen=True)
class TrainResult:
    """Where a run stands: its folder, the steps done, and its last line of metrics."""

    out: str
    steps: int
    metrics: dict[str, Any]


def prepare(settings: TrainSettings) -> TrainJob:
    """Finds all that can be found wrong without Ray, and writes nothing.

    Raises:
        InputError: a domain is missing or empty; RUN belongs to other settings.
    """
    out = storage.absolute(settings.out)
    run.refuse_other_settings(settings, out)
    return TrainJob(settings, out, {name: [item.uri for item in list_inputs(source)] for name, source in settings.data})


def train(job: TrainJob, cluster: Cluster) -> TrainResult:
    """Trains to the end, or goes on from the last checkpoint of the same run.

    Raises:
        InputError: no image of a domain can be read; too few GPUs; too little memory.
        ray.train.TrainingFailedError: more workers were lost than `max_failures`.
        KeyboardInterrupt: on Ctrl-C.
    """
    settings, out, uris = job.settings, job.out, job.uris
    use_gpu = cluster.use_gpu(settings.gpu, settings.workers)
    if run.has_ended(out):
        metrics = run.read_metrics(out)
        log.info("%s: this run has ended already", out)
        return TrainResult(out, metrics[-1]["step"], metrics[-1])
    _refuse_too_large(uris, settings, cluster)
    rows, counts = decode_domains(uris, settings.load_size)
    run.write_config(settings, out)

    batch = settings.batch_size * settings.workers
    steps = settings.steps or math.ceil((settings.epochs or 0) * max(counts.values()) / batch)
    filesystem, place = storage.open_arrow_filesystem(out)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings.model_dump(), "out": out, "steps": steps, "blocks": rows.to_arrow_refs()},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers, use_gpu=use_gpu, resources_per_worker=_worker_resources(settings, cluster, use_gpu)
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=place,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=settings.keep_checkpoints),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            callbacks=[RunFiles(out)],  # type: ignore[list-item]  # annotated with the class that V2 replaced
        ),
    )
    with every(1, Progress(out, steps)):
        try:
            trainer.fit()
        except SystemExit:  # how Ray Train ends the process on Ctrl-C, without a word
            raise KeyboardInterrupt from None
    metrics = run.read_metrics(out)
    run.write_report(settings, out, metrics)
    return TrainResult(out, steps, metrics[-1])


def train_worker(config: dict[str, Any]) -> None:
    """What each worker runs: the loop over steps, with reports, samples and checkpoints. See `train` for `config`."""
    settings, out, steps = TrainSettings.model_validate(config["settings"]), config["out"], config["steps"]
    context, device = ray.train.get_context(), get_device()
    rank, workers = context.get_world_rank(), context.get_world_size()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    pixels = collect_domains(config["blocks"], settings.load_size)
    domain_a, domain_b = (
        Domain(pixels[name], seed=(settings.seed, number), size=settings.size, flip=settings.flip) for number, name in enumerate("ab")
    )
    model = CycleGAN(settings, device, rank)
    first = _restore(model, rank)
    share = slice(rank * settings.batch_size, (rank + 1) * settings.batch_size)
    batch = settings.batch_size * workers

    sums, since, started = torch.zeros(len(LOSS_NAMES), device=device), first, time.monotonic()
    for step in range(first + 1, steps + 1):
        rate = model.set_learning_rate((step - 1) / steps)
        position = (step - 1) * batch
        losses = model.step(domain_a.batch(position, batch, share, device), domain_b.batch(position, batch, share, device))
        sums += torch.stack([losses[name] for name in LOSS_NAMES])

        if rank == 0 and (step % settings.sample_every == 0 or step == steps):
            run.save_samples(out, model, domain_a, domain_b, step)
        checkpoint_due = step % settings.checkpoint_every == 0 or step == steps
        if checkpoint_due or step % settings.report_every == 0:
            averages = (sums / (step - since)).tolist()  # waits for the device, so that the clock is read after the work
            now = time.monotonic()
            metrics = {
                "step": step,
                "images": step * batch,
                **dict(zip(LOSS_NAMES, averages, strict=True)),
                "images_per_second": (step - since) * batch / (now - started),
                "learning_rate": rate,
            }
            if checkpoint_due:
                _report_with_checkpoint(model, metrics, rank=rank, out=out, steps=steps)
            else:
                ray.train.report(metrics)
            sums.zero_()
            since, started = step, now


class RunFiles(ray.train.UserCallback):
    """Turns each report of the workers into a line of metrics.jsonl and of TensorBoard; lives in Ray Train's controller."""

    def __init__(self, out: str) -> None:
        self.out = out
        self._log: run.MetricsLog | None = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """Called by Ray Train once all workers have reported; `metrics` holds one mapping a worker."""
        self._log = self._log or run.MetricsLog(self.out)  # opened here: the callback travels to the controller as a pickle
        self._log.append({**metrics[0], **{name: float(np.mean([m[name] for m in metrics])) for name in LOSS_NAMES}})


class Progress:
    """Says on the driver what has arrived in metrics.jsonl since it was last asked."""

    def __init__(self, out: str, steps: int) -> None:
        self.out = out
        self.steps = steps
        self._shown = len(run.read_metrics(out))

    def __call__(self) -> None:
        """Logs a line for each new report."""
        records = run.read_metrics(self.out)
        for record in records[self._shown :]:
            log.info("%s", run.progress_line(record, self.steps))
        self._shown = len(records)


def _refuse_too_large(uris: dict[str, list[str]], settings: TrainSettings, cluster: Cluster) -> None:
    wanted = sum(len(domain) for domain in uris.values()) * 3 * settings.load_size**2
    if not cluster.can_grow and wanted > cluster.object_store_bytes:
        raise InputError(
            f"--data: both domains at {settings.load_size} px need {wanted / 1e9:.1f} GB decoded, Ray's object store has "
            f"{cluster.object_store_bytes / 1e9:.1f} GB; give fewer images, a smaller --size or a larger object store"
        )


def _worker_resources(settings: TrainSettings, cluster: Cluster, use_gpu: bool) -> dict[str, float]:
    """On CPUs the workers share what there is: Ray would wait for ever for a CPU each that does not exist."""
    if use_gpu:
        return {"GPU": 1}
    return {"CPU": 1 if cluster.can_grow else min(1.0, cluster.cpus / settings.workers)}


def decode_domains(uris: dict[str, list[str]], side: int) -> tuple[ray.data.Dataset, dict[str, int]]:
    """Decodes both domains through Ray Data, once, into Ray's object store.

    Returns:
        Rows (domain, row_id, uri, pixels, error), and how many images of each domain could be read.

    Raises:
        InputError: not one image of a domain can be read.
    """
    blocks = []
    for domain, names in uris.items():
        ids = pa.array(range(len(names)), pa.int64())
        table = pa.table({"domain": [domain] * len(names), "row_id": ids, "uri": names})
        blocks += [table.slice(start, 64) for start in range(0, len(table), 64)]
    rows = ray.data.from_arrow(blocks).map_batches(partial(_decode_rows, side=side), batch_format="pyarrow").materialize()

    counts = dict.fromkeys(uris, 0)
    failures: dict[str, list[dict[str, str]]] = {domain: [] for domain in uris}
    for table in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in table.select(["domain", "uri", "error"]).to_pylist():
            if row["error"] is None:
                counts[row["domain"]] += 1
            else:
                failures[row["domain"]].append(row)
    for domain, failed in failures.items():
        if counts[domain] == 0:
            raise InputError(f"--data.{domain}: none of {len(failed)} files can be read; {failed[0]['uri']}: {failed[0]['error']}")
        for row in failed[:5]:
            log.warning("domain %s: left out %s: %s", domain, row["uri"], row["error"])
        if failed:
            log.warning("domain %s: %d of %d files can't be read and are left out", domain, len(failed), len(uris[domain]))
    return rows, counts


def _decode_rows(table: pa.Table, side: int) -> pa.Table:
    """Adds `pixels` (the bytes of uint8 (3, side, side)) and `error`, one of them null."""
    pixels: list[bytes | None] = []
    errors: list[str | None] = []
    for uri in table["uri"].to_pylist():
        try:
            # not keeping the shape of the photo is how the paper's code loads it
            picture = images.resize(images.decode(read(uri)), side, side)
            pixels.append(np.ascontiguousarray(picture.transpose(2, 0, 1)).tobytes())
            errors.append(None)
        except (OSError, images.ImageError) as error:
            pixels.append(None)
            errors.append(str(error))
    return table.append_column("pixels", pa.array(pixels, pa.large_binary())).append_column("error", pa.array(errors, pa.string()))


def collect_domains(blocks: Sequence[ray.ObjectRef[pa.Table]], side: int) -> dict[str, Tensor]:
    """The images of each domain in the order of their ids: uint8 (N, 3, side, side).

    Every worker draws from the whole of both domains, so it takes the blocks as they are and not through a split of the dataset.
    """
    table = pa.concat_tables(block.select(["domain", "row_id", "pixels"]) for block in ray.get(list(blocks))).sort_by("row_id")
    table = table.filter(pc.is_valid(table["pixels"]))
    domains = {}
    for domain in "ab":
        column = table.filter(pc.equal(table["domain"], domain))["pixels"]
        arrays = [np.frombuffer(pixels.as_buffer(), np.uint8) for pixels in column]
        domains[domain] = torch.from_numpy(np.stack(arrays)).view(-1, 3, side, side)
    return domains


def _restore(model: CycleGAN, rank: int) -> int:
    """Loads the last checkpoint, if there is one, and returns its step."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "model.pt", map_location=model.device, weights_only=True)
        model.load_state_dict(state["model"])
        pools = Path(folder) / f"pools-{rank:05d}.pt"
        if pools.exists():
            model.load_pools_state_dict(torch.load(pools, map_location="cpu", weights_only=True))
    return int(state["step"])


def _report_with_checkpoint(model: CycleGAN, metrics: dict[str, Any], *, rank: int, out: str, steps: int) -> None:
    step = metrics["step"]
    _check_workers_agree(model)
    if rank == 0:
        run.save_generators(out, model, step=step, steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.pools_state_dict(), Path(folder) / f"pools-{rank:05d}.pt")
        if rank == 0:
            torch.save({"model": model.state_dict(), "step": step}, Path(folder) / "model.pt")
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"step-{step:08d}")


def _check_workers_agree(model: CycleGAN) -> None:
    """Data-parallel workers hold the same parameters to the last bit; anything else is a defect that would spoil the run unseen."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    mine = model.checksum().to(model.device)
    theirs = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(theirs, mine)
    assert all(torch.equal(mine, other) for other in theirs), f"parameters differ between workers: {theirs}"
