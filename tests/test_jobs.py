"""The commands as a user types them: exit codes, single lines, nothing written over."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cyclegan.config import TranslateSettings
from cyclegan.errors import InputError
from cyclegan.networks import GeneratorSpec
from jobs.cli import parse, run
from jobs.translate import main as translate
from tests.conftest import REPOSITORY


def job(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def bench(tmp_path: Path, landscapes: Path) -> Path:
    """A folder with both domains, an empty folder, a file, and something that must not be written over."""
    (tmp_path / "a").symlink_to(landscapes / "a")
    (tmp_path / "b").symlink_to(landscapes / "b")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8 a photo")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    return tmp_path


TRAIN = "jobs.train --data.a {0}/a --data.b {0}/b --out {0}/run"
TRANSLATE = "jobs.translate --generator {0}/photo.pth --source {0}/a --out {0}/out"


BAD_INPUT = [
    (TRAIN.replace("{0}/a", "{0}/nowhere"), "nowhere: no such folder or file"),
    (TRAIN.replace("{0}/b", "{0}/empty"), "empty: no files found"),
    (TRAIN + " --stepz 3", "--stepz"),
    (TRAIN.replace("{0}/run", "{0}/mine"), "mine: is not empty and holds no run"),
    ("jobs.train --out {0}/run", "--data is required"),
    (TRANSLATE, "photo.pth: not a PyTorch state dict"),
    (TRANSLATE.replace("photo.pth", "nothing"), "nothing: no such file or folder"),
    (TRANSLATE + " --format bmp", "--format bmp"),
    ("jobs.evaluate --generated {0}/a --real {0}/b", "--paired"),
    ("jobs.verify {0}/mine", "mine: holds no plan.json"),
    ("jobs.verify", "the following arguments are required: OUT"),
    ("jobs.demo --out {0}/mine", "mine: is not empty and holds no demo"),
]


@pytest.mark.parametrize(("command", "named"), BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(
    bench: Path, command: str, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, for speed; `test_bad_input_as_typed` shows that a process of its own does the same."""
    module, *words = command.format(bench).split()
    monkeypatch.setattr(sys, "argv", [module, *words])
    before = sorted(bench.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        run(importlib.import_module(module).main)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert named in err
    assert (err.startswith("error: "), err.count("\n"), out) == (True, 1, "")
    assert sorted(bench.rglob("*")) == before
    assert (bench / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(("command", "named"), [BAD_INPUT[0], BAD_INPUT[5]])
def test_bad_input_as_typed(bench: Path, command: str, named: str) -> None:
    done = job(*command.format(bench).split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert named in done.stderr


def test_results_are_not_written_into_a_clusters_passing_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    words = ["--generator", "g", "--source", "s", "--out"]
    with pytest.raises(InputError, match="--out translated"):
        parse(TranslateSettings, "translate", [*words, "translated"])
    assert parse(TranslateSettings, "translate", [*words, "s3://bucket/translated"]).out == "s3://bucket/translated"


def test_failures_are_an_exit_code_and_damage_is_found_and_repaired(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too many failed images are exit code 3; what is lost afterwards is exit code 1 of jobs.verify until it is repaired."""
    torch.save(GeneratorSpec(architecture="resnet", channels=4, blocks=6).build().state_dict(), tmp_path / "latest_net_G.pth")
    (tmp_path / "photos").mkdir()
    for index, path in enumerate(sorted((bench / "a").iterdir())[:3]):
        (tmp_path / "photos" / f"{index}.png").write_bytes(path.read_bytes())
    (tmp_path / "photos" / "broken.png").write_bytes(b"broken")
    command = [
        "jobs.translate",
        "--generator",
        f"{tmp_path}/latest_net_G.pth",
        "--source",
        f"{tmp_path}/photos",
        "--out",
        f"{tmp_path}/out",
    ]
    done = job(*command, "--size", "native")
    assert done.returncode == 3, done.stderr
    assert "3 ok, 1 failed of 4" in done.stdout
    assert "--max-failed-share 0.01" in done.stderr
    whole = "planned 4 = 3 ok + 1 failed: whole\n"
    verified = job("jobs.verify", f"{tmp_path}/out")
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, whole, "")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where no Ray is, and for a finished job none is needed
    assert translate([*command[1:], "--size", "native"]) == 3
    assert "3 ok, 1 failed of 4" in capsys.readouterr().out
    (lost,) = (tmp_path / "out" / "data").rglob("*.parquet")
    lost.unlink()
    damaged = job("jobs.verify", f"{tmp_path}/out")
    assert damaged.returncode == 1
    assert f"missing: {lost}: the file is gone\n" in damaged.stderr
    repaired = job("jobs.verify", f"{tmp_path}/out", "--repair")
    assert (repaired.returncode, repaired.stdout.splitlines(keepends=True)[-1]) == (0, whole)


@pytest.mark.parametrize("name", ["train", "translate", "verify", "evaluate", "demo"])
def test_help(name: str) -> None:
    done = job(f"jobs.{name}", "--help")
    assert done.returncode == 0
    assert f"usage: python -m jobs.{name}" in done.stdout
