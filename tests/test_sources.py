"""What is listed, in which order, and what is said where nothing is."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cyclegan import storage
from cyclegan.errors import InputError
from cyclegan.sources import Input, InputChangedError, base_of, list_inputs, read, read_input, relative_name
from tests.test_archives import contents, tar_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.JPG", "2024/may/c d.png", "2024/may/e::f:g.png", "2024/.thumbs/x.png", ".hidden.png", "readme.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "photos"


def names(source: str | Path) -> list[str]:
    return [relative_name(item.uri, base_of(str(source))) for item in list_inputs(str(source))]


def test_folder_is_searched_recursively_and_in_order(photos: Path) -> None:
    assert names(photos) == ["2024/may/c d.png", "2024/may/e::f:g.png", "a.JPG", "b.jpg", "readme.txt"]
    assert names(f"{photos}/") == names(f"file://{photos}") == names(photos)


def test_inputs_can_be_read_and_describe_themselves(photos: Path) -> None:
    for item in list_inputs(str(photos)):
        assert read(item.uri) == read_input(item) == relative_name(item.uri, str(photos)).encode()
        assert item.size == len(read(item.uri))
        assert item.version == f"mtime:{Path(item.uri).stat().st_mtime_ns}"


def test_glob(photos: Path) -> None:
    assert names(f"{photos}/*.jpg") == ["b.jpg"]
    assert names(f"{photos}/**/*.png") == ["2024/may/c d.png", "2024/may/e::f:g.png"]
    assert names(f"{photos}/20*/m[ab]y/*") == ["2024/may/c d.png", "2024/may/e::f:g.png"]
    assert base_of(f"{photos}/20*/may/*") == str(photos)
    assert next(list_inputs(f"{photos}/*.jpg")) == list(list_inputs(str(photos)))[3], "the same however it is named"


def test_braces(photos: Path) -> None:
    assert names(f"{photos}/{{b.jpg,2024/may/*}}") == ["b.jpg", "2024/may/c d.png", "2024/may/e::f:g.png"]
    (photos / "{1,2}.jpg").touch()
    assert names(f"{photos}/{{1,2}}.jpg") == ["{1,2}.jpg"], "a file that is really called so"


def test_single_file(photos: Path) -> None:
    assert names(photos / "b.jpg") == ["b.jpg"]
    assert names(f"file://{photos}/b.jpg") == ["b.jpg"]


@pytest.mark.parametrize("name", ["photos.zip", "film.mp4", "scan.pdf", "photo.jpg.gz", "list.txt", "x.7z"])
def test_kinds_of_files_that_are_no_source(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"{name}: is no kind of source; give a folder.*column uri.*tar"):
        list(list_inputs(str(tmp_path / name)))
    assert names(tmp_path) == [name], "in a folder the job says what becomes of it"


def test_replaced_file_is_noticed(photos: Path) -> None:
    path = photos / "b.jpg"
    (item,) = list_inputs(str(path))
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputChangedError, match=r"b.jpg: was replaced"):
        read_input(item)
    assert read_input(item._replace(version="a colleague's own number")) == b"b.jpg"
    with pytest.raises(InputChangedError, match="4 bytes, now 5"):
        read_input(Input(str(path), 4, ""))


@pytest.mark.parametrize(
    ("uri", "base", "name"),
    [
        ("/photos/a/1.jpg", "/photos", "a/1.jpg"),
        ("/photos/a/1.jpg", "/", "photos/a/1.jpg"),
        ("/photos/a/1.jpg", "", "photos/a/1.jpg"),
        ("/photos-2/1.jpg", "/photos", "photos-2/1.jpg"),
        ("s3://bucket/a/1.jpg", "s3://bucket", "a/1.jpg"),
        ("s3://bucket/a/1.jpg", "/photos", "bucket/a/1.jpg"),
        ("s3://bucket/a/s-0.tar#b/1.jpg", "s3://bucket/a", "s-0/b/1.jpg"),
        ("/photos/part-0.parquet#7", "/photos", "part-0/7"),
    ],
)
def test_names_below_and_beside_the_base(uri: str, base: str, name: str) -> None:
    assert relative_name(uri, base) == name


def test_folder_whose_name_looks_like_a_glob(photos: Path) -> None:
    odd = photos / "old [2019]*"
    odd.mkdir()
    (odd / "z.png").touch()
    assert names(odd) == ["z.png"]


def test_links_to_folders_are_followed_but_not_in_circles(photos: Path) -> None:
    (photos / "2024" / "again").symlink_to(photos, target_is_directory=True)
    (photos / "more").symlink_to(photos / "2024" / "may", target_is_directory=True)
    assert [name for name in names(photos) if name.startswith("more")] == ["more/c d.png", "more/e::f:g.png"], "by another way, not lost"
    assert len(names(photos)) == 7


def test_links_to_nothing_are_not_lost(tmp_path: Path) -> None:
    for name, target in (("a.jpg", "gone.jpg"), ("b.jpg", "b.jpg")):
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "c.jpg")
    items = list(list_inputs(str(tmp_path)))
    assert items == [Input(f"{tmp_path}/a.jpg", None, ""), Input(f"{tmp_path}/b.jpg", None, "")]
    for item in items:
        with pytest.raises(OSError, match=r"[ab]\.jpg"):
            read_input(item)


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere", "no such folder or file"), ("empty", "no files found"), ("*.gif", "no files found")]
)
def test_nothing_there(photos: Path, name: str, reason: str) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(InputError, match=reason) as caught:
        list(list_inputs(f"{photos}/{name}"))
    assert name in str(caught.value)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.jpg").touch()
    with pytest.raises(InputError, match=r"caf\\udce9.jpg.*UTF-8"):
        list(list_inputs(str(tmp_path)))


def test_unknown_kind_of_uri() -> None:
    with pytest.raises(InputError, match="nosuch://"):
        list(list_inputs("nosuch://bucket/photos"))


def test_object_store() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("/bucket/x/2.png", "/bucket/x/sub/1.png", "/bucket/x/.hidden"):
        memory.pipe_file(name, name.encode())
    assert names("memory://bucket/x") == ["2.png", "sub/1.png"]
    assert names("memory://bucket/x/*.png") == ["2.png"]
    assert [read(item.uri) for item in list_inputs("memory://bucket/x")] == [b"/bucket/x/2.png", b"/bucket/x/sub/1.png"]


def test_bucket(bucket: str) -> None:
    store = fsspec.filesystem("s3")
    place = f"{bucket}/sources"
    for name in ("photos/", "photos/2024/1.jpg", "photos/2024/.hidden.jpg", "photos/b.jpg", "photos/a.jpg"):
        store.pipe_file(f"{place}/{name}", name.encode() if not name.endswith("/") else b"")
    for shard in range(20):
        store.pipe_file(f"{place}/shards/s-{shard}.tar", tar_of({"x.jpg": b"%d" % shard * 600, "x.json": b"{}", "y/z.png": b"Z"}))
    manifest = pa.BufferOutputStream()
    pq.write_table(pa.table({"uri": ["photos/a.jpg", f"{place}/photos/2024/1.jpg"], "size": [12, 17]}), manifest)
    store.pipe_file(f"{place}/list.parquet", manifest.getvalue().to_pybytes())
    images = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [b"0", b"1"]}), images)
    store.pipe_file(f"{place}/tables/t.parquet", images.getvalue().to_pybytes())

    assert names(f"{place}/photos") == ["2024/1.jpg", "a.jpg", "b.jpg"]
    assert names(f"{place}/photos/*/*.jpg") == ["2024/1.jpg"]
    first = next(list_inputs(f"{place}/photos/b.jpg"))
    assert first == list(list_inputs(f"{place}/photos"))[-1]
    assert first.version.startswith("etag:")
    assert read_input(first) == b"photos/b.jpg"
    assert contents(f"{place}/shards/s-{{3..3}}.tar") == {"s-3/x.jpg": b"3" * 600, "s-3/y/z.png": b"Z"}
    assert names(f"{place}/shards") == [f"s-{n}/{name}" for n in sorted(map(str, range(20))) for name in ("x.jpg", "y/z.png")]
    assert contents(f"{place}/list.parquet") == {"photos/a.jpg": b"photos/a.jpg", "photos/2024/1.jpg": b"photos/2024/1.jpg"}
    (*_, row) = list_inputs(f"{place}/tables")
    assert read_input(row) == b"1"
    with pytest.raises(InputChangedError):
        read_input(row._replace(version="etag:another"))
    with pytest.raises(InputChangedError):
        read_input(first._replace(size=1))


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    storage.write_text(str(path), "old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        storage.write_text(str(path), "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"], "no partial file stays behind"
