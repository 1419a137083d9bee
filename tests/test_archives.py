"""Images in tars: found by their headers, read from their places."""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
from pathlib import Path

import pytest

from cyclegan.errors import InputError
from cyclegan.files import InputChangedError
from cyclegan.sources import base_of, list_inputs, read_input, relative_name

LONG = "a" * 120 + "/" + "ä" * 200 + ".jpg"


def tar_of(contents: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def contents(source: Path | str) -> dict[str, bytes]:
    base = base_of(str(source))
    return {relative_name(item.uri, base): read_input(item) for item in list_inputs(str(source))}


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_images_of_a_shard(tmp_path: Path, kind: int) -> None:
    members = {"./b.JPG": b"B" * 700, "b.json": b"{}", "b.cls": b"1", LONG: b"long", "./.hidden.png": b"", "a.seg.png": b"", "README": b""}
    (tmp_path / "shard-0.tar").write_bytes(tar_of(members, kind))
    assert contents(tmp_path / "shard-0.tar") == {"shard-0/b.JPG": b"B" * 700, f"shard-0/{LONG}": b"long", "shard-0/a.seg.png": b""}
    first = next(list_inputs(str(tmp_path)))
    assert first.uri == f"{tmp_path}/shard-0.tar#b.JPG"
    assert (first.container, first.size) == (f"{tmp_path}/shard-0.tar", 700)


def test_shards_by_braces_globs_and_folders(tmp_path: Path) -> None:
    for number in range(8, 12):
        (tmp_path / f"shards-{number:03d}.tar").write_bytes(tar_of({"x.jpg": b"%d" % number}))
    (tmp_path / "y.jpg").write_bytes(b"beside")
    assert list(contents(f"{tmp_path}/shards-{{009..011}}.tar")) == ["shards-009/x.jpg", "shards-010/x.jpg", "shards-011/x.jpg"]
    assert list(contents(f"{tmp_path}/shards-{{008,011}}.tar").values()) == [b"8", b"11"]
    assert list(contents(f"{tmp_path}/shards-0*.tar").values()) == [b"8", b"9", b"10", b"11"]
    assert list(contents(tmp_path).values()) == [b"8", b"9", b"10", b"11", b"beside"]
    with pytest.raises(InputError, match=r"shards-012.tar: no such"):
        list(list_inputs(f"{tmp_path}/shards-{{010..012}}.tar"))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("x.tar.gz", b"", "compressed.*unpack"),
        ("x.tgz", b"", "compressed.*unpack"),
        ("x.tar", gzip.compress(tar_of({"x.jpg": b"1"})), "compressed.*unpack"),
        ("x.tar", b"\x89PNG" * 500, "not a whole tar"),
        ("x.tar", b"", "not a whole tar"),
        ("x.tar", tar_of({"x.jpg": b"1" * 5000})[:4000], "not a whole tar"),
        ("x.tar", tar_of({"x.jpg": b"1"})[:1024] + b"?" * 512, "not a whole tar.*byte 1024"),
        ("x.tar", tar_of({"x.jpg": b"1"})[:1024] * 2, "x.jpg twice"),
    ],
)
def test_tars_that_cannot_be_used(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=reason) as caught:
            list(list_inputs(str(source)))
        assert f"{tmp_path}/{name}" in str(caught.value)


def test_links_are_left_out_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(link)
    with caplog.at_level(logging.WARNING):
        assert list(contents(tmp_path)) == ["x/a.jpg"]
    assert "1 links to images are left out" in caplog.text


def test_replaced_tar_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of({"a.jpg": b"1" * 600, "b.jpg": b"2" * 600}))
    last = list(list_inputs(str(path)))[-1]
    path.write_bytes(tar_of({"b.jpg": b"2" * 600, "a.jpg": b"1" * 600}))
    with pytest.raises(InputChangedError, match=r"x.tar: was replaced"):
        read_input(last)
    path.write_bytes(tar_of({"c.jpg": b"3" * 1400}))
    with pytest.raises(InputChangedError, match="no image of 600 bytes"):
        read_input(last._replace(version=""))
