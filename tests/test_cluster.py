"""The way to a cluster: the launcher's file, and both jobs submitted to a head of the test's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import REPOSITORY

RAY = str(Path(sys.executable).parent / "ray")


def test_launcher_accepts_cluster_yaml() -> None:
    config = prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))
    validate_config(config)
    nodes = config["available_node_types"]
    assert nodes[config["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}, "the head runs no work"
    spot = {name for name, node in nodes.items() if node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"}
    assert spot == set(nodes) - {config["head_node_type"]}
    assert any(node["resources"].get("GPU") for node in nodes.values())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a shell from which jobs go to a head started here; stopped by its process group."""
    # a folder of its own, so that no other Ray on this machine finds it; a short one, for the sake of its sockets' names
    folder = Path("/tmp") / f"ray-test-{os.getpid()}"
    dashboard = free_port()
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "disabled", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ports = [f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    hosts = ["--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}", *ports, *hosts]
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        shell = {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        deadline = time.monotonic() + 100
        # the head is up some seconds before its agent, which takes the jobs
        while subprocess.run([RAY, "job", "submit", "--no-wait", "--", "true"], env=shell, capture_output=True, check=False).returncode:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(1)
        yield shell
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers end themselves when their raylet is gone
        process.wait(5)
        shutil.rmtree(folder, ignore_errors=True)


def submit(head: dict[str, str], *job: str) -> str:
    command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", "-m", *job]
    done = subprocess.run(command, cwd=REPOSITORY, env=head, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_both_jobs_can_be_submitted(head: dict[str, str], landscapes: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    small = ["--steps=2", "--size=32", "--batch-size=2", "--generator.channels=4", "--generator.blocks=1", "--discriminator.channels=4"]
    data = ["--data.a", str(landscapes / "a"), "--data.b", str(landscapes / "b")]
    said = submit(head, "jobs.train", *data, "--out", str(run), *small)
    assert f"generators in {run}/generators" in said
    said = submit(
        head, "jobs.translate", "--generator", str(run), "--direction", "b2a", "--source", str(landscapes / "b"), "--out", str(out)
    )
    assert "10 ok, 0 failed of 10" in said
    assert sorted(pq.read_table(out / "data")["row_id"].to_pylist()) == list(range(10))
