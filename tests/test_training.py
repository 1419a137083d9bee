"""Training on real Ray: the files it leaves, a broken run, a second run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient
from ray.train.torch import TorchConfig

from cyclegan import run, training
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


def test_a_lost_worker_and_a_killed_job_change_nothing(cluster: Cluster, landscapes: Path, tmp_path: Path, finished: TrainSettings) -> None:
    """SIGKILL to a worker, which Ray Train starts anew, then to the process that the user started, then the same again.

    benchmarks/training_survival.py does it many times over.
    """
    settings = tiny_settings(landscapes, tmp_path / "run")
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    command = [sys.executable, "-m", "jobs.train", "--config", str(tmp_path / "config.yaml")]
    job = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(job, (tmp_path / "run" / "checkpoints" / "step-00000004" / "model.pt").exists)
    first = workers_of(job)
    first[0].kill()
    wait_until(job, lambda: bool(set(workers_of(job)) - set(first)))
    reached = last_step(settings.out)
    wait_until(job, lambda: last_step(settings.out) >= reached + 2)
    job.kill()
    job.wait()
    assert not run.has_ended(run.read_metrics(settings.out))

    # as if it had been killed between the moment when Ray registered the last checkpoint and that when its lines were written
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    checkpoint = len(lines) - len(lines) % 2
    metrics.write_text("".join(lines[: checkpoint - 2]))
    train(prepare(settings), cluster)
    assert metrics.read_text().splitlines(keepends=True)[:checkpoint] == lines[:checkpoint], "they come again from the checkpoint"
    timeless = [[{**record, "images_per_second": 0} for record in run.read_metrics(out)] for out in (settings.out, finished.out)]
    assert timeless[0] == timeless[1], "no line twice, none missing, none different"
    ours, undisturbed = weights_of(settings.out), weights_of(finished.out)
    assert all(torch.equal(value, undisturbed[key]) for key, value in ours.items())


def wait_until(job: subprocess.Popen[bytes], seen: Callable[[], bool]) -> None:
    """The job must not end before that."""
    while not seen():
        assert job.poll() is None, "it must not end before it is killed"
        time.sleep(0.01)


def workers_of(job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(job.pid).children(recursive=True) if "RayTrainWorker" in title_of(child)]


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return ""


def last_step(out: str) -> int:
    records = run.read_metrics(out)
    return int(records[-1]["step"]) if records else 0


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


def test_a_fork_that_streams_goes_on_as_its_parent_did(
    cluster: Cluster, landscapes: Path, tmp_path: Path, finished: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then an image can't be read: it is named in the report, the run goes on. And MLflow hears of it all."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlflow"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "a").mkdir()
    for path in (landscapes / "a").iterdir():
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    data = {"a": str(tmp_path / "a"), "b": str(landscapes / "b"), "cache": "stream"}
    options = {"epochs": 6, "track": "mlflow", "keep_best_by": "cycle", "keep_checkpoints": 1}
    settings = tiny_settings(landscapes, tmp_path / "run", fork=f"{finished.out}/checkpoints/step-00000010", data=data, **options)
    job = prepare(settings)
    domain, _ = open_domains(prepare_data(job.files, settings, cluster), settings)
    used_before = domain.indices(36, 4)[0]  # in the parent's tenth step, so that the next two steps of the same pass do without it
    broken = Path(job.files["a"][used_before].uri)
    broken.write_bytes(b"broken")
    train(job, cluster)

    streamed, held = run.read_metrics(settings.out), run.read_metrics(finished.out)
    assert [record["step"] for record in streamed] == list(range(11, 19)), "a folder of its own, with lines from where it began"
    assert [[record[name] for name in LOSS_NAMES] for record in streamed[:2]] == [
        [record[name] for name in LOSS_NAMES] for record in held[10:]
    ]
    assert {(named.domain, Path(named.uri)) for named in run.read_unreadable(settings.out)} == {("a", broken)}
    assert broken.name in (tmp_path / "run" / "report.html").read_text()

    best = min(streamed[1::2], key=lambda record: float(record["cycle"]))["step"]
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")}
    assert kept == {f"step-{best:08d}", "step-00000018"}, "the best of those at every second step, and the newest"

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


def test_workers_that_cannot_be_set_up_stop_the_run_in_one_line(
    cluster: Cluster, landscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "TorchConfig", lambda **_: TorchConfig(backend="mpi"))
    with pytest.raises(StoppedError, match=r"run: Ray Train could not set its workers up: .*MPI built in"):
        train(prepare(tiny_settings(landscapes, tmp_path / "run", workers=1)), cluster)
