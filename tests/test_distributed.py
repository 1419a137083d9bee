"""Two workers with batch b train like one worker with batch 2b: gradients, statistics, parameters. Real processes, gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from cyclegan.config import DataSettings, DiscriminatorSettings, GeneratorSettings, LossSettings, TrainSettings
from cyclegan.model import CycleGAN
from cyclegan.sync_batch_norm import CpuSyncBatchNorm2d, synchronise_batch_norm

CPU = torch.device("cpu")
WORKERS, BATCH = 2, 2


def settings_with(norm: str) -> TrainSettings:
    return TrainSettings(
        data=DataSettings(a="", b=""),
        out="",
        steps=1,
        size=32,
        generator=GeneratorSettings.model_validate({"channels": 8, "blocks": 2, "norm": norm}),
        discriminator=DiscriminatorSettings.model_validate({"channels": 8, "norm": norm}),
        init="normal",
        loss=LossSettings(identity=5),
    )


def batches() -> tuple[Tensor, Tensor]:
    # unlike statistics in the two halves: what is not synchronised would show
    scale = torch.tensor([0.2] * BATCH + [1.0] * BATCH).view(-1, 1, 1, 1)
    a, b = torch.rand(2, WORKERS * BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(5)).mul(2).sub(1) * scale
    return a, b


def run_step(norm: str, rank: int, workers: int) -> dict[str, dict[str, Tensor]]:
    """One step on this worker's share of `batches`; gradients and state of all networks after it."""
    model = CycleGAN(settings_with(norm), CPU, rank)
    share = slice(rank * WORKERS * BATCH // workers, (rank + 1) * WORKERS * BATCH // workers)
    a, b = (batch[share] for batch in batches())
    model.step(a, b, WORKERS * BATCH)
    grads = {f"{n}.{k}": p.grad for n, network in model.networks().items() for k, p in network.named_parameters() if p.grad is not None}
    state = {f"{n}.{k}": v for n, network in model.networks().items() for k, v in network.state_dict().items()}
    return {"grads": grads, "state": state, "checksum": {"": model.checksum()}}


def _step_worker(rank: int, norm: str, folder: Path) -> None:
    torch.save(run_step(norm, rank, WORKERS), folder / f"{rank}.pt")


def _batch_norm_worker(rank: int, _: str, folder: Path) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    synced = synchronise_batch_norm(network, CPU)
    assert type(synced[0]) is CpuSyncBatchNorm2d  # type: ignore[index]
    x = batches()[0][rank * BATCH : (rank + 1) * BATCH].requires_grad_()
    y = synced(x)
    (y**3).mean().backward()
    torch.save({"y": y.detach(), "grad": x.grad, "state": synced.state_dict()}, folder / f"{rank}.pt")


def _entry(rank: int, worker: Callable[[int, str, Path], None], norm: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    worker(rank, norm, folder)
    dist.destroy_process_group()


def spawn(worker: Callable[[int, str, Path], None], norm: str, folder: Path) -> list[dict[str, dict[str, Tensor]]]:
    torch.multiprocessing.spawn(_entry, (worker, norm, folder), nprocs=WORKERS)  # type: ignore[no-untyped-call, attr-defined]
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORKERS)]


@pytest.mark.parametrize("norm", ["instance", "sync_batch"])
def test_two_workers_are_one_with_twice_the_batch(norm: str, tmp_path: Path) -> None:
    workers = spawn(_step_worker, norm, tmp_path)
    alone = run_step(norm, 0, 1)
    assert torch.equal(workers[0]["checksum"][""], workers[1]["checksum"][""])
    assert workers[0]["grads"].keys() == alone["grads"].keys()
    for rank in range(WORKERS):
        for key, grad in alone["grads"].items():
            torch.testing.assert_close(workers[rank]["grads"][key], grad, atol=1e-4, rtol=0, msg=key)
        for key, value in alone["state"].items():
            if "running" in key:
                torch.testing.assert_close(workers[rank]["state"][key], value, atol=1e-4, rtol=0, msg=key)
    assert max(float(grad.abs().max()) for grad in alone["grads"].values()) > 1e-2, (
        "gradients too small for the comparison to mean anything"
    )


def test_the_comparison_sees_batch_norm_that_is_not_synchronised() -> None:
    """What the test above compares differs by far more than its tolerance where each half has statistics of its own."""
    alone = run_step("sync_batch", 0, 1)["grads"]
    halves = [run_step("sync_batch", rank, WORKERS)["grads"] for rank in range(WORKERS)]
    worst = max(float((sum(half[key] for half in halves) / WORKERS - grad).abs().max()) for key, grad in alone.items())
    assert worst > 1e-2


def test_synchronised_batch_norm_equals_batch_norm_over_all(tmp_path: Path) -> None:
    halves = spawn(_batch_norm_worker, "", tmp_path)
    x = batches()[0].requires_grad_()
    norm = nn.BatchNorm2d(3)
    y = norm(x)
    (y**3).mean().backward()
    assert x.grad is not None
    torch.testing.assert_close(torch.cat([half["y"] for half in halves]), y.detach(), atol=1e-5, rtol=0)  # type: ignore[misc]
    # each worker's loss is a mean over half of the images
    torch.testing.assert_close(torch.cat([half["grad"] for half in halves]) / WORKERS, x.grad, atol=1e-6, rtol=0)  # type: ignore[misc]
    for half in halves:
        for key, value in norm.state_dict().items():
            torch.testing.assert_close(half["state"][f"0.{key}"], value, atol=1e-5, rtol=0)
