"""The real clients of MLflow and Weights & Biases, on folders of this machine."""

from __future__ import annotations

import json
import logging
import math
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclegan import trackers
from cyclegan.errors import InputError
from cyclegan.images import encode
from cyclegan.trackers import Kind, check_installed, open_tracker

SETTINGS = {"optimizer.learning_rate": 0.0002, "data.a": "photos/summer", "limit": None}
SHEET = encode(np.full((12, 8, 3), 200, np.uint8), "png")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a training; both services write to this machine, and the client of W&B ends with the test."""
    environment = {
        "MLFLOW_TRACKING_URI": str(tmp_path / "mlflow"),
        "MLFLOW_ALLOW_FILE_STORE": "true",  # the lean package knows no databases
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DIR": str(tmp_path / "wandb"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "wandb").mkdir()
    folder = tmp_path / "seasons"
    folder.mkdir()
    yield folder
    if "wandb" in sys.modules:
        import wandb

        wandb.teardown()


def train_twice(kind: Kind, run: Path) -> dict[str, str]:
    """A training that stops after step 4, and again from step 3 to its end; gives the ids that were kept after each."""
    kept = []
    for steps in ((2, 4), (3, 4, 6)):
        tracker = open_tracker(kind, str(run), SETTINGS)
        for step in steps:
            unfit = {"nan": math.nan, "infinite": math.inf, "unknown": None, "name": "seed"}
            tracker.log({"step": step, "cycle_a": 1 / step, "images": 8 * step, **unfit, "alarms": ["collapse of a"] if step == 6 else []})
            tracker.log_samples(step, SHEET)
        tracker.close()
        time.sleep(1)  # W&B names a session's folder by the second
        kept.append(json.loads((run / "tracking.json").read_text()))
    assert kept[0] == kept[1]
    return dict(kept[0])


def test_mlflow_goes_on_in_the_same_run(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = train_twice("mlflow", run)
    assert not caplog.records

    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("cyclegan")
    assert experiment
    [tracked] = client.search_runs([experiment.experiment_id])
    assert tracked.info.run_id == ids["mlflow"]
    assert (tracked.info.run_name, tracked.info.status) == ("seasons", "FINISHED")
    assert tracked.data.params == {name: str(value) for name, value in SETTINGS.items()}
    assert tracked.data.metrics.keys() == {"cycle_a", "images"}
    assert tracked.data.tags["alarms"] == "step 6: collapse of a"
    history = [(metric.step, metric.value) for metric in client.get_metric_history(ids["mlflow"], "cycle_a")]
    assert history == [(step, 1 / step) for step in (2, 4, 3, 4, 6)]
    pictures = [file.path for file in client.list_artifacts(ids["mlflow"], "images") if file.path.endswith(".png")]
    assert len(pictures) == 5
    assert all("samples" in path for path in pictures)


def test_mlflow_takes_the_experiment_of_its_variable(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "elsewhere")
    open_tracker("mlflow", str(run), SETTINGS).close()

    import mlflow

    assert mlflow.MlflowClient().get_experiment_by_name("elsewhere")


def test_wandb_goes_on_in_the_same_run(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = train_twice("wandb", run)
    assert not [record for record in caplog.records if record.name == trackers.__name__]
    files = sorted((run.parent / "wandb" / "wandb").glob(f"offline-run-*-{ids['wandb']}/*.wandb"))
    records = [record for file in files for record in wandb_records(file)]
    sessions = [record.run for record in records if record.HasField("run")]
    assert [(session.run_id, session.display_name, session.project) for session in sessions] == [(ids["wandb"], "seasons", "cyclegan")] * 2
    config = {item.key: json.loads(item.value_json) for item in sessions[0].config.update}
    assert config.items() >= SETTINGS.items()
    assert {(record.metric.glob_name, record.metric.step_metric) for record in records if record.HasField("metric")} == {("*", "step")}

    rows = [{item.nested_key[0]: json.loads(item.value_json) for item in record.history.item} for record in records]
    curve = [(row["step"], row["cycle_a"]) for row in rows if "cycle_a" in row]
    assert curve == [(step, 1 / step) for step in (2, 4, 3, 4, 6)]
    assert {name for row in rows for name in row if not name.startswith("_")} == {"step", "cycle_a", "images", "samples"}
    pictures = {file.parent: len(list(file.parent.glob("files/media/images/samples_*.png"))) for file in files}
    assert list(pictures.values()) == [2, 3]
    assert [(record.alert.title, record.alert.text) for record in records if record.HasField("alert")] == [
        ("seasons: step 6", "collapse of a")
    ]


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of W&B's file: after a header of 7 bytes, LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    internal: Any = wandb_internal_pb2  # whose names come to be when it is loaded
    data, block, place, whole = file.read_bytes(), 32768, 7, b""
    while place < len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield internal.Record.FromString(whole)
            whole = b""


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a person gets to read."""
    return [record.getMessage() for record in caplog.records if record.name == trackers.__name__ and record.levelno >= logging.WARNING]


def test_a_server_that_is_not_there_is_warned_about_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
    started = time.monotonic()
    tracker = open_tracker("mlflow", str(run), SETTINGS)
    for step in (1, 2, 3):
        tracker.log({"step": step, "cycle_a": 1.0})
        tracker.log_samples(step, SHEET)
    tracker.close()
    assert time.monotonic() - started < 5
    [warning] = warnings_of(caplog)
    assert warning.startswith("mlflow: ")
    assert "\n" not in warning
    assert not (run / "tracking.json").exists()


@pytest.mark.parametrize(("kind", "address"), [("mlflow", "MLFLOW_TRACKING_URI"), ("wandb", "WANDB_BASE_URL")])
def test_a_server_that_never_answers_delays_nothing(
    kind: Kind, address: str, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "CLOSE_S", 1.5)
    monkeypatch.setattr(trackers, "ANSWER_S", 1)
    monkeypatch.setattr(trackers, "WAITING", 2)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv(address, f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        tracker = open_tracker(kind, str(run), SETTINGS)
        for step in range(50):
            tracker.log({"step": step, "cycle_a": 1.0})
        assert time.monotonic() - started < 1
        tracker.close()
        assert time.monotonic() - started < 5
    assert warnings_of(caplog) == [f"{kind}: too slow, reports are dropped; the training goes on"]


def test_a_service_that_comes_back_gets_what_comes_after(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")
    tracker = open_tracker("mlflow", str(run), SETTINGS)
    tracker.log({"step": 1, "cycle_a": 1.0})
    deadline = time.monotonic() + 10
    while not warnings_of(caplog):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker.log({"step": 2, "cycle_a": 0.5})
    tracker.close()

    import mlflow

    [metric] = mlflow.MlflowClient().get_metric_history(json.loads((run / "tracking.json").read_text())["mlflow"], "cycle_a")
    assert (metric.step, metric.value) == (2, 0.5)
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_a_missing_package_is_the_users_to_mend(kind: Kind, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(kind)
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(InputError, match=rf"cyclegan-on-ray\[{kind}\]"):
        open_tracker(kind, str(run), SETTINGS)
    monkeypatch.delitem(sys.modules, kind)
    (run / kind).mkdir()
    monkeypatch.setattr(sys, "path", [str(run)])
    with pytest.raises(InputError, match="not installed"):  # as where W&B left its folder
        check_installed(kind)
