"""Training on real Ray: the files it leaves, a broken run, a second run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray.train
import safetensors.torch
import torch
from mlflow import MlflowClient

from cyclegan import run
from cyclegan.config import Cluster, TrainSettings
from cyclegan.errors import InputError, StoppedError
from cyclegan.images import decode
from cyclegan.model import LOSS_NAMES
from cyclegan.options import read_yaml, to_yaml
from cyclegan.sources import list_inputs
from cyclegan.training import prepare, train
from cyclegan.training_data import open_domains, prepare_data
from cyclegan.weights import load_generator
from tests.conftest import REPOSITORY, tiny_settings


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
        assert record.keys() >= {"step", "images", *LOSS_NAMES, "images_per_second", "learning_rate", "skipped_steps", "alarms"}
        assert all(np.isfinite(value) for value in record.values() if isinstance(value, float))
        assert record["identity_a"] == 0 < record["cycle_a"]
        assert (record["images_planned"], record["workers"], record["skipped_steps"]) == (48, 2, 0)


def test_a_broken_run_is_taken_up_bit_for_bit(cluster: Cluster, landscapes: Path, tmp_path: Path, finished: TrainSettings) -> None:
    """A lost worker ends a run that may lose none; the same again takes it up and ends where the undisturbed run ended."""
    settings = tiny_settings(landscapes, tmp_path / "run", max_failures=0)
    killer = threading.Thread(target=kill_a_worker_after_step, args=(4, tmp_path / "run" / "checkpoints"), daemon=True)
    killer.start()
    with pytest.raises(ray.train.TrainingFailedError):
        train(prepare(settings), cluster)
    assert not run.has_ended(run.read_metrics(settings.out))

    train(prepare(settings), cluster)
    records = run.read_metrics(settings.out)
    assert [record["step"] for record in records] == list(range(1, 13)), "no line twice, none missing"
    for mine, theirs in zip(records, run.read_metrics(finished.out), strict=True):
        assert {**mine, "images_per_second": 0} == {**theirs, "images_per_second": 0}
    ours, undisturbed = weights_of(settings.out), weights_of(finished.out)
    assert all(torch.equal(value, undisturbed[key]) for key, value in ours.items())


def kill_a_worker_after_step(step: int, checkpoints: Path) -> None:
    """SIGKILL to one of the workers when the checkpoint of `step` is there."""
    while not (checkpoints / f"step-{step:08d}" / "model.pt").exists():
        time.sleep(0.01)
    workers = (child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline()))
    next(workers).kill()


def test_a_killed_job_is_taken_up_bit_for_bit(cluster: Cluster, landscapes: Path, tmp_path: Path, finished: TrainSettings) -> None:
    """SIGKILL to the process that the user started; the same again. benchmarks/training_survival.py does it five times over."""
    settings = tiny_settings(landscapes, tmp_path / "run")
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    command = [sys.executable, "-m", "jobs.train", "--config", str(tmp_path / "config.yaml")]
    job = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (records := run.read_metrics(settings.out)) or records[-1]["step"] < 3:
        assert job.poll() is None, "it must not end before it is killed"
        time.sleep(0.02)
    job.kill()
    job.wait()
    assert not run.has_ended(run.read_metrics(settings.out))

    train(prepare(settings), cluster)
    timeless = [[{**record, "images_per_second": 0} for record in run.read_metrics(out)] for out in (settings.out, finished.out)]
    assert timeless[0] == timeless[1]
    ours, undisturbed = weights_of(settings.out), weights_of(finished.out)
    assert all(torch.equal(value, undisturbed[key]) for key, value in ours.items())


def test_lines_lost_with_a_controller_come_again_from_the_checkpoint(cluster: Cluster, tmp_path: Path, finished: TrainSettings) -> None:
    """As if the job had been killed between the moment when Ray registered the last checkpoint and that when its lines were written."""
    shutil.copytree(finished.out, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:-2]))
    settings = finished.model_copy(update={"out": str(tmp_path / "run")})
    train(prepare(settings), cluster)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "".join(lines)


def test_the_same_again_trains_nothing(cluster: Cluster, finished: TrainSettings) -> None:
    def stamps() -> dict[Path, int]:
        files = (path for path in Path(finished.out).rglob("*") if path.is_file() and path.name != "report.html")
        return {path: path.stat().st_mtime_ns for path in files}

    before = stamps()
    assert train(prepare(finished), cluster).steps == 12
    assert stamps() == before


def test_other_settings_are_refused_by_name(finished: TrainSettings) -> None:
    with pytest.raises(InputError, match=r"loss\.cycle was 10\.0, is 3\.0") as caught:
        prepare(finished.model_copy(update={"loss": finished.loss.model_copy(update={"cycle": 3.0})}))
    assert finished.out in str(caught.value)


def test_how_it_is_carried_out_may_change(finished: TrainSettings) -> None:
    prepare(finished.model_copy(update={"keep_checkpoints": 9, "max_failures": 0, "gpu": False}))


def test_a_fork_with_the_same_settings_ends_in_the_same_weights(
    cluster: Cluster, landscapes: Path, tmp_path: Path, finished: TrainSettings
) -> None:
    """And has a folder of its own, with lines from where it began."""
    settings = tiny_settings(landscapes, tmp_path / "fork", fork=f"{finished.out}/checkpoints/step-00000010")
    train(prepare(settings), cluster)
    assert [record["step"] for record in run.read_metrics(settings.out)] == [11, 12]
    ours, parents = weights_of(settings.out), weights_of(finished.out)
    assert all(torch.equal(value, parents[key]) for key, value in ours.items())


def test_forks_of_other_networks_are_refused_by_name(landscapes: Path, tmp_path: Path, finished: TrainSettings) -> None:
    wider = tiny_settings(landscapes, tmp_path / "fork", fork=finished.out, generator={"channels": 8, "blocks": 1})
    with pytest.raises(InputError, match=r"generator_a2b\.channels was 4, is 8"):
        prepare(wider)
    with pytest.raises(InputError, match="neither a RUN nor one of its checkpoints"):
        prepare(tiny_settings(landscapes, tmp_path / "fork", fork=str(landscapes)))
    assert prepare(tiny_settings(landscapes, tmp_path / "fork", fork=finished.out)).start.step == 12, "the newest"


def test_gradients_that_are_never_finite_stop_the_run(cluster: Cluster, landscapes: Path, tmp_path: Path) -> None:
    """A learning rate beyond all measure: the run ends by itself, in words, and the last good checkpoint is there."""
    settings = tiny_settings(
        landscapes,
        tmp_path / "run",
        workers=1,
        steps=30,
        epochs=None,
        max_skipped_steps=3,
        checkpoint_every=1,
        optimizer={"learning_rate": 1e30},
    )
    with pytest.raises(StoppedError, match=r"steps in a row had no finite gradients.*--fork"):
        train(prepare(settings), cluster)
    last = run.read_metrics(settings.out)[-1]
    assert (last["step"], last["skipped_steps"], last["cycle"]) == (4, 3, None), "the first step does the harm"
    assert "not finite" in run.progress_line(last)
    assert "without finite gradients were skipped" in " ".join(last["alarms"])
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000001"], "none of the steps skipped"


def test_unreadable_images_are_left_out_and_named(cluster: Cluster, landscapes: Path, tmp_path: Path) -> None:
    folders = folders_with_a_broken_image(landscapes, tmp_path)
    files = {name: list(list_inputs(str(folder))) for name, folder in folders.items()}
    for cache in ("memory", "stream"):
        settings = tiny_settings(tmp_path, tmp_path / "run", data={"a": "", "b": "", "cache": cache}, load_scale=1, workers=1)
        data = prepare_data(files, settings, cluster)
        domain, _ = open_domains(data, settings)
        whole = decode(Path(files["a"][2].uri).read_bytes())
        if cache == "memory":
            assert (data.counts, len(data.unreadable)) == ({"a": 3, "b": 2}, 1)
            assert data.unreadable[0][:2] == ("a", files["a"][1].uri)
            assert "not an image" in data.unreadable[0].reason
            assert np.array_equal(domain.images[1], whole), "in the order of the files"
        else:
            assert np.array_equal(domain.images[1], whole), "replaced by the next"
            assert np.array_equal(domain.images[2], whole)


def folders_with_a_broken_image(landscapes: Path, tmp_path: Path) -> dict[str, Path]:
    """Domain a: three pictures and a broken one, second by its name; domain b: two pictures."""
    for name, count in (("a", 3), ("b", 2)):
        (tmp_path / name).mkdir()
        for index, path in enumerate(sorted((landscapes / "a").iterdir())[:count]):
            (tmp_path / name / f"{index}.png").write_bytes(path.read_bytes())
    (tmp_path / "a" / "0x.jpg").write_bytes(b"no image")
    return {"a": tmp_path / "a", "b": tmp_path / "b"}


def test_streamed_training_equals_training_from_memory(
    cluster: Cluster, landscapes: Path, tmp_path: Path, finished: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that can't be read is named in the report, the run goes on; and MLflow hears of it all."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlflow"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "a").mkdir()
    for path in (landscapes / "a").iterdir():
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    data = {"a": str(tmp_path / "a"), "b": str(landscapes / "b"), "cache": "stream"}
    settings = tiny_settings(landscapes, tmp_path / "run", data=data, track="mlflow", keep_best_by="cycle", keep_checkpoints=1)
    (tmp_path / "a" / "05.png").write_bytes(b"broken")
    train(prepare(settings), cluster)
    (named,) = run.read_unreadable(settings.out)
    assert (named.domain, Path(named.uri).name) == ("a", "05.png")
    assert "05.png" in (tmp_path / "run" / "report.html").read_text()
    streamed, held = run.read_metrics(settings.out), run.read_metrics(finished.out)
    # the first pass meets the broken image somewhere in its three steps; all before it is the same
    assert streamed[0]["cycle_b"] == held[0]["cycle_b"]
    assert [record["step"] for record in streamed] == list(range(1, 13))

    best = min(streamed[1::2], key=lambda record: float(record["cycle"]))["step"]
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")}
    assert kept == {f"step-{best:08d}", "step-00000012"}, "the best of those at every second step, and the newest"

    client = MlflowClient()
    tracked = json.loads((tmp_path / "run" / "tracking.json").read_text())["mlflow"]
    history = {metric.step: metric.value for metric in client.get_metric_history(tracked, "cycle")}
    assert history == {record["step"]: record["cycle"] for record in streamed}
    assert client.get_run(tracked).data.params["optimizer.beta1"] == "0.5"
    assert client.list_artifacts(tracked, "images"), "the sample sheets"


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


def test_domains_that_do_not_fit_are_refused(cluster: Cluster, landscapes: Path, tmp_path: Path) -> None:
    small = Cluster(machine_cpus=(2,), gpus=0, object_store_bytes=1000, can_grow=False)
    data = {"a": str(landscapes / "a"), "b": str(landscapes / "b")}
    with pytest.raises(InputError, match=r"--data\.cache stream"):
        train(prepare(tiny_settings(landscapes, tmp_path / "run", data={**data, "cache": "memory"})), small)
    job = prepare(tiny_settings(landscapes, tmp_path / "run", data=data))
    assert prepare_data(job.files, job.settings, small).names, "streamed by itself"
    with pytest.raises(InputError, match="10 images are too few for 2 workers x --batch-size 6"):
        train(prepare(tiny_settings(landscapes, tmp_path / "run", batch_size=6)), small)
    with pytest.raises(InputError, match=r"32x32 px, smaller than the crop of 64"):
        train(prepare(tiny_settings(landscapes, tmp_path / "run", size=64, preprocess="crop")), cluster)
    assert not (tmp_path / "run").exists()
