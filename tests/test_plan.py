"""The plan of a translation: every input once, nothing mixed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cyclegan.errors import InputError
from cyclegan.plan import Plan, find_plan, make_plan
from cyclegan.sources import Input

REQUEST = {"generator_sha256": "aa", "size": "native"}


def planned(out: Path, count: int = 7, segment_rows: int = 3) -> Plan:
    inputs = [Input(f"{out.parent}/{n}.jpg", n, str(n)) for n in range(count)]
    return make_plan(str(out), REQUEST, str(out.parent), inputs, segment_rows=segment_rows, settings={})


def test_manifest_holds_every_input_once(tmp_path: Path) -> None:
    plan = planned(tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "manifest")
    assert table.schema.field("row_id").type == pa.int64()
    assert table["row_id"].to_pylist() == list(range(7))
    assert table["uri"].to_pylist() == [f"{tmp_path}/{n}.jpg" for n in range(7)]
    assert [(s.name, s.first_row_id, s.rows) for s in plan.segments] == [("00000", 0, 3), ("00001", 3, 3), ("00002", 6, 1)]


def test_plan_is_found_again_wherever_it_was_moved(tmp_path: Path) -> None:
    plan = planned(tmp_path / "out")
    assert find_plan(str(tmp_path / "out"), REQUEST, str(tmp_path)) == plan
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = find_plan(str(tmp_path / "moved"), REQUEST, str(tmp_path))
    assert moved is not None
    assert moved.fingerprint == plan.fingerprint


def test_nothing_there_and_a_listing_cut_short_are_no_plan(tmp_path: Path) -> None:
    assert find_plan(str(tmp_path / "out"), REQUEST, "s") is None
    planned(tmp_path / "out")
    (tmp_path / "out" / "plan.json").unlink()
    assert find_plan(str(tmp_path / "out"), REQUEST, "s") is None


def test_other_jobs_are_refused_by_what_differs(tmp_path: Path) -> None:
    planned(tmp_path / "out")
    with pytest.raises(InputError, match="generator_sha256 was aa, is bb"):
        find_plan(str(tmp_path / "out"), {**REQUEST, "generator_sha256": "bb"}, str(tmp_path))
    with pytest.raises(InputError, match=f"source was {tmp_path}, is /other"):
        find_plan(str(tmp_path / "out"), REQUEST, "/other")


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds no plan"):
        find_plan(str(tmp_path), REQUEST, "s")
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="not a plan"):
        find_plan(str(tmp_path), REQUEST, "s")


def test_plan_changed_by_hand_is_refused(tmp_path: Path) -> None:
    planned(tmp_path / "out")
    path = tmp_path / "out" / "plan.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "manifest_sha256": "00"}))
    with pytest.raises(InputError, match="changed by hand"):
        find_plan(str(tmp_path / "out"), REQUEST, str(tmp_path))
