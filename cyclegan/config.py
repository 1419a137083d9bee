"""The settings of every job: frozen, typed, read strictly.

In: the command line, an optional YAML file (`--config FILE`), a preset. Out: one immutable object a job, every field checked.
The command line wins over the file, the file over the preset, the preset over the defaults; an unknown option or key is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from cyclegan import storage
from cyclegan.errors import InputError

Direction = Literal["a2b", "b2a"]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """What all settings have in common: no field can be changed or invented."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSettings(Settings):
    """The two unpaired domains."""

    a: str
    """Domain A: a folder (searched recursively), a glob, or a URI such as s3://bucket/folder."""
    b: str
    """Domain B, likewise."""


class GeneratorSettings(Settings):
    """Both generators."""

    architecture: Literal["seed", "resnet"] = "seed"
    """`seed`: the Udacity exercise's small network; `resnet`: the paper's."""
    channels: Positive = 64
    """Width after the first convolution."""
    blocks: Positive = 6
    """Residual blocks: 6 for the seed; 9 for the paper at 256 px and above, 6 below."""
    norm: Literal["batch", "instance"] = "batch"
    """BatchNorm is synchronised over the workers; InstanceNorm needs no synchronising."""


class DiscriminatorSettings(Settings):
    """Both discriminators."""

    architecture: Literal["seed", "patch"] = "seed"
    """`seed`: the exercise's five layers; `patch`: the paper's 70x70 PatchGAN."""
    channels: Positive = 64
    """Width after the first convolution."""
    norm: Literal["batch", "instance"] = "batch"
    """As for the generators."""


class LossSettings(Settings):
    """Effective weights of the terms; the adversarial term of the generators has weight 1."""

    cycle: Weight = 10.0
    """Cycle consistency, each direction."""
    identity: Weight = 0.0
    """Identity, each direction; the paper's "0.5 lambda" with a cycle weight of 10 is 5."""
    discriminator: Weight = 1.0
    """The discriminators' loss; the paper halves it to slow them down."""


class OptimizerSettings(Settings):
    """Adam, and a learning rate that falls linearly to zero in the last part of the run."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """At the start; never scaled with the number of workers."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    decay_from: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the run's images after which the rate falls; 1 keeps it constant, 0.5 is the paper's 100 + 100 epochs."""


class TrainSettings(Settings):
    """Train a CycleGAN on two folders of unpaired photos, on this machine or a Ray cluster."""

    data: DataSettings
    out: str
    """RUN folder or URI; every worker must be able to write there. The same command again resumes."""
    resume: str | None = Field(default=None, exclude=True)
    """RUN to go on with, as its config.yaml says; stands for all other options."""
    preset: Literal["seed", "paper"] = "seed"
    """`seed`: small networks, 128 px, batch 16; `paper`: Zhu et al. 2017, 256 px, batch 1."""
    workers: Positive = 1
    """Data-parallel workers, one GPU each, or a share of the CPUs."""
    gpu: bool | None = None
    """Train on GPUs; by default where the cluster has any."""
    steps: Positive | None = None
    """Length of the run in optimizer steps."""
    epochs: Positive | None = None
    """Length of the run in passes over the larger domain."""
    batch_size: Positive = 16
    """Images of each domain per worker and step."""
    size: Annotated[int, Field(ge=16)] = 128
    """Side in pixels of the square images that the networks see."""
    load_scale: Annotated[float, Field(ge=1)] = 1.0
    """Images are resized to `size` x `load_scale` and cropped at random; 1 means no cropping."""
    flip: bool = False
    """Mirror half of the images."""
    generator: GeneratorSettings = GeneratorSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    init: Literal["default", "normal"] = "default"
    """First weights: PyTorch's own, or the paper's N(0, 0.02)."""
    loss: LossSettings = LossSettings()
    pool_size: NonNegative = 0
    """Past fakes kept for the discriminators, per worker; 0 for none."""
    optimizer: OptimizerSettings = OptimizerSettings()
    seed: NonNegative = 0
    """Weights, order of the images, crops and pool all follow from it."""
    report_every: Positive = 20
    """Steps between lines of metrics.jsonl."""
    sample_every: Positive = 200
    """Steps between sample sheets."""
    checkpoint_every: Positive = 200
    """Steps between checkpoints; each also refreshes RUN/generators."""
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints stay."""
    max_failures: NonNegative = 3
    """Lost workers to survive before giving up."""

    @property
    def load_size(self) -> int:
        """Side in pixels to which images are resized before the random crop."""
        return round(self.size * self.load_scale)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise InputError("give one of --steps and --epochs")
        if (self.generator.architecture == "seed" and self.size % 8) or self.size % 4:
            raise InputError(f"--size {self.size}: must be a multiple of 8 for the seed's generator, of 4 for resnet")
        smallest = 32 if self.discriminator.architecture == "seed" else 24
        if self.size < smallest:
            raise InputError(f"--size {self.size}: the {self.discriminator.architecture} discriminator needs at least {smallest}")
        return self


class TranslateSettings(Settings):
    """Translate every photo of a source through a trained generator into Parquet, on this machine or a Ray cluster."""

    generator: str
    """A RUN of jobs.train, an exported generator, junyanz's latest_net_G*.pth, or the seed's G_XtoY.pkl."""
    source: str
    """A folder (searched recursively), a glob, or a URI such as s3://bucket/folder."""
    out: str
    """OUT folder or URI. The same command again resumes."""
    direction: Direction | None = None
    """Which generator of a RUN; a2b unless given. Must agree with what an exported generator says of itself."""
    format: Literal["parquet"] = "parquet"
    """What to write."""
    size: Annotated[str, Field(pattern=r"^(native|resize:[1-9]\d*)$")] | None = None
    """`native`, or `resize:N`: shorter side to N pixels, shape kept; by default the size the generator was trained at."""
    encoding: Literal["jpeg", "png", "webp"] = "jpeg"
    """How the translated pixels are stored."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """For jpeg and webp."""
    batch_size: Positive = 16
    """Images a generator takes at once."""
    generators: Positive | None = None
    """Copies of the generator; by default one for each GPU, or one on a CPU."""
    gpu: bool | None = None
    """Translate on GPUs; by default where the cluster has any."""
    segment_rows: Positive = 1_000_000
    """Inputs to commit at a time."""
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Exit with 3 where more of the images than this failed."""


class EvaluateSettings(Settings):
    """Measure translated images against their true counterparts."""

    generated: str
    """An OUT of jobs.translate, or a folder, glob or URI of images."""
    real: str
    """The images to compare with."""
    paired: bool = False
    """Compare images of the same name (up to the ending): mean absolute error, PSNR, SSIM."""
    out: str | None = None
    """Write the result to this JSON file too."""


class DemoSettings(Settings):
    """Draw two domains, train, translate, evaluate and show the result, in minutes on a CPU."""

    out: str = "demo"
    """Folder for everything the demo makes; must be empty or an earlier demo's."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The Udacity exercise: the defaults above, for as long as its students train.
    "seed": {"steps": 4000},
    # Zhu et al. 2017, section 4 and appendix 7.
    "paper": {
        "epochs": 200,
        "batch_size": 1,
        "size": 256,
        "load_scale": 286 / 256,
        "flip": True,
        "generator": {"architecture": "resnet", "blocks": 9, "norm": "instance"},
        "discriminator": {"architecture": "patch", "norm": "instance"},
        "init": "normal",
        "loss": {"cycle": 10.0, "identity": 5.0, "discriminator": 0.5},
        "pool_size": 50,
        "optimizer": {"decay_from": 0.5},
    },
}


@dataclass(frozen=True)
class Cluster:
    """What a job can use now: logical CPUs and GPUs, bytes of the object store; and whether more may come (an autoscaler)."""

    cpus: float
    gpus: float
    object_store_bytes: float
    can_grow: bool

    def use_gpu(self, asked: bool | None, count: int) -> bool:
        """Whether to run on GPUs: as asked, else where there are any.

        Raises:
            ValueError: fewer than `count` GPUs, and no more can come.
        """
        use = self.gpus > 0 if asked is None else asked
        if use and self.gpus < count and not self.can_grow:
            raise InputError(f"{count} GPUs needed, {self.gpus:g} here; give --no-gpu, or RAY_ADDRESS for a cluster that has them")
        return use


S = TypeVar("S", bound=Settings)


def load_settings(cls: type[S], argv: Sequence[str], prog: str) -> S:
    """Reads the settings of one job from its command line and the file named there.

    Args:
        cls: what to read.
        argv: the words after the program's name.
        prog: the program's name, for `--help`.

    Raises:
        InputError: one line that names the option or key and says what is wrong with it.
        SystemExit: after `--help`.
    """

    class Command(BaseSettings, cls):  # type: ignore[valid-type, misc]
        model_config = SettingsConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
        config: str | None = None
        """YAML file with any of these settings; the command line wins over it."""

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            command_line: CliSettingsSource[Any] = CliSettingsSource(
                settings_cls,
                cli_prog_name=prog,
                cli_parse_args=list(argv),
                cli_implicit_flags=True,
                cli_kebab_case=True,
                cli_avoid_json=True,
                cli_hide_none_type=True,
                cli_exit_on_error=False,
            )
            return command_line, _FileAndPreset(settings_cls)

    Command.__doc__ = cls.__doc__
    try:
        merged = Command().model_dump(exclude={"config"})
    except SettingsError as error:
        raise InputError(f"{str(error).removeprefix('error parsing CLI: ')}; {prog} --help lists the options") from None
    except ValidationError as error:
        raise InputError(_one_line(error, prog)) from None
    return cls(**merged)


class _FileAndPreset(InitSettingsSource):
    """The YAML file over the preset; both depend on what the command line said."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, {})

    def __call__(self) -> dict[str, Any]:
        said = self.current_state
        file = read_yaml(str(said["config"])) if said.get("config") else {}
        if said.get("resume"):
            file = {**read_yaml(storage.join(str(said["resume"]), "config.yaml")), **file, "out": said["resume"]}
        if "preset" not in self.settings_cls.model_fields:
            return file
        values = dict(PRESETS.get(str(said.get("preset") or file.get("preset") or "seed"), {}))
        if {"steps", "epochs"} & (file.keys() | said.keys()):  # one length replaces the preset's
            values = {key: value for key, value in values.items() if key not in ("steps", "epochs")}
        return _merge(values, file)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _merge(base[key], over[key]) for key in over if isinstance(over[key], dict) and isinstance(base.get(key), Mapping)}
    return {**base, **over, **both}


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    try:
        values = yaml.safe_load(storage.read_text(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise InputError(f"{path}: expected lines such as `steps: 1000`, found {type(values).__name__}")
    return values or {}


def to_yaml(settings: Settings) -> str:
    """The settings as a YAML document that `--config` reads back."""
    text: str = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    return text


def _one_line(error: ValidationError, prog: str) -> str:
    problems = []
    for item in error.errors(include_url=False):
        option = "--" + ".".join(str(part).replace("_", "-") for part in item["loc"])
        if item["type"] == "missing":
            problems.append(f"{option} is required")
        elif item["type"] == "extra_forbidden":
            problems.append(f"{option}: no such setting")
        elif item["loc"]:
            problems.append(f"{option} {item['input']}: {item['msg'][0].lower()}{item['msg'][1:]}")
        else:
            problems.append(item["msg"].removeprefix("Value error, "))
    return "; ".join(problems) + f"; {prog} --help lists the options"
