"""Manifests, and Parquet files that hold the images themselves."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cyclegan import image_tables
from cyclegan.errors import InputError
from cyclegan.sources import Input, InputChangedError, list_inputs, read_input

ROWS: list[dict[str, Any]] = [
    {"uri": "photos/ä,1.jpg", "size": 3, "version": "v1", "label": "cat"},
    {"uri": "/abs/2.jpg", "size": None, "version": None, "label": None},
    {"uri": "s3://bucket/a//3.jpg", "size": 5, "version": "", "label": "7"},
    {"uri": "../4.jpg", "size": 0, "version": "v4", "label": "x"},
    {"uri": "file:///abs/5.jpg", "size": None, "version": "NA", "label": "x"},
]


def csv(rows: list[dict[str, Any]]) -> bytes:
    quoted = [[f'"{row[name]}"' if row[name] is not None else "" for name in row] for row in rows]
    return b"\xef\xbb\xbf" + "\n".join(",".join(cells) for cells in [list(rows[0]), *quoted]).encode()


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n\n".join(json.dumps(row) for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    data: bytes = sink.getvalue().to_pybytes()
    return data


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "m.csv": csv,
    "M.CSV.gz": lambda rows: gzip.compress(csv(rows)),
    "m.jsonl": jsonl,
    "m.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "m.parquet": parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_manifests(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / name).write_bytes(WRITERS[name](ROWS))
    assert list(list_inputs(str(folder / name))) == [
        Input(f"{folder}/photos/ä,1.jpg", 3, "v1"),
        Input("/abs/2.jpg", None, ""),
        Input("s3://bucket/a//3.jpg", 5, ""),
        Input(f"{tmp_path}/4.jpg", 0, "v4"),
        Input("/abs/5.jpg", None, "NA"),
    ]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_rows_without_uri_are_named(tmp_path: Path, name: str, nothing: str | None) -> None:
    (tmp_path / name).write_bytes(WRITERS[name]([{"uri": "a", "x": 1}, {"uri": "b", "x": 1}, {"uri": nothing, "x": 1}]))
    with pytest.raises(InputError, match=f"{name}: row 3 .*has no uri"):
        list(list_inputs(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("m.csv", b"url,label\na,1\n", "no column uri, only url, label"),
        ("m.csv", b"", "no column uri, only nothing"),
        ("m.csv", b"uri,size\na,b\n", "invalid value 'b'"),
        ("m.csv", b"uri,size\na,1,2\n", "Expected 2 columns, got 3"),
        ("m.csv", b"uri\n\xe9\n", "utf-8"),
        ("m.csv.gz", b"uri\n", "m.csv.gz: "),
        ("m.jsonl", b'{"uri": "a"}\n{"uri"', "can't be read as a manifest"),
        ("m.jsonl", b'"a"\n', "not every line is a JSON object"),
        ("m.jsonl", b'{"uri": 5}\n', "can't be read as a manifest"),
        ("m.parquet", b"PAR1 this is none", "not a whole Parquet file"),
        ("m.parquet", parquet([{"url": "a", "label": 1}]), "neither a column uri nor one of images, only url, label|has neither"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        list(list_inputs(str(tmp_path / name)))
    assert f"{tmp_path}/{name}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_among_photos_are_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(csv(ROWS))
    (tmp_path / "1.jpg").touch()
    assert [Path(item.uri).name for item in list_inputs(str(tmp_path))] == ["1.jpg", "labels.csv"]
    assert len(list(list_inputs(f"{tmp_path}/*.csv"))) == len(ROWS)


def test_manifests_in_a_folder_or_glob(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").write_bytes(parquet([{"uri": f"{name}.jpg", "etag": "e", "size": 1.0}]))
    wanted = [Input(f"{tmp_path}/a.jpg", 1, "e"), Input(f"{tmp_path}/b.jpg", 1, "e")]
    assert list(list_inputs(str(tmp_path))) == list(list_inputs(f"{tmp_path}/*.parquet")) == wanted


def test_what_was_listed_can_be_listed_again(tmp_path: Path) -> None:
    pq.write_table(image_table([b"1", b"2"]), tmp_path / "images.parquet")
    inputs = list(list_inputs(str(tmp_path)))
    (tmp_path / "plan").mkdir()
    pq.write_table(pa.Table.from_pylist([item._asdict() for item in inputs]), tmp_path / "plan" / "m.parquet")
    again = list(list_inputs(str(tmp_path / "plan")))
    assert again == inputs
    assert [read_input(item) for item in again] == [b"1", b"2"]


def image_table(images: list[bytes | None], paths: list[str | None] | None = None) -> pa.Table:
    paths = paths or [None] * len(images)
    rows = [{"bytes": data, "path": path} for data, path in zip(images, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"label": list(range(len(rows))), "image": pa.array(rows, kind)})


def names(path: Path) -> list[str]:
    return [item.uri.removeprefix(f"{path}#") for item in list_inputs(str(path))]


def test_images_are_named_by_paths_that_tell_them_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(image_table([b"0", b"1", b"2"], ["a.jpg", "", None]), path)
    assert names(path) == ["a.jpg", "1", "2"]
    pq.write_table(image_table([b"0", b"1", b"2"], ["a.jpg", "a.jpg", "b.jpg"]), path)
    assert names(path) == ["0", "1", "2"]
    pq.write_table(pa.table({"jpg": [b"0", b"1"], "mask": [b"", b""], "file_name": ["a", "b"]}), path)
    assert names(path) == ["a", "b"]
    assert [read_input(item) for item in list_inputs(str(path))] == [b"0", b"1"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_kinds_of_binary_columns(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"image": pa.array([b"0", b"1"], kind)}), tmp_path / "x.parquet")
    assert [read_input(item) for item in list_inputs(str(tmp_path))] == [b"0", b"1"]


def test_which_column_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"jpg": [b"0"], "png": [b"1"]}), path)
    with pytest.raises(InputError, match="which column holds the images: jpg, png"):
        names(path)
    table = image_table([b"0"]).append_column("voice", image_table([b"9"])["image"])
    features = {"image": {"_type": "Image"}, "voice": {"_type": "Audio"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    assert [read_input(item) for item in list_inputs(str(path))] == [b"0"]


def test_rows_are_read_in_any_order_through_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tables, "_WINDOW_BYTES", 5_000)
    images = [bytes([number]) * 1_000 for number in range(100)]
    pq.write_table(image_table(list(images)), tmp_path / "x.parquet", row_group_size=40)
    inputs = list(list_inputs(str(tmp_path)))
    assert [item.offset for item in inputs] == list(range(100))
    assert [read_input(item) for item in inputs] == images
    assert [read_input(inputs[n * 37 % 100]) for n in range(100)] == [images[n * 37 % 100] for n in range(100)]


def test_rows_without_bytes_are_read_from_their_paths(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"A")
    pq.write_table(image_table([None, None, None], ["a.jpg", f"file://{tmp_path}/a.jpg", None]), tmp_path / "x.parquet")
    first, second, third = list_inputs(f"{tmp_path}/*.parquet")
    assert read_input(first) == read_input(second) == b"A"
    with pytest.raises(OSError, match="row 2 holds no image"):
        read_input(third)


def test_damaged_groups_are_unreadable_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tables, "_WINDOW_BYTES", 5_000)
    path = tmp_path / "x.parquet"
    pq.write_table(
        image_table([bytes([number]) * 1_000 for number in range(40)]),
        path,
        row_group_size=20,
        compression="snappy",
        use_dictionary=False,
        write_statistics=False,
        write_batch_size=1,
        data_page_size=1_000,
    )
    place = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    inputs = list(list_inputs(str(path)))
    data = bytearray(path.read_bytes())
    data[place + 900 : place + 1_200] = b"\xff" * 300
    path.write_bytes(data)
    found = [outcome(item._replace(version="")) for item in inputs]
    assert [size for size in found if size != 1_000], "some are damaged"
    assert found[:1] + found[20:] == [1_000] * 21, "those before and the next row group are not"


def outcome(item: Input) -> int:
    try:
        return len(read_input(item))
    except OSError:
        return -1


def test_replaced_table_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(image_table([b"0", b"1"]), path)
    first, second = list_inputs(str(path))
    assert read_input(first) == b"0"
    pq.write_table(image_table([b"9"]), path)
    again = first._replace(version=next(list_inputs(str(path))).version)
    assert read_input(again) == b"9", "nothing of the old one is remembered"
    image_tables._open_group.cache_clear()
    image_tables._open_footer.cache_clear()
    with pytest.raises(InputChangedError, match=r"x.parquet: was replaced"):
        read_input(first)
    with pytest.raises(InputChangedError, match="no row 1 any more"):
        read_input(second._replace(version=""))
