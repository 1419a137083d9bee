"""The direction of imports is fixed: each module stands on lower floors only, and Ray is known at the top alone."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

PARTS = {
    *("ahead", "alarms", "average", "config", "domain", "errors", "geometry", "image_pool", "landscapes", "lease", "losses", "networks"),
    *("object_names", "optimizer", "options", "progress", "report", "storage", "sync_batch_norm"),
    *("trackers", "training_images", "unit_range"),
    *("colour", "deep", "encoding", "exif", "images", "mislabelled", "pixels"),
    *("archives", "files", "image_tables", "manifests", "sources"),
}
KEPT = {
    *("data_files", "generating", "inference", "ledger", "loading", "model", "plan", "run", "sinks", "storing", "tiles"),
    *("translation_report", "verification", "watch", "weights", "winograd"),
}
PIPELINES = {"training", "translation", "evaluation"}

ALLOWED: dict[str, set[str]] = {
    "average": set(),
    "errors": set(),
    "networks": set(),
    "losses": set(),
    "image_pool": set(),
    "ahead": set(),
    "object_names": set(),
    "lease": {"errors", "storage"},
    "pixels": set(),
    "colour": {"pixels"},
    "deep": {"colour", "pixels"},
    "encoding": {"colour", "pixels"},
    "exif": set(),
    "mislabelled": {"pixels"},
    "images": {"colour", "deep", "encoding", "exif", "mislabelled", "pixels"},
    "files": {"errors", "storage"},
    "archives": {"errors", "files"},
    "manifests": {"errors", "files", "storage"},
    "image_tables": {"errors", "files", "storage"},
    "optimizer": set(),
    "sync_batch_norm": set(),
    "winograd": set(),
    "progress": set(),
    "alarms": {"losses"},
    "storage": {"errors"},
    "config": {"errors"},
    "options": {"config", "errors", "storage"},
    "geometry": {"errors", "images"},
    "unit_range": set(),
    "domain": {"errors", "geometry", "images", "unit_range"},
    "landscapes": {"images"},
    "report": {"images"},
    "sources": {"archives", "errors", "files", "image_tables", "manifests", "storage"},
    "trackers": {"errors", "storage"},
    "model": {"average", "config", "errors", "networks", "losses", "image_pool", "optimizer", "sync_batch_norm"},
    "weights": {"errors", "images", "networks", "storage"},
    "plan": {"errors", "sources", "storage"},
    "data_files": {"plan", "storage"},
    "ledger": {"ahead", "data_files", "plan", "storage"},
    "sinks": {"encoding", "object_names", "plan", "storage"},
    "tiles": {"geometry", "images", "unit_range"},
    "inference": {"geometry", "images", "tiles", "unit_range", "weights", "winograd"},
    "loading": {"ahead", "geometry", "images", "plan", "sources"},
    "storing": {"errors", "images", "ledger", "loading", "plan", "sinks"},
    "generating": {"geometry", "images", "inference", "loading", "storing", "weights"},
    "training_images": {"geometry", "images", "sources"},
    "verification": {"ahead", "data_files", "errors", "ledger", "plan", "sinks", "storage"},
    "watch": {"data_files", "errors", "lease", "ledger", "progress", "storage"},
    "translation_report": {"images", "ledger", "plan", "progress", "report", "sinks", "sources", "storage"},
    "run": PARTS | {"model", "weights"},
    "demo": PARTS | {"run"},
    "training_data": PARTS | {"model", "run"},
    "training_loop": PARTS | {"model", "run", "training_data"},
    **{pipeline: PARTS | KEPT | {""} for pipeline in PIPELINES},
}
ALLOWED["training"] = ALLOWED["training"] | {"training_data", "training_loop"}
ALLOWED["second_try"] = set()
ALLOWED["streaming"] = {
    *("config", "ledger", "plan", "sinks", "storage", "translation_report", "weights"),
    *("generating", "loading", "second_try", "storing"),
}
ALLOWED["translation"] = ALLOWED["translation"] | {"streaming"}
ALLOWED["dry_run"] = PARTS | KEPT | {"streaming", "translation"}

RAY_IS_KNOWN_TO = {"evaluation", "second_try", "streaming", "training", "training_data", "training_loop"}
ABOVE_RAY = {"dry_run", "translation"}

WITHOUT_TORCH = {"config", "loading", "options", "second_try", "storing", "training_images"}
"""What jobs run before they know that all options are right, and what runs in many processes: torch costs each seconds and memory."""


def imports_of(path: str) -> set[str]:
    """Full names of all that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            names |= {f"{node.module}.{alias.name}" if node.module == "cyclegan" else node.module for alias in node.names}
    return names


def test_every_module_has_its_floor() -> None:
    modules = {path.stem for path in (REPOSITORY / "cyclegan").glob("*.py")} - {"__init__"}
    assert modules == ALLOWED.keys()


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_module_imports_lower_floors_only(module: str) -> None:
    names = imports_of(f"cyclegan/{module}.py")
    assert {name.partition(".")[2] for name in names if name.split(".")[0] == "cyclegan"} <= ALLOWED[module]
    assert not any(name.split(".")[0] == "jobs" for name in names)
    assert module in RAY_IS_KNOWN_TO or not any(name.split(".")[0] == "ray" for name in names)


def test_ray_is_not_loaded_below_the_pipelines() -> None:
    lower = sorted(ALLOWED.keys() - RAY_IS_KNOWN_TO - ABOVE_RAY)
    code = f"import sys; import {', '.join(f'cyclegan.{name}' for name in lower)}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize("module", sorted(WITHOUT_TORCH))
def test_torch_is_not_loaded_where_it_would_cost(module: str) -> None:
    code = f"import sys; import cyclegan.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize("job", sorted(path.name for path in (REPOSITORY / "jobs").glob("*.py") if path.stem not in ("__init__", "cli")))
def test_jobs_are_short(job: str) -> None:
    assert len((REPOSITORY / "jobs" / job).read_text().splitlines()) < 60
