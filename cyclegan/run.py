"""The folder that a training leaves, but for the checkpoints in it, which are Ray Train's.

In: settings, networks, records of metrics. Out: RUN/config.yaml, metrics.jsonl, tensorboard/, samples/, generators/, report.html.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboardX import SummaryWriter
from torch import Tensor

from cyclegan import report, storage
from cyclegan.config import TrainSettings, read_yaml, to_yaml
from cyclegan.domain import Domain
from cyclegan.errors import InputError
from cyclegan.geometry import from_unit_range
from cyclegan.images import Pixels
from cyclegan.model import CycleGAN, generator_spec
from cyclegan.progress import duration
from cyclegan.weights import save_generator

SAMPLES = 4
"""Images of each domain on a sample sheet."""


def refuse_other_settings(settings: TrainSettings, out: str) -> None:
    """Holds `settings` against the run that is in `out`, if there is one.

    Raises:
        InputError: the run there has other settings, or the folder holds something else.
    """
    path = storage.join(out, "config.yaml")
    if not storage.exists(path):
        filesystem, place = storage.open_filesystem(out)
        if filesystem.exists(place) and filesystem.ls(place, detail=False):
            raise InputError(f"--out {out}: is not empty and holds no run; give a new folder")
        return
    before = _flatten(read_yaml(path))
    now = _flatten(settings.model_dump(mode="json"))
    different = [key for key in sorted(before.keys() | now.keys()) if key != "out" and before.get(key) != now.get(key)]
    if different:
        words = ", ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in different)
        raise InputError(f"--out {out}: belongs to a run with other settings ({words}); give them again or a new folder")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def write_config(settings: TrainSettings, out: str) -> None:
    """RUN/config.yaml: every setting, which `--resume` and `--config` read back."""
    storage.write_text(storage.join(out, "config.yaml"), to_yaml(settings))


def has_ended(out: str) -> bool:
    """Whether the run in `out` got to its last step; the report is written after all else."""
    return storage.exists(storage.join(out, "report.html"))


class MetricsLog:
    """RUN/metrics.jsonl and RUN/tensorboard, which grow with every report."""

    def __init__(self, out: str) -> None:
        self.out = out
        self._records = read_metrics(out)
        self._events: SummaryWriter | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Adds a report; it replaces those of the same and of later steps, which a resumed run does again."""
        place = storage.join(self.out, "tensorboard")
        if self._events is None:
            # TensorBoard's writer appends, which object stores can't: there a local copy grows and is sent again
            folder = place if storage.is_local(place) else tempfile.mkdtemp()
            self._events = SummaryWriter(folder, purge_step=record["step"])
        self._records = [*(earlier for earlier in self._records if earlier["step"] < record["step"]), record]
        lines = "".join(json.dumps(line) + "\n" for line in self._records)
        storage.write_text(storage.join(self.out, "metrics.jsonl"), lines)
        for name in record.keys() - {"step"}:
            self._events.add_scalar(name, record[name], record["step"])
        self._events.flush()
        if not storage.is_local(place):
            for file in Path(self._events.logdir).iterdir():
                storage.write_bytes(storage.join(place, file.name), file.read_bytes())


def read_metrics(out: str) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl, in the order of their steps; none where there is no such file."""
    path = storage.join(out, "metrics.jsonl")
    return [json.loads(line) for line in storage.read_text(path).splitlines()] if storage.exists(path) else []


def progress_line(record: dict[str, Any], steps: int) -> str:
    """How far a run is, how fast, how long it will take, and its losses, for a person to read."""
    left = (steps - record["step"]) * record["images"] / record["step"] / record["images_per_second"]
    adversarial = record["adversarial_a2b"] + record["adversarial_b2a"]
    cycle = record["cycle_a"] + record["cycle_b"]
    judged = record["discriminator_a"] + record["discriminator_b"]
    return (
        f"step {record['step']}/{steps}  {record['images_per_second']:.1f} images/s  {duration(left)} left"
        f"  generators {adversarial:.3f}  cycle {cycle:.3f}  discriminators {judged:.3f}"
    )


def save_samples(out: str, model: CycleGAN, domain_a: Domain, domain_b: Domain, step: int) -> None:
    """RUN/samples/step-*.png: fixed images; rows of real A, fake B, rebuilt A, then real B, fake A, rebuilt B."""
    rows: list[list[Pixels]] = []
    there_and_back = ((domain_a, model.generator_a2b, model.generator_b2a), (domain_b, model.generator_b2a, model.generator_a2b))
    for domain, there, back in there_and_back:
        there.eval(), back.eval()
        with torch.inference_mode():
            real = domain.samples(SAMPLES).to(model.device)
            fake = there(real)
            rows += [_to_pixels(real), _to_pixels(fake), _to_pixels(back(fake))]
        there.train(), back.train()
    storage.write_bytes(_sample_path(out, step), report.sheet(rows, cell=model.settings.size))


def save_generators(out: str, model: CycleGAN, *, step: int, steps: int) -> None:
    """RUN/generators/a2b and b2a, as they are after `step` of `steps`."""
    settings = model.settings
    for direction, network in (("a2b", model.generator_a2b), ("b2a", model.generator_b2a)):
        save_generator(
            storage.join(out, "generators", direction),
            network,
            spec=generator_spec(settings),
            size=settings.size,
            direction=direction,
            training={"step": step, "steps": steps, "preset": settings.preset, "data": settings.data.model_dump()},
        )


def training_curves(metrics: Sequence[dict[str, Any]]) -> report.Figure:
    """The losses of a run over its steps."""

    def lines(*names: str) -> dict[str, list[tuple[float, float]]]:
        return {name: [(record["step"], record[name]) for record in metrics] for name in names}

    panels = {
        "generators": lines("adversarial_a2b", "adversarial_b2a"),
        "cycle": lines("cycle_a", "cycle_b"),
        "discriminators": lines("discriminator_a", "discriminator_b"),
    }
    if any(record["identity_a"] for record in metrics):
        panels["identity"] = lines("identity_a", "identity_b")
    return report.Figure("Unweighted losses, averaged over the workers.", report.curves(panels, x_label="step"))


def latest_samples(out: str, step: int) -> report.Figure:
    """The sample sheet that a run wrote at `step`."""
    sheet = storage.read_bytes(_sample_path(out, step))
    return report.Figure(f"Step {step}, rows: real A, fake B, rebuilt A, real B, fake A, rebuilt B.", sheet)


def write_report(settings: TrainSettings, out: str, metrics: Sequence[dict[str, Any]]) -> None:
    """RUN/report.html: the last samples, the curves and the settings on one page."""
    last = metrics[-1]
    facts = {
        "steps": last["step"],
        "images of each domain": last["images"],
        "workers": settings.workers,
        "images/s (median)": round(float(np.median([record["images_per_second"] for record in metrics])), 1),
    }
    sections = [
        report.Section(heading="Samples", figures=[latest_samples(out, last["step"])]),
        report.Section(heading="Losses", facts=facts, figures=[training_curves(metrics)]),
        report.Section(heading="Settings", code=to_yaml(settings)),
    ]
    storage.write_text(storage.join(out, "report.html"), report.page(f"CycleGAN training: {out}", sections))


def _sample_path(out: str, step: int) -> str:
    return storage.join(out, "samples", f"step-{step:08d}.png")


def _to_pixels(batch: Tensor) -> list[Pixels]:
    return list(from_unit_range(batch).permute(0, 2, 3, 1).cpu().numpy())
