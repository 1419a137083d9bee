"""One driver to an OUT: the second is told, the dead are replaced, whoever is replaced stops."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cyclegan import lease
from cyclegan.errors import InputError, StoppedError
from tests.conftest import REPOSITORY

HOLD = "import sys, time; from cyclegan.lease import hold\nwith hold(sys.argv[1]): print('held', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "REFRESH", 0.2)
    monkeypatch.setattr(lease, "PATIENCE", 3.0)
    monkeypatch.setattr(lease, "_SETTLE", 0.05)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `tmp_path`, with a sign of life every second."""
    code = f"from cyclegan import lease; lease.REFRESH = 1.0; {HOLD}"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_it_is_there_while_it_is_held(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path)) as held:
        held.check()
        assert json.loads((tmp_path / "lock.json").read_text())["token"] == held.token
    assert not (tmp_path / "lock.json").exists()


def test_a_second_driver_is_told_who_is_first(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(InputError, match=f"another job is at work there, process {other.pid} on {socket.gethostname()}"),
        lease.hold(str(tmp_path)),
    ):
        pass
    assert other.poll() is None


def test_a_killed_driver_is_replaced_at_once(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    with lease.hold(str(tmp_path)) as held:
        held.check()


def test_a_silent_driver_elsewhere_is_replaced_after_a_while(tmp_path: Path) -> None:
    silent = {"token": "t", "host": "elsewhere", "pid": 1, "since": "yesterday", "beat": 7}
    (tmp_path / "lock.json").write_text(json.dumps(silent))
    with lease.hold(str(tmp_path)) as held:
        held.check()


def test_whoever_is_replaced_stops(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path)) as held:
        other = {"token": "t", "host": "elsewhere", "pid": 1, "since": "now", "beat": 0}
        (tmp_path / "lock.json").write_text(json.dumps(other))
        with pytest.raises(StoppedError, match="was taken over by process 1 on elsewhere"):
            held.check()
    assert json.loads((tmp_path / "lock.json").read_text()) == other  # and leaves the other's lock alone


def test_an_unreachable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out .*/file/out: "), lease.hold(str(tmp_path / "file" / "out")):
        pass
