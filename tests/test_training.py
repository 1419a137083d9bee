"""Training on real Ray: the files it leaves, a broken run, a second run."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray.train
import safetensors.torch
import torch

from cyclegan import run
from cyclegan.config import Cluster, TrainSettings, read_yaml
from cyclegan.errors import InputError
from cyclegan.images import decode
from cyclegan.model import LOSS_NAMES
from cyclegan.training import collect_domains, decode_domains, prepare, train
from cyclegan.weights import load_generator
from tests.conftest import tiny_settings


@pytest.fixture(scope="module")
def finished(cluster: Cluster, landscapes: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """A run of two workers that ended undisturbed: four passes over the larger domain's 12 images, 4 of them a step."""
    settings = tiny_settings(landscapes, tmp_path_factory.mktemp("runs") / "run")
    train(prepare(settings), cluster)
    return settings


def weights_of(out: str) -> dict[str, torch.Tensor]:
    return {
        f"{direction}.{key}": value
        for direction in ("a2b", "b2a")
        for key, value in safetensors.torch.load_file(Path(out) / "generators" / direction / "generator.safetensors").items()
    }


def test_files_of_a_run(finished: TrainSettings) -> None:
    out = Path(finished.out)
    assert TrainSettings.model_validate(read_yaml(str(out / "config.yaml"))) == finished
    assert sorted(path.name for path in (out / "checkpoints").glob("step-*")) == ["step-00000010", "step-00000012"]
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["step-00000006.png", "step-00000012.png"]
    assert decode((out / "samples" / "step-00000012.png").read_bytes()).shape[0] > 6 * 32
    assert list((out / "tensorboard").iterdir())
    page = (out / "report.html").read_text()
    assert page.count("data:image/") == 2
    assert "://" not in page, "the page needs nothing else"
    for direction in ("a2b", "b2a"):
        assert load_generator(str(out), direction).training["step"] == 12


def test_metrics(finished: TrainSettings) -> None:
    records = run.read_metrics(finished.out)
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["images"] for record in records] == list(range(4, 49, 4))
    for record in records:
        assert record.keys() == {"step", "images", *LOSS_NAMES, "images_per_second", "learning_rate"}
        assert all(np.isfinite(value) for value in record.values())
        assert record["identity_a"] == 0 < record["cycle_a"]


def test_a_broken_run_is_taken_up_bit_for_bit(cluster: Cluster, landscapes: Path, tmp_path: Path, finished: TrainSettings) -> None:
    """A lost worker ends a run that may lose none; the same again takes it up and ends where the undisturbed run ended."""
    settings = tiny_settings(landscapes, tmp_path / "run", max_failures=0)
    killer = threading.Thread(target=kill_a_worker_after_step, args=(4, tmp_path / "run" / "checkpoints"), daemon=True)
    killer.start()
    with pytest.raises(ray.train.TrainingFailedError):
        train(prepare(settings), cluster)
    assert not run.has_ended(settings.out)

    train(prepare(settings), cluster)
    records = run.read_metrics(settings.out)
    assert [record["step"] for record in records] == list(range(1, 13)), "no line twice, none missing"
    for mine, theirs in zip(records, run.read_metrics(finished.out), strict=True):
        assert all(mine[name] == theirs[name] for name in LOSS_NAMES)
    ours, undisturbed = weights_of(settings.out), weights_of(finished.out)
    assert all(torch.equal(value, undisturbed[key]) for key, value in ours.items())


def kill_a_worker_after_step(step: int, checkpoints: Path) -> None:
    """SIGKILL to one of the workers when the checkpoint of `step` is there."""
    while not (checkpoints / f"step-{step:08d}" / "model.pt").exists():
        time.sleep(0.01)
    os.kill(worker_pids()[0], signal.SIGKILL)


def worker_pids() -> list[int]:
    """The processes of Ray Train's workers that belong to this test's own Ray."""
    parents = {int(path.name): path for path in Path("/proc").iterdir() if path.name.isdigit()}

    def is_ours(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            try:
                pid = int((parents[pid] / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, KeyError):
                return False
        return False

    def title(pid: int) -> str:
        try:
            return (parents[pid] / "cmdline").read_text()
        except OSError:
            return ""

    return [pid for pid in sorted(parents) if "RayTrainWorker" in title(pid) and is_ours(pid)]


def test_the_same_again_does_nothing(cluster: Cluster, finished: TrainSettings) -> None:
    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(finished.out).rglob("*") if path.is_file()}

    before = stamps()
    assert train(prepare(finished), cluster).steps == 12
    assert stamps() == before


def test_other_settings_are_refused_by_name(finished: TrainSettings) -> None:
    with pytest.raises(InputError, match=r"loss\.cycle was 10\.0, is 3\.0") as caught:
        prepare(finished.model_copy(update={"loss": finished.loss.model_copy(update={"cycle": 3.0})}))
    assert finished.out in str(caught.value)


def test_unreadable_images_are_left_out_and_named(
    cluster: Cluster, landscapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    good = [str(path) for path in sorted((landscapes / "a").iterdir())]
    with caplog.at_level(logging.WARNING):
        rows, counts = decode_domains({"a": [good[0], str(tmp_path / "broken.jpg"), *good[1:3]], "b": good[3:5]}, side=32)
    assert counts == {"a": 3, "b": 2}
    assert f"domain a: left out {tmp_path}/broken.jpg: no known image format" in caplog.text
    assert "1 of 4" in caplog.text
    domains = collect_domains(rows.to_arrow_refs(), side=32)
    assert torch.equal(domains["a"][1], torch.tensor(decode(Path(good[1]).read_bytes())).permute(2, 0, 1)), "in the order of the files"


def test_a_domain_without_a_single_image(cluster: Cluster, landscapes: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "a").symlink_to(landscapes / "a")
    job = prepare(tiny_settings(tmp_path, tmp_path / "run"))
    with pytest.raises(InputError, match=r"--data.b: none of 1 files can be read.*notes.txt"):
        train(job, cluster)
    assert not (tmp_path / "run").exists()


def test_folders_of_others_are_not_written_to(landscapes: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds no run"):
        prepare(tiny_settings(landscapes, tmp_path))


def test_domains_that_do_not_fit_into_memory_are_refused(landscapes: Path, tmp_path: Path) -> None:
    small = Cluster(cpus=2, gpus=0, object_store_bytes=1000, can_grow=False)
    with pytest.raises(InputError, match="GB decoded"):
        train(prepare(tiny_settings(landscapes, tmp_path / "run")), small)
