"""What translated photos are called: readable, safe everywhere, and never alike."""

from __future__ import annotations

import itertools

import pytest

from cyclegan.object_names import object_name

TOKENS = ["a", ".", "..", "/", "%", "2E", "~", "@", "#", ".jpg", ".png", ".tar", ".parquet", "s3://", "\\", " ", "\0"]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/photos/2024/may/IMG_1.jpg", "2024/may/IMG_1.jpg"),
        ("/photos/IMG_1.png", "IMG_1.png.jpg"),
        ("/photos/IMG_1.JPG", "IMG_1.JPG.jpg"),
        ("/photos/IMG_1", "IMG_1%.jpg"),
        ("/photos/holiday.2024.jpg", "holiday.2024.jpg"),
        ("/photos/Müller & Söhne (1).jpg", "Müller & Söhne (1).jpg"),
        ("/photos/100%.jpg", "100%25.jpg"),
        ("/photos/../secret.jpg", "%2E%2E/secret.jpg"),
        ("/photos/.hidden/.x.jpg", "%2Ehidden/%2Ex.jpg"),
        ("/photos/C:\\a\\b.jpg", "C%3A%5Ca%5Cb.jpg"),
        ("/photos//a.jpg", "%/a.jpg"),
        ("/photos/a.jpg/b.jpg", "a%2Ejpg/b.jpg"),
        ("/photos/shards-000.tar#cat/1.jpg", "shards-000.tar/cat/1.jpg"),
        ("/photos/part-0.parquet#17", "part-0.parquet/17%.jpg"),
        ("/photos/shards-000.tar/1.jpg", "shards-000%2Etar/1.jpg"),
        ("/elsewhere/1.jpg", "@/elsewhere/1.jpg"),
        ("s3://bucket/key.jpg", "@s3/bucket/key.jpg"),
    ],
)
def test_names_mirror_the_source(uri: str, name: str) -> None:
    assert object_name(uri, "/photos", ".jpg") == object_name(uri, "/photos/", ".jpg") == name


def test_without_a_base_all_names_are_whole() -> None:
    assert object_name("s3://bucket/photos/1.jpg", "", ".jpg") == "@s3/bucket/photos/1.jpg"
    assert object_name("/photos/1.jpg", "", ".jpg") == "@/photos/1.jpg"
    assert object_name("/photos/1.jpg", "/", ".jpg") == "photos/1.jpg"


def adversarial_uris() -> set[str]:
    paths = {"".join(tokens) for length in range(5) for tokens in itertools.product(TOKENS, repeat=length)}
    named = {
        "photo",
        "photo.jpg",
        "photo.png",
        "photo.png.jpg",
        "photo.jpg.jpg",
        "photo.png.jpg.jpg",
        "photo%.jpg",
        "a/../b",
        "b",
        "%2e%2e",
    }
    long = {letter * length + tail for letter in "aä%" for length in range(190, 260, 3) for tail in ("", ".jpg", ".png", "/x", ".tar#x")}
    deep = {"folder/" * depth + name for depth in range(100, 130) for name in ("a", "b.jpg")}
    return {start + path for start in ("/photos/", "", "/", "s3://") for path in paths | named | long | deep}


@pytest.fixture(scope="module")
def names() -> list[str]:
    return [object_name(uri, "/photos", ".jpg") for uri in sorted(adversarial_uris())]


def test_no_two_photos_have_one_name(names: list[str]) -> None:
    assert len(names) > 300_000
    assert len(set(names)) == len(names)


def test_no_photo_is_the_folder_of_another(names: list[str]) -> None:
    files = set(names)
    folders = {name[:end] for name in names for end in range(len(name)) if name[end] == "/"}
    assert not files & folders


def test_names_are_safe(names: list[str]) -> None:
    for name in names:
        parts = name.split("/")
        assert name.endswith(".jpg")
        assert name.isprintable()
        assert len(name.encode()) <= 800
        assert not any(part == "" or part[0] == "." or part[-1] in ". " or len(part.encode()) > 240 for part in parts)
        assert not set(name) & set('\\:*?"<>|#')


@pytest.mark.parametrize("name", ["\ud800.jpg", "a\u202ejpg.exe", "tab\there", "e\u0301.jpg", "line\nbreak"])
def test_names_of_any_letters_can_be_written(name: str) -> None:
    assert object_name(f"/photos/{name}", "/photos", ".jpg").encode().decode().isprintable() or "\u0301" in name
