"""The demo, whole, as a newcomer runs it, but with fewer steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cyclegan.demo import GOAL, TEST_IMAGES
from cyclegan.landscapes import draw
from tests.conftest import REPOSITORY


@pytest.mark.timeout(600)
def test_demo(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "jobs.demo", "--out", str(tmp_path), "--steps", "80"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"at most {GOAL} is asked" in done.stdout
    assert done.stdout.endswith(f"{tmp_path}/report.html\n")
    rows = pq.read_table(tmp_path / "translated" / "data").to_pylist()
    assert sorted(row["row_id"] for row in rows) == list(range(TEST_IMAGES))
    assert {row["status"] for row in rows} == {"ok"}
    assert (tmp_path / "report.html").read_text().count("data:image/") == 3


def test_scenes_differ_and_their_looks_agree() -> None:
    first, other = draw(0, "a", 32).astype(int), draw(1, "a", 32).astype(int)
    assert abs(first - other).mean() > 10
    assert (draw(0, "b", 32) == draw(0, "b", 32)).all()
    # trees are the darkest thing in both looks, and stand in the same places
    dark = [draw(0, domain, 64).sum(2) < limit for domain, limit in (("a", 150), ("b", 75))]  # type: ignore[arg-type]
    assert 0 < (dark[0] & dark[1]).sum() > 0.8 * max(dark[0].sum(), dark[1].sum())
