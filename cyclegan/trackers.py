"""What a training reports, sent to MLflow or Weights & Biases as well.

In: records of metrics, sample sheets. Out: a tracked run; RUN/tracking.json keeps its id, and a resumed training goes on in it.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from numbers import Real
from queue import SimpleQueue
from typing import Any, Literal

from PIL import Image

from cyclegan import storage
from cyclegan.errors import InputError

log = logging.getLogger(__name__)

Kind = Literal["mlflow", "wandb"]

WAITING = 1000
"""Reports kept for a service that is slower than the training; further ones are dropped."""

ANSWER_S = 10
"""How long one request may take."""

CLOSE_S = 30
"""How long the end of a training waits for what has not been sent yet."""

_ids = threading.Lock()  # both services may begin at the same time, and share a file


def check_installed(kind: Kind) -> None:
    """Looks for the service's package, without loading it.

    Raises:
        InputError: it is not installed.
    """
    spec = importlib.util.find_spec(kind)
    if spec is None or spec.origin is None:  # a mere folder of that name, such as W&B itself leaves behind
        raise InputError(f"{kind} is not installed; pip install 'cyclegan-on-ray[{kind}]'")


def open_tracker(kind: Kind, out: str, settings: Mapping[str, Any]) -> Tracker:
    """The tracked run of the training in `out`, new or gone on with; `settings` are flat: "optimizer.learning_rate" -> value.

    Raises:
        InputError: the service's package is not installed.
    """
    check_installed(kind)
    return Tracker(kind, lambda: SERVICES[kind](storage.absolute(out), settings))


class Tracker:
    """A tracked run. A thread of its own talks to the service: nothing waits for it (but `close`), and what fails is warned about once."""

    def __init__(self, kind: Kind, open_service: Callable[[], _MLflow | _Wandb]) -> None:
        self._kind = kind
        self._open = open_service
        self._tasks: SimpleQueue[Callable[[_MLflow | _Wandb], None] | None] = SimpleQueue()
        self._warned = self._closing = False
        # a daemon: the process can end though a request is under way
        self._thread = threading.Thread(target=self._work, name=f"tracker-{kind}", daemon=True)
        self._thread.start()

    def log(self, record: Mapping[str, Any]) -> None:
        """Sends a record: `step`, numbers, texts under `alarms`. What is no finite number is left out; steps may come again."""
        numbers = {name: float(value) for name, value in record.items() if isinstance(value, Real) and math.isfinite(value)}
        alarms = "; ".join(record.get("alarms") or ())
        self._put(lambda service: service.log(record["step"], numbers, alarms))

    def log_samples(self, step: int, png: bytes) -> None:
        """Sends the sample sheet of a step."""
        self._put(lambda service: service.log_samples(step, Image.open(io.BytesIO(png))))

    def close(self) -> None:
        """Says that the training has ended well, once all is sent; waits `CLOSE_S` at most."""
        self._closing = True
        self._tasks.put(lambda service: service.close())
        self._tasks.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._warn(f"not all was sent within {CLOSE_S} s")

    def _put(self, task: Callable[[_MLflow | _Wandb], None]) -> None:
        if self._tasks.qsize() < WAITING:
            self._tasks.put(task)
        else:
            self._warn("too slow, reports are dropped")

    def _work(self) -> None:
        service = None
        for task in iter(self._tasks.get, None):
            try:
                service = service or self._open()  # each report tries again, until the service is there
                task(service)
            except Exception as error:  # whatever it is, it must not end a training
                self._warn(f"{type(error).__name__}: {' '.join(str(error).split())}")
                if service is None and self._closing:
                    return  # the end of a training does not wait for one attempt after the other

    def _warn(self, what: str) -> None:
        log.log(logging.DEBUG if self._warned else logging.WARNING, "%s: %s; the training goes on", self._kind, what)
        self._warned = True


class _MLflow:
    def __init__(self, out: str, settings: Mapping[str, Any]) -> None:
        # the client's own patience is minutes a request; its telemetry would talk to a server that nobody named
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(ANSWER_S))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow  # noqa: PLC0415  # takes seconds, and need not be installed

        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        known = _kept_ids(out).get("mlflow")
        run = self._client.get_run(known) if known else self._client.create_run(self._experiment(), run_name=_name(out))
        self._id: str = run.info.run_id
        _keep_id(out, "mlflow", self._id)
        self._client.update_run(self._id, status="RUNNING")
        params = [mlflow.entities.Param(name, str(value)) for name, value in settings.items() if name not in run.data.params]
        self._client.log_batch(self._id, params=params, synchronous=True)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cyclegan")
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def log(self, step: int, numbers: dict[str, float], alarms: str) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, now, step) for name, value in numbers.items() if name != "step"]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)
        if alarms:
            self._client.set_tag(self._id, "alarms", f"step {step}: {alarms}", synchronous=True)

    def log_samples(self, step: int, sheet: Image.Image) -> None:
        self._client.log_image(self._id, sheet, key="samples", step=step, synchronous=True)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class _Wandb:
    def __init__(self, out: str, settings: Mapping[str, Any]) -> None:
        import wandb  # noqa: PLC0415  # takes half a second, and need not be installed

        self._wandb = wandb
        run_id = _kept_ids(out).get("wandb") or uuid.uuid4().hex
        _keep_id(out, "wandb", run_id)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cyclegan"),
            name=_name(out),
            id=run_id,
            resume="allow",
            config=dict(settings),
            dir=os.environ.get("WANDB_DIR") or (out if storage.is_local(out) else None),
            settings=wandb.Settings(init_timeout=ANSWER_S, finish_timeout=CLOSE_S - ANSWER_S, console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")  # W&B's own counter takes no step a second time

    def log(self, step: int, numbers: dict[str, float], alarms: str) -> None:
        self._run.log({**numbers, "step": step})
        if alarms:
            self._run.alert(title=f"{self._run.name}: step {step}", text=alarms, level="WARN")

    def log_samples(self, step: int, sheet: Image.Image) -> None:
        self._run.log({"step": step, "samples": self._wandb.Image(sheet)})

    def close(self) -> None:
        self._run.finish()
        self._wandb.teardown()  # ends its process


SERVICES: dict[Kind, type[_MLflow] | type[_Wandb]] = {"mlflow": _MLflow, "wandb": _Wandb}


def _name(out: str) -> str:
    return out.rpartition("/")[2]


def _kept_ids(out: str) -> dict[str, str]:
    path = storage.join(out, "tracking.json")
    return dict(json.loads(storage.read_text(path))) if storage.exists(path) else {}


def _keep_id(out: str, kind: Kind, run_id: str) -> None:
    with _ids:
        storage.write_text(storage.join(out, "tracking.json"), json.dumps({**_kept_ids(out), kind: run_id}))
