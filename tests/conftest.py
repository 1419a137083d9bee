"""Real pictures, real networks, real Ray: what the tests share."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Before Ray is imported: a local Ray with a token would leave it behind for every later one on this machine.
os.environ["RAY_AUTH_MODE"] = "disabled"

import fsspec
import pytest
import ray
import ray.data

from cyclegan.config import Cluster, DataSettings, DiscriminatorSettings, GeneratorSettings, TrainSettings
from cyclegan.images import encode
from cyclegan.landscapes import Domain, draw

REPOSITORY = Path(__file__).parent.parent
# Between the ports of Ray (to 19999) and those that systems give away (from 32768): it is used minutes later and must still be free.
OBJECT_STORE_PORT = 20000 + os.getpid() % 10000


def pytest_configure() -> None:
    """Tell this process and the Ray workers that it starts of one object store, which `bucket` starts.

    Not on import: a worker that unpickles a test's class imports this file too, and would look for a store of its own.
    """
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{OBJECT_STORE_PORT}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes give their argument's name: gzip's hold the time, and processes of one suite must agree on a test's name."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Ray of the tests' own, in this process."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield Cluster(machine_cpus=(2,), gpus=0, object_store_bytes=1e9, can_grow=False)
    ray.shutdown()


@pytest.fixture(scope="session")
def landscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with domains `a` (12 pictures) and `b` (10), 32 px."""
    root = tmp_path_factory.mktemp("landscapes")
    domains: tuple[tuple[Domain, int], ...] = (("a", 12), ("b", 10))
    for domain, count in domains:
        (root / domain).mkdir()
        for index in range(count):
            (root / domain / f"{index:02d}.png").write_bytes(encode(draw(index, domain, 32), "png"))
    return root


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """An empty bucket of an object store that speaks S3, on this machine."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(OBJECT_STORE_PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", OBJECT_STORE_PORT)) == 0:
                    break
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()


def tiny_settings(root: Path, out: Path | str, **changes: object) -> TrainSettings:
    """A seed CycleGAN small enough to train in a test, with everything that changes switched on."""
    settings = TrainSettings(
        data=DataSettings(a=str(root / "a"), b=str(root / "b")),
        out=str(out),
        workers=2,
        epochs=4,
        batch_size=2,
        size=32,
        load_scale=1.25,
        flip=True,
        generator=GeneratorSettings(channels=4, blocks=1),
        discriminator=DiscriminatorSettings(channels=4),
        pool_size=3,
        report_every=1,
        sample_every=6,
        checkpoint_every=2,
    )
    return TrainSettings.model_validate({**settings.model_dump(), **changes})
