"""The folder that a training leaves, but for the checkpoints in it, which are Ray Train's.

In: settings, networks, records of metrics. Out: RUN/config.yaml, metrics.jsonl, unreadable.jsonl, tensorboard/, samples/, generators/,
report.html.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn

from cyclegan import alarms, report, storage
from cyclegan.config import TrainSettings
from cyclegan.domain import Domain
from cyclegan.errors import InputError
from cyclegan.images import PixelFormat, Pixels
from cyclegan.losses import GanLoss
from cyclegan.model import CycleGAN, generator_spec
from cyclegan.options import read_yaml, to_yaml
from cyclegan.progress import duration
from cyclegan.unit_range import from_unit_range
from cyclegan.weights import save_generator

SAMPLES = 4
"""Images of each domain on a sample sheet."""

_FREE = {"out", "gpu", "keep_best_by", "keep_checkpoints", "max_failures", "max_skipped_steps", "track"}
"""Settings that may change when a run goes on: they decide how it is carried out, not what it computes."""

_NAMED = 20
"""Unreadable images that the report names."""


class Unreadable(NamedTuple):
    """A training image that could not be used: its domain, where it is, and why."""

    domain: str
    uri: str
    reason: str


def refuse_other_settings(settings: TrainSettings, out: str) -> None:
    """Holds `settings` against the run that is in `out`, if there is one.

    Raises:
        InputError: the run there has other settings, the folder holds something else, or it can't be reached.
    """
    path = storage.join(out, "config.yaml")
    try:
        is_run, is_empty = storage.exists(path), storage.is_empty(out)
    except OSError as error:
        raise InputError(f"--out {out}: {error}") from None
    if not is_run:
        if not is_empty:
            raise InputError(f"--out {out}: is not empty and holds no run; give a new folder")
        return
    before, now = flatten(read_yaml(path)), flatten(settings.model_dump(mode="json"))
    different = [key for key in sorted((before.keys() | now.keys()) - _FREE) if before.get(key) != now.get(key)]
    if different:
        words = ", ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in different)
        raise InputError(f"--out {out}: belongs to a run with other settings ({words}); give them again or a new folder")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one mapping: `optimizer.learning_rate` -> value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def write_config(settings: TrainSettings, out: str) -> None:
    """RUN/config.yaml: every setting, which `--resume` and `--config` read back."""
    storage.write_text(storage.join(out, "config.yaml"), to_yaml(settings))


def has_ended(metrics: Sequence[dict[str, Any]]) -> bool:
    """Whether the run of these metrics got to its last step."""
    return bool(metrics) and metrics[-1]["images"] >= metrics[-1]["images_planned"]


class MetricsLog:
    """RUN/metrics.jsonl and RUN/tensorboard, which grow with every report."""

    def __init__(self, out: str) -> None:
        self.out = out
        self._records = read_metrics(out)
        self._events: SummaryWriter | None = None

    def append(self, records: Sequence[dict[str, Any]], gan: GanLoss) -> None:
        """Adds what was reported, with the alarms that it gives rise to.

        Records replace those of the same and of later steps, which a resumed run does again.
        """
        place = storage.join(self.out, "tensorboard")
        if self._events is None:
            # TensorBoard's writer appends, which object stores can't: there a local copy grows and is sent again
            folder = place if storage.is_local(place) else tempfile.mkdtemp()
            self._events = SummaryWriter(folder, purge_step=records[0]["step"])
        self._records = [earlier for earlier in self._records if earlier["step"] < records[0]["step"]]
        for record in map(_as_json, records):
            self._records.append(record)
            record["alarms"] = alarms.find(self._records, gan)
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    self._events.add_scalar(name, value, record["step"])
        lines = "".join(json.dumps(line) + "\n" for line in self._records)
        storage.write_text(storage.join(self.out, "metrics.jsonl"), lines)
        self._events.flush()
        if not storage.is_local(place):
            for file in Path(self._events.logdir).iterdir():
                storage.write_bytes(storage.join(place, file.name), file.read_bytes())


def _as_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}


def read_metrics(out: str) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl, in the order of their steps; none where there is no such file."""
    path = storage.join(out, "metrics.jsonl")
    return [json.loads(line) for line in storage.read_text(path).splitlines()] if storage.exists(path) else []


def add_unreadable(out: str, found: Iterable[Unreadable]) -> None:
    """RUN/unreadable.jsonl: names the images that were left out or replaced, each once."""
    before = read_unreadable(out)
    after = list(dict.fromkeys([*before, *found]))
    if len(after) > len(before):
        lines = "".join(json.dumps(item._asdict()) + "\n" for item in after)
        storage.write_text(storage.join(out, "unreadable.jsonl"), lines)


def read_unreadable(out: str) -> list[Unreadable]:
    """The images that were left out or replaced so far."""
    path = storage.join(out, "unreadable.jsonl")
    return [Unreadable(**json.loads(line)) for line in storage.read_text(path).splitlines()] if storage.exists(path) else []


def progress_line(record: dict[str, Any]) -> str:
    """How far a run is, how fast, how long it will take, and its losses, for a person to read."""
    left = max(0, record["images_planned"] - record["images"]) / record["images_per_second"]

    def total(*names: str) -> str:
        values = [record[name] for name in names]
        return "not finite" if None in values else f"{sum(values):.3f}"

    return (
        f"step {record['step']}  {record['images']} of {record['images_planned']} images  {record['images_per_second']:.1f} images/s"
        f"  {duration(left)} left  generators {total('adversarial')}  cycle {total('cycle')}"
        f"  discriminators {total('discriminator_a', 'discriminator_b')}"
    )


def save_samples(out: str, model: CycleGAN, domain_a: Domain, domain_b: Domain, step: int) -> None:
    """RUN/samples/step-*.png: fixed images; rows of real A, fake B, rebuilt A, then real B, fake A, rebuilt B."""
    rows: list[list[Pixels]] = []
    kept = model.generators_to_keep()
    for domain, there, back in ((domain_a, kept["a2b"], kept["b2a"]), (domain_b, kept["b2a"], kept["a2b"])):
        shown: list[list[Pixels]] = [[], [], []]
        with evaluating(there), evaluating(back), torch.inference_mode():
            for sample in domain.samples(SAMPLES):
                real = sample.to(model.device)
                fake = there(real)
                for row, image in zip(shown, (real, fake, back(fake)), strict=True):
                    row.append(_to_picture(image))
        rows += shown
    cell = min(256, max(model.settings.size, 64))
    storage.write_bytes(_sample_path(out, step), report.sheet(rows, cell=cell))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode while the block runs, and as it was after it."""
    training = network.training
    network.eval()
    yield
    network.train(training)


def save_generators(out: str, model: CycleGAN, *, step: int, images: int) -> None:
    """RUN/generators/a2b and b2a, as they are after `step` steps and `images` images."""
    settings = model.settings
    bits, channels = settings.data.bits, (settings.data.channels_a, settings.data.channels_b)
    kinds = {"a2b": channels, "b2a": channels[::-1]}
    for direction, network in model.generators_to_keep().items():
        save_generator(
            storage.join(out, "generators", direction),
            network,
            spec=generator_spec(settings, direction),
            size=settings.size,
            direction=direction,
            input=PixelFormat(kinds[direction][0], bits),
            output=PixelFormat(kinds[direction][1], bits),
            training={
                "step": step,
                "images": images,
                "weights": f"average with a half-life of {settings.ema_half_life:g} images" if model.averages else "of the last step",
                "preset": settings.preset,
                "data": settings.data.model_dump(),
            },
        )


def training_curves(metrics: Sequence[dict[str, Any]]) -> report.Figure:
    """The losses of a run over its steps."""

    def lines(*names: str) -> dict[str, list[tuple[float, float]]]:
        return {name: [(record["step"], record[name]) for record in metrics if record[name] is not None] for name in names}

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
    """RUN/report.html: the latest samples, what went wrong, the curves and the settings on one page."""
    last = metrics[-1]
    facts = {
        "steps": last["step"],
        "images of each domain": f"{last['images']} of {last['images_planned']}",
        "workers": last["workers"],
        "images/s (median)": round(float(np.median([record["images_per_second"] for record in metrics])), 1),
        "steps skipped for gradients that were not finite": last["skipped_steps"],
    }
    sections = []
    if shown := sample_steps(out):
        sections.append(report.Section(heading="Samples", figures=[latest_samples(out, shown[-1])]))
    if last["alarms"]:
        sections.append(report.Section(heading="Alarms", text=" ".join(f"{alarm}." for alarm in last["alarms"])))
    sections.append(report.Section(heading="Losses", facts=facts, figures=[training_curves(metrics)]))
    if unreadable := read_unreadable(out):
        named = {f"{item.domain}: {item.uri}": item.reason for item in unreadable[:_NAMED]}
        more = f"{len(unreadable)} images could not be read; others took their places. " + "The first of them:" * (len(unreadable) > _NAMED)
        sections.append(report.Section(heading="Unreadable images", text=more, facts=named))
    sections.append(report.Section(heading="Settings", code=to_yaml(settings)))
    storage.write_text(storage.join(out, "report.html"), report.page(f"CycleGAN training: {out}", sections))


def sample_steps(out: str) -> list[int]:
    """The steps at which the run wrote sample sheets, in order."""
    filesystem, place = storage.open_filesystem(storage.join(out, "samples"))
    return sorted(int(PurePosixPath(path).stem.removeprefix("step-")) for path in filesystem.glob(f"{place}/step-*.png"))


def _sample_path(out: str, step: int) -> str:
    return storage.join(out, "samples", f"step-{step:08d}.png")


def _to_picture(image: Tensor) -> Pixels:
    """One image (1, C, H, W) in [-1, 1], of any number of channels, as uint8 RGB to look at; alpha is left out."""
    colours = image[0, :1].expand(3, -1, -1) if image.shape[1] < 3 else image[0, :3]
    return from_unit_range(colours).permute(1, 2, 0).cpu().numpy()
