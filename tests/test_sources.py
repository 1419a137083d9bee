"""What is listed, in which order, and what is said where nothing is."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from cyclegan import storage
from cyclegan.errors import InputError
from cyclegan.sources import base_of, list_inputs, read, relative_name


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
        assert read(item.uri).decode() == relative_name(item.uri, str(photos))
        assert item.size == len(read(item.uri))
        assert item.version == str(Path(item.uri).stat().st_mtime_ns)


def test_glob(photos: Path) -> None:
    assert names(f"{photos}/*.jpg") == ["b.jpg"]
    assert names(f"{photos}/**/*.png") == ["2024/may/c d.png", "2024/may/e::f:g.png"]


def test_single_file(photos: Path) -> None:
    assert names(photos / "b.jpg") == ["b.jpg"]


def test_folder_whose_name_looks_like_a_glob(photos: Path) -> None:
    odd = photos / "old [2019]*"
    odd.mkdir()
    (odd / "z.png").touch()
    assert names(odd) == ["z.png"]


def test_links_to_folders_are_followed_but_not_in_circles(photos: Path) -> None:
    (photos / "2024" / "again").symlink_to(photos, target_is_directory=True)
    (photos / "more").symlink_to(photos / "2024" / "may", target_is_directory=True)
    assert len(names(photos)) == 5, "each folder once"


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
