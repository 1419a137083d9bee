"""What the demo asks of each job, and the page that shows what came of it.

In: a folder. Out: two drawn domains in it, the settings of training, translation and evaluation, and a page with the pictures.
Scenes of the two training domains are all different; those of the test come in both looks, so that the truth is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cyclegan import images, report, run, storage
from cyclegan.config import (
    DataSettings,
    DiscriminatorSettings,
    EvaluateSettings,
    GeneratorSettings,
    LossSettings,
    OptimizerSettings,
    TrainSettings,
    TranslateSettings,
)
from cyclegan.errors import InputError
from cyclegan.images import Pixels
from cyclegan.landscapes import Domain, draw

TRAIN_IMAGES = 200
TEST_IMAGES = 32
SIZE = 64
GOAL = 0.25
"""Error of the translations, as a share of the untranslated images' error, above which the demo has failed."""

_SHOWN = 8


@dataclass(frozen=True)
class Folders:
    """Where the demo keeps its things, below `out`."""

    out: str

    @property
    def train_a(self) -> str:
        """Midday photos to learn from."""
        return storage.join(self.out, "data", "trainA")

    @property
    def train_b(self) -> str:
        """Paintings of dusk to learn from; other scenes than the photos'."""
        return storage.join(self.out, "data", "trainB")

    @property
    def test_a(self) -> str:
        """Midday photos to translate."""
        return storage.join(self.out, "data", "testA")

    @property
    def truth(self) -> str:
        """The same scenes as `test_a`, as dusk paints them."""
        return storage.join(self.out, "data", "testB")

    @property
    def run(self) -> str:
        """The RUN of the training."""
        return storage.join(self.out, "run")

    @property
    def translated(self) -> str:
        """The OUT of the translation."""
        return storage.join(self.out, "translated")

    @property
    def report(self) -> str:
        """The page."""
        return storage.join(self.out, "report.html")


def draw_domains(out: str) -> Folders:
    """Draws all pictures of the demo into `out`.

    Raises:
        InputError: the folder holds something else.
    """
    folders = Folders(storage.absolute(out))
    if not storage.is_empty(folders.out) and not storage.exists(folders.train_a):
        raise InputError(f"--out {out}: is not empty and holds no demo; give a new folder")
    _draw(folders.train_a, "a", range(TRAIN_IMAGES))
    _draw(folders.train_b, "b", range(TRAIN_IMAGES, 2 * TRAIN_IMAGES))
    test = range(2 * TRAIN_IMAGES, 2 * TRAIN_IMAGES + TEST_IMAGES)
    _draw(folders.test_a, "a", test)
    _draw(folders.truth, "b", test)
    return folders


def train_settings(folders: Folders, steps: int) -> TrainSettings:
    """A small network of the paper's kind: at 64 pixels the seed's three halvings leave too little of the shapes."""
    return TrainSettings(
        data=DataSettings(a=folders.train_a, b=folders.train_b),
        out=folders.run,
        workers=2,
        gpu=False,
        steps=steps,
        batch_size=4,
        size=SIZE,
        generator=GeneratorSettings(architecture="resnet", channels=16, blocks=3, norm="instance"),
        discriminator=DiscriminatorSettings(architecture="patch", channels=16, norm="instance"),
        init="normal",
        loss=LossSettings(discriminator=0.5),
        pool_size=50,
        optimizer=OptimizerSettings(learning_rate=4e-4, schedule="linear"),
        report_every=20,
        sample_every=100,
        checkpoint_every=100,
    )


def translate_settings(folders: Folders) -> TranslateSettings:
    """Midday to dusk, stored without loss so that the codec adds nothing to the error."""
    return TranslateSettings(
        generator=folders.run, source=folders.test_a, out=folders.translated, direction="a2b", encoding="png", gpu=False
    )


def evaluate_settings(folders: Folders, generated: str) -> EvaluateSettings:
    """Holds `generated` against the truth."""
    return EvaluateSettings(generated=generated, real=folders.truth, paired=True)


def write_report(folders: Folders, pairs: Sequence[tuple[str, Pixels, Pixels]], facts: Mapping[str, object]) -> str:
    """Writes the page.

    Args:
        folders: where everything is.
        pairs: names of test images, the images and their translations.
        facts: figures to show.

    Returns:
        The path of the page.
    """
    shown = sorted(pairs, key=lambda pair: pair[0])[:_SHOWN]
    truth = [images.decode(storage.read_bytes(storage.join(folders.truth, name))) for name, _, _ in shown]
    sheet = report.sheet([[before for _, before, _ in shown], [after for _, _, after in shown], truth], cell=2 * SIZE)
    metrics = run.read_metrics(folders.run)
    sections = [
        report.Section(
            heading="Midday to dusk",
            text="The network saw midday photos and paintings of dusk, never the same scene in both. What it makes of scenes that it "
            "has not seen is held against the painting that was kept from it.",
            figures=[report.Figure("Photos above, their translations in the middle, the truth below.", sheet)],
            facts=facts,
        ),
        report.Section(heading="Training", figures=[run.latest_samples(folders.run, metrics[-1]["step"]), run.training_curves(metrics)]),
    ]
    storage.write_text(folders.report, report.page("CycleGAN on Ray: the demo", sections))
    return folders.report


def _draw(folder: str, domain: Domain, seeds: range) -> None:
    for index, seed in enumerate(seeds):
        storage.write_bytes(storage.join(folder, f"{index:04d}.png"), images.encode(draw(seed, domain, SIZE), "png"))
