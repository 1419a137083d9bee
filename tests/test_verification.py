"""A translation is proved whole, or each thing that is wrong with it is named, and the repair does exactly that again."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cyclegan import ledger
from cyclegan.errors import InputError
from cyclegan.plan import ROW_SCHEMA, Plan, make_plan
from cyclegan.sources import Input
from cyclegan.verification import repair, verify
from tests.test_ledger import WORKERS, finish, todo


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two committed segments of four rows, two to a data file, their pictures in files of their own; row 5 failed."""
    inputs = [Input(f"{tmp_path}/{n}.jpg", n, str(n)) for n in range(8)]
    made = make_plan(str(tmp_path / "out"), {"format": "images", "encoding": "jpeg"}, str(tmp_path), inputs, segment_rows=4, settings={})
    pictures = tmp_path / "out" / "images"
    pictures.mkdir()
    for segment in made.segments:
        attempt = ledger.begin(made, segment, "a")
        for number in range(2):
            rows = []
            for row_id in range(segment.first_row_id + 2 * number, segment.first_row_id + 2 * number + 2):
                if row_id == 5:
                    rows.append({"row_id": 5, "status": "failed", "error_type": "empty"})
                    continue
                picture, data = pictures / f"{row_id}.jpg", f"picture {row_id}".encode()
                picture.write_bytes(data)
                image = {"bytes": None, "path": str(picture)}
                uri = f"{tmp_path}/{row_id}.jpg"
                rows.append({"row_id": row_id, "source_uri": uri, "status": "ok", "image": image, "sha256": sha256(data).hexdigest()})
            path = Path(made.data_path(segment)) / f"x{number}-0.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), path)
            finish(attempt, f"x{number}")
        ledger.commit(attempt, 1.0, WORKERS)
    return made


def test_a_whole_translation_is_proved(plan: Plan) -> None:
    findings = verify(plan)
    assert findings.problems == []
    assert (findings.planned, findings.ok, findings.failed, findings.is_whole) == (8, 7, 1, True)


def problems(plan: Plan) -> list[tuple[str, str]]:
    return [(problem.kind, Path(problem.place).name) for problem in verify(plan).problems]


def data(plan: Plan, name: str, segment: int = 0) -> Path:
    return Path(plan.data_path(plan.segments[segment])) / name


def mend(plan: Plan) -> list[int]:
    """Repairs, and gives the rows that are to be translated again."""
    repair(plan, verify(plan), "r")
    return [row for segment in ledger.open_segments(plan) for row in todo(ledger.begin(plan, segment, "s"))]


def test_a_file_that_is_gone(plan: Plan) -> None:
    data(plan, "x1-0.parquet").unlink()
    assert problems(plan) == [("missing", "x1-0.parquet"), ("missing", "segment=00000")]
    assert mend(plan) == [2, 3]


def test_a_file_of_which_a_bit_has_turned(plan: Plan) -> None:
    path = data(plan, "x0-0.parquet", 1)
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert problems(plan) == [("corrupt", "x0-0.parquet"), ("missing", "segment=00001")]
    assert mend(plan) == [4, 5]
    assert not path.exists()


def test_rows_that_are_there_twice(plan: Plan) -> None:
    data(plan, "again-0.parquet").write_bytes(data(plan, "x0-0.parquet").read_bytes())
    assert problems(plan) == [("doubled", "again-0.parquet")]
    assert mend(plan) == []
    assert verify(plan).is_whole


def test_pictures_that_are_gone_or_others(plan: Plan) -> None:
    (Path(plan.out) / "images" / "1.jpg").unlink()
    (Path(plan.out) / "images" / "6.jpg").write_bytes(b"another")
    assert problems(plan) == [("missing", "1.jpg"), ("corrupt", "6.jpg")]
    assert mend(plan) == [1, 6]


def test_what_does_not_belong_there(plan: Plan) -> None:
    out = Path(plan.out)
    (out / "images" / "deep").mkdir()
    strangers = [
        data(plan, "notes.txt"),
        out / "data" / "segment=00009",
        out / "commits" / "00009.json",
        out / "work" / "00000",
        out / "images" / "deep" / "stranger.jpg",
        out / "images" / ".1.jpg.abc",  # what a process that was killed while writing leaves
    ]
    for stranger in strangers:
        stranger.parent.mkdir(exist_ok=True)
        stranger.touch()
    (out / "my own notes.txt").touch()  # beside our folders: not ours to judge
    assert sorted(problems(plan)) == sorted(("foreign", stranger.name) for stranger in strangers)
    assert mend(plan) == []
    assert verify(plan).is_whole
    assert (out / "my own notes.txt").exists()


def test_a_damaged_commit(plan: Plan) -> None:
    Path(plan.commit_path(plan.segments[1])).write_text("{}")
    assert problems(plan)[0] == ("corrupt", "00001.json")
    assert mend(plan) == []  # the rows are there: only the commit is to be made again


def test_a_segment_that_is_not_done(plan: Plan) -> None:
    Path(plan.commit_path(plan.segments[1])).unlink()
    (kind, place), *rest = problems(plan)
    assert (kind, place, rest) == ("missing", "segment=00001", [])
    assert not verify(plan).is_whole


def test_a_changed_manifest_is_refused(plan: Plan) -> None:
    Path(plan.manifest_path(plan.segments[0])).write_bytes(b"x")
    with pytest.raises(InputError, match="manifest: is damaged or was changed"):
        verify(plan)
