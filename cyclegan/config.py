"""The settings of every job: frozen and typed, with the presets; and what a cluster has to offer.

In: values, from wherever (`options` reads them from the command line and files). Out: one immutable object a job, every field checked,
those that don't go together refused. Knows no torch, so that a wrong option is found at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_settings import CliPositionalArg

from cyclegan.errors import InputError

Direction = Literal["a2b", "b2a"]
Channels = Annotated[int, Field(ge=1, le=4)]
Norm = Literal["sync_batch", "batch", "instance"]
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
    channels_a: Channels = 3
    """1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; images of another kind are converted."""
    channels_b: Channels = 3
    """Likewise."""
    bits: Annotated[int, Field(ge=8, le=16, multiple_of=8)] = 8
    """Depth at which images are kept and generated: 8 or 16."""
    cache: Literal["auto", "memory", "stream"] = "auto"
    """`memory`: decode all images once and keep them; `stream`: read and decode each when its turn comes; `auto`: by their number."""

    @property
    def sources(self) -> dict[str, str]:
        """Where each domain is."""
        return {"a": self.a, "b": self.b}


class GeneratorSettings(Settings):
    """Both generators."""

    architecture: Literal["seed", "resnet", "unet"] = "seed"
    """`seed`: the Udacity exercise's small network; `resnet`: the paper's; `unet`: the pix2pix paper's."""
    channels: Positive = 64
    """Width after the first convolution."""
    blocks: Positive = 6
    """Residual blocks: 6 for the seed; 9 for the paper at 256 px and above, 6 below. Levels of a U-Net: 7 at 128 px, 8 at 256 px."""
    norm: Norm = "sync_batch"
    """`sync_batch`: BatchNorm over the batches of all workers; `batch`: over each worker's own; `instance` knows no batch."""
    dropout: bool = False
    """Drop half of the features while training; for resnet and unet."""


class DiscriminatorSettings(Settings):
    """Both discriminators."""

    architecture: Literal["seed", "patch", "pixel"] = "seed"
    """`seed`: the exercise's five layers; `patch`: PatchGAN, the paper's 70x70 at 3 layers; `pixel`: judges single pixels."""
    channels: Positive = 64
    """Width after the first convolution."""
    layers: Annotated[int, Field(ge=1, le=6)] = 3
    """Of `patch`: patches of 16, 34, 70, 142 px for 1 to 4."""
    norm: Norm = "sync_batch"
    """As for the generators."""


class LossSettings(Settings):
    """Effective weights of the terms; the adversarial term of the generators has weight 1."""

    gan: Literal["lsgan", "vanilla", "hinge", "wgangp"] = "lsgan"
    """The adversarial game: least squares, `vanilla` (cross entropy), `hinge`, or `wgangp` (Wasserstein with gradient penalty)."""
    cycle: Weight = 10.0
    """Cycle consistency, each direction."""
    identity: Weight = 0.0
    """Identity, each direction; the paper's "0.5 lambda" with a cycle weight of 10 is 5."""
    discriminator: Weight = 1.0
    """The discriminators' loss; the paper halves it to slow them down."""
    gradient_penalty: Weight = 10.0
    """Of `wgangp`."""


class OptimizerSettings(Settings):
    """Adam, and how its learning rate goes down. The run's length is counted in images, so workers and batch don't change the curve."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """At the start; never scaled with the number of workers."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls to zero once `decay_from` is reached, if at all."""
    decay_from: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the run's images after which the rate falls; 0.5 is the paper's 100 + 100 epochs."""


def _parse_workers(value: object) -> object:
    """A count, or `MIN..MAX`; a range of one count is that count."""
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", str(value))
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise ValueError("must be a number of at least 1, or MIN..MAX")
    return least if least == most else f"{least}..{most}"


class TrainSettings(Settings):
    """Train a CycleGAN on two folders of unpaired photos, on this machine or a Ray cluster."""

    data: DataSettings
    out: str
    """RUN folder or URI; every worker must be able to write there. The same command again resumes."""
    resume: str | None = Field(default=None, exclude=True)
    """RUN to go on with, as its config.yaml says; stands for all other options."""
    fork: str | None = None
    """RUN, or one of its checkpoints, to begin a new run from; it counts on from there, with the settings given now."""
    preset: Literal["seed", "paper"] = "seed"
    """`seed`: small networks, 128 px, batch 16; `paper`: Zhu et al. 2017, 256 px, batch 1."""
    workers: Annotated[int | str, BeforeValidator(_parse_workers)] = 1
    """Data-parallel workers, one GPU each, or a share of the CPUs; MIN..MAX goes on with fewer and grows again as machines come."""
    gpu: bool | None = None
    """Train on GPUs; by default where the cluster has any."""
    threads: Positive | None = None
    """Of each worker without a GPU; by default the machine's CPUs, shared out among its workers."""
    steps: Positive | None = None
    """Length of the run in optimizer steps of all workers (of MAX, where their number may change)."""
    epochs: Positive | None = None
    """Length of the run in passes over the larger domain."""
    batch_size: Positive = 16
    """Images of each domain per worker and step."""
    accumulate: Positive = 1
    """Parts in which a worker takes its batch, one after the other, where it does not fit into memory at once."""
    size: Annotated[int, Field(ge=16)] = 128
    """Side in pixels of the square images that the networks see."""
    preprocess: Literal["resize_and_crop", "scale_width_and_crop", "crop", "scale_width", "none"] = "resize_and_crop"
    """How an image gets there: made square, scaled by its width or left as large as it is; without a crop the images keep their shape."""
    load_scale: Annotated[float, Field(ge=1)] = 1.0
    """Images are resized to `size` x `load_scale` and cropped at random; 1 means no cropping of square ones."""
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
    ema_half_life: Weight = 10_000.0
    """Images after which a weight counts half in the running average that samples and exports use; 0 uses the weights themselves."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the networks' arithmetic; `auto` is bf16 on GPUs that have it, else fp32."""
    compile: bool = False
    """Compile both phases of the step with torch.compile; some minutes at the start."""
    seed: NonNegative = 0
    """Weights, order of the images, crops and pool all follow from it."""
    report_every: Positive = 20
    """Steps between lines of metrics.jsonl."""
    sample_every: Positive = 200
    """Steps between sample sheets."""
    checkpoint_every: Positive = 200
    """Steps between checkpoints; each also refreshes RUN/generators."""
    keep_checkpoints: Positive = 2
    """How many checkpoints stay: the newest, or the best by `keep_best_by` and the newest."""
    keep_best_by: Literal["cycle", "adversarial"] | None = None
    """Keep the checkpoints where this loss, of both directions, was lowest."""
    max_failures: NonNegative = 3
    """Lost workers to survive before giving up; announced preemptions don't count."""
    max_skipped_steps: Positive = 50
    """Steps in a row without finite gradients, all skipped, before the run stops."""
    track: Literal["mlflow", "wandb"] | None = None
    """Send metrics and samples there too."""

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        least, _, most = str(self.workers).partition("..")
        return int(least), int(most or least)

    @property
    def max_workers(self) -> int:
        """Most workers; their batches together make a step of full size."""
        return self.worker_range[1]

    @property
    def crops(self) -> bool:
        """Whether the networks see random crops of `size`; else images as large as they come."""
        return self.preprocess in ("resize_and_crop", "scale_width_and_crop", "crop")

    @property
    def load_size(self) -> int:
        """Side in pixels to which images are resized before the random crop."""
        return round(self.size * self.load_scale)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise InputError("give one of --steps and --epochs")
        if self.batch_size % self.accumulate:
            raise InputError(f"--accumulate {self.accumulate}: must divide --batch-size {self.batch_size}")
        self._check_norms()
        if self.loss.identity and self.data.channels_a != self.data.channels_b:
            raise InputError("--loss.identity: needs domains with the same number of channels; give 0")
        if self.generator.dropout and self.generator.architecture == "seed":
            raise InputError("--generator.dropout: the seed's generator has none; give --generator.architecture resnet or unet")
        if not self.crops and self.loss.gan == "wgangp":
            raise InputError(f"--preprocess {self.preprocess}: the gradient penalty mixes images of one size; choose one that crops")
        return self

    def _check_norms(self) -> None:
        for owner, norm in (("generator", self.generator.norm), ("discriminator", self.discriminator.norm)):
            if norm == "batch" and self.max_workers > 1:
                raise InputError(
                    f"--{owner}.norm batch: with {self.max_workers} workers each would normalise by its own images alone; "
                    "give sync_batch or instance"
                )
        if self.loss.gan == "wgangp" and self.discriminator.norm != "instance":
            raise InputError(
                f"--discriminator.norm {self.discriminator.norm}: the penalty of wgangp is on each image's own gradient; give instance"
            )
        if self.loss.gan == "wgangp" and self.compile:
            raise InputError("--compile: torch.compile can't differentiate the gradient penalty of wgangp; give --no-compile")


class TranslateSettings(Settings):
    """Translate every photo of a source through a trained generator, on this machine or a Ray cluster."""

    generator: str
    """A RUN of jobs.train, an exported generator, junyanz's latest_net_G*.pth, or the seed's G_XtoY.pkl."""
    source: str
    """A folder (searched recursively), a glob, a Parquet, CSV or JSONL manifest with a `uri` column, Parquet with image bytes, WebDataset
    shards (`shards-{000..099}.tar`), or a URI of these such as s3://bucket/folder."""
    out: str
    """OUT folder or URI. The same command again resumes."""
    direction: Direction | None = None
    """Which generator of a RUN; a2b unless given. Must agree with what an exported generator says of itself."""
    format: Literal["parquet", "images", "webdataset"] = "parquet"
    """Where the pictures go: into the rows themselves, into files that mirror the source's folders, or into tar shards."""
    size: Annotated[str, Field(pattern=r"^(native|resize:[1-9]\d*|tile|tile:[1-9]\d*)$")] | None = None
    """`native`; `resize:N`: shorter side to N pixels, shape kept; `tile:N`: as large as it is, in tiles of N; by default the size the
    generator was trained at."""
    restore_size: bool = False
    """Bring translations back to the size of their photos after `resize:N`."""
    encoding: Literal["jpeg", "png", "webp", "tiff"] = "jpeg"
    """How the translated pixels are stored; png and tiff hold 16 bits and any number of channels; all but jpeg keep a photo's alpha."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """For jpeg and webp."""
    keep_exif: bool = False
    """Carry the date and place of a photo over into its translation."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the generator's arithmetic; `auto` is bf16 where the device has it."""
    batch_size: Positive | None = None
    """Photos of one size that a generator takes at once; found by itself unless given."""
    generators: Positive | None = None
    """Copies of the generator; by default one for each GPU, or one for each machine without any."""
    gpu: bool | None = None
    """Translate on GPUs; by default where the cluster has any."""
    segment_rows: Positive = 1_000_000
    """Inputs to commit at a time."""
    file_rows: Positive | None = None
    """Photos to a data file, and lost at most for each generator when a job is killed; by default so many that files come steadily."""
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Exit with 3 where more of the images than this failed; stops as soon as that is certain."""
    retry_failed: bool = False
    """Translate the photos that failed again, and only them."""
    cycle_sample: NonNegative = 64
    """Photos, evenly spread, that are translated back for the report, which shows the worst; only where the reverse generator is there."""
    reverse: str | None = None
    """The generator of the other direction, for `cycle_sample`; a RUN has it already."""
    dry_run: bool = False
    """Translate a sample, write nothing, and say what the whole would take."""
    sample: Positive = 256
    """Photos of a dry run, drawn at random from the source."""
    price_per_hour: Weight | None = None
    """What the cluster costs an hour, for the estimate of a dry run."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.restore_size and self.size is not None and not self.size.startswith("resize:"):
            raise InputError(f"--restore-size: --size {self.size} leaves photos as large as they are; give resize:N")
        if self.dry_run and self.retry_failed:
            raise InputError("--dry-run --retry-failed: a dry run is of the whole source; give one of them")
        return self


class VerifySettings(Settings):
    """Prove that a translation is whole, or find what is missing, doubled, damaged or foreign."""

    out: CliPositionalArg[str]
    """OUT of jobs.translate."""
    repair: bool = False
    """Delete what doesn't belong there and translate again exactly what is missing."""
    generator: str | None = None
    """Where the generator is now, for a repair; by default where it was."""
    gpu: bool | None = None
    """Repair on GPUs; by default where the cluster has any."""


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
    steps: Positive = 300
    """Of the training; more of them make better pictures."""


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
        "optimizer": {"schedule": "linear", "decay_from": 0.5},
    },
}


@dataclass(frozen=True)
class Cluster:
    """What a job can use now: logical CPUs and GPUs, bytes of the object store; and whether more may come (an autoscaler)."""

    machine_cpus: tuple[float, ...]
    """Of each machine that has any."""
    gpus: float
    object_store_bytes: float
    can_grow: bool

    @property
    def cpus(self) -> float:
        """Of all machines."""
        return sum(self.machine_cpus)

    def use_gpu(self, asked: bool | None, count: int) -> bool:
        """Whether to run on GPUs: as asked, else where there are any.

        Raises:
            ValueError: fewer than `count` GPUs, and no more can come.
        """
        use = self.gpus > 0 if asked is None else asked
        if use and self.gpus < count and not self.can_grow:
            raise InputError(f"{count} GPUs needed, {self.gpus:g} here; give --no-gpu, or RAY_ADDRESS for a cluster that has them")
        return use
