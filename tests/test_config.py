"""Settings: who wins, what is refused, and what the presets are."""

from __future__ import annotations

from pathlib import Path

import pytest

from cyclegan.config import Cluster, TrainSettings, TranslateSettings
from cyclegan.errors import InputError
from cyclegan.options import load_settings, to_yaml

NEEDED = ["--data.a", "x", "--data.b", "y", "--out", "run"]


def train(*argv: str) -> TrainSettings:
    return load_settings(TrainSettings, argv, "python -m jobs.train")


def test_presets_are_the_published_recipes() -> None:
    seed, paper = train(*NEEDED), train(*NEEDED, "--preset", "paper")
    assert (seed.size, seed.load_size, seed.batch_size, seed.pool_size, seed.flip) == (128, 128, 16, 0, False)
    assert (seed.generator.architecture, seed.generator.blocks, seed.generator.norm) == ("seed", 6, "sync_batch")
    assert (seed.loss.cycle, seed.loss.identity, seed.loss.discriminator) == (10, 0, 1)
    assert (seed.optimizer.learning_rate, seed.optimizer.beta1, seed.optimizer.beta2) == (2e-4, 0.5, 0.999)
    assert (paper.size, paper.load_size, paper.batch_size, paper.pool_size, paper.flip) == (256, 286, 1, 50, True)
    assert (paper.generator.architecture, paper.generator.blocks, paper.generator.norm) == ("resnet", 9, "instance")
    assert (paper.discriminator.architecture, paper.init) == ("patch", "normal")
    assert (paper.loss.cycle, paper.loss.identity, paper.loss.discriminator) == (10, 5, 0.5)
    assert (paper.epochs, paper.steps, paper.optimizer.schedule, paper.optimizer.decay_from) == (200, None, "linear", 0.5)
    assert seed.optimizer.schedule == "constant"


def test_command_line_over_file_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("preset: paper\ndata: {a: fa, b: fb}\nout: fo\nloss: {cycle: 3, identity: 1}\nsteps: 9\n")
    settings = train("--config", str(file), "--data.a", "x", "--loss.identity", "2", "--no-flip")
    assert (settings.data.a, settings.data.b, settings.out) == ("x", "fb", "fo")
    assert (settings.loss.cycle, settings.loss.identity, settings.loss.discriminator) == (3, 2, 0.5)
    assert (settings.steps, settings.epochs, settings.flip, settings.pool_size) == (9, None, False, 50)


def test_written_settings_are_read_back(tmp_path: Path) -> None:
    settings = train(*NEEDED, "--preset", "paper", "--steps", "3", "--workers", "2", "--no-gpu")
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    assert train("--config", str(tmp_path / "config.yaml")) == settings
    assert train("--resume", str(tmp_path)) == settings.model_copy(update={"out": str(tmp_path)})


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([*NEEDED, "--stepz", "3"], "--stepz"),
        ([*NEEDED, "--step", "3"], "--step"),
        ([*NEEDED, "--loss.cycles", "3"], "--loss.cycles"),
        (["--data.a", "x", "--out", "run"], "--data.b is required"),
        ([*NEEDED, "--steps", "many"], "--steps many"),
        ([*NEEDED, "--workers", "0"], "--workers 0"),
        ([*NEEDED, "--preset", "big"], "--preset big"),
        ([*NEEDED, "--steps", "3", "--epochs", "3"], "one of --steps and --epochs"),
        ([*NEEDED, "--workers", "3..2"], "--workers 3..2"),
        ([*NEEDED, "--workers", "2..many"], "--workers 2..many"),
        ([*NEEDED, "--accumulate", "3"], "--accumulate 3: must divide --batch-size 16"),
        ([*NEEDED, "--generator.norm", "batch", "--workers", "1..2"], "--generator.norm batch"),
        ([*NEEDED, "--loss.gan", "wgangp"], "--discriminator.norm sync_batch"),
        ([*NEEDED, "--loss.gan", "wgangp", "--discriminator.norm", "instance", "--compile"], "--no-compile"),
        ([*NEEDED, "--loss.gan", "wgangp", "--discriminator.norm", "instance", "--preprocess", "none"], "--preprocess none"),
        ([*NEEDED, "--loss.identity", "5", "--data.channels-a", "1"], "--loss.identity"),
        ([*NEEDED, "--data.channels-a", "5"], "--data.channels-a 5"),
        ([*NEEDED, "--data.bits", "12"], "--data.bits 12"),
        ([*NEEDED, "--generator.dropout"], "--generator.dropout"),
        ([*NEEDED, "--config", "/no/such.yaml"], "/no/such.yaml"),
        (["--resume", "/no/run"], "/no/run/config.yaml"),
        ([*NEEDED, "surplus"], "surplus"),
    ],
)
def test_what_is_refused_is_named_in_one_line(argv: list[str], named: str) -> None:
    with pytest.raises(InputError) as caught:
        train(*argv)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("data: {a: x, b: y, c: z}\nout: r", "--data.c"),
        ("learning_rate: 3", "--learning-rate"),
        ("[1, 2]", "found list"),
        ("a: [", "c.yaml"),
    ],
)
def test_file_is_read_as_strictly(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=named):
        train("--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(("text", "workers"), [("3", (3, 3)), ("1..4", (1, 4)), ("2..2", (2, 2))])
def test_workers(text: str, workers: tuple[int, int], tmp_path: Path) -> None:
    settings = train(*NEEDED, "--workers", text)
    assert settings.worker_range == workers
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    assert train("--config", str(tmp_path / "config.yaml")) == settings


def test_numbers_are_read_from_the_command_line() -> None:
    settings = train(*NEEDED, "--data.bits", "16", "--data.channels-a", "4", "--ema-half-life", "0", "--threads", "2")
    assert (settings.data.bits, settings.data.channels_a, settings.ema_half_life, settings.threads) == (16, 4, 0, 2)


@pytest.mark.parametrize("size", ["resize:0", "resize:", "tile:", "256"])
def test_size_policies(size: str) -> None:
    with pytest.raises(InputError, match="--size"):
        load_settings(TranslateSettings, ["--generator", "g", "--source", "s", "--out", "o", "--size", size], "prog")


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--data.a", "--loss.cycle", "--optimizer.decay-from", "--config", "--resume", "--no-gpu"))


def test_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "77")
    assert train(*NEEDED).steps == 4000


def test_gpus_are_asked_for_where_there_are_some() -> None:
    laptop, workstation = Cluster((4,), 0, 1e9, False), Cluster((16,), 2, 1e9, False)
    assert not laptop.use_gpu(None, 1)
    assert workstation.use_gpu(None, 2)
    assert not workstation.use_gpu(False, 2)
    assert Cluster((), 0, 0, can_grow=True).use_gpu(True, 8)
    with pytest.raises(InputError, match="--no-gpu"):
        laptop.use_gpu(True, 1)
