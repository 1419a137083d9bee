"""Translation on real Ray: each input is one row, its pixels are the generator's, and nothing is done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cyclegan.config import Cluster, TranslateSettings
from cyclegan.errors import InputError
from cyclegan.geometry import pad_to_multiple
from cyclegan.images import PixelFormat, Pixels, decode, encode
from cyclegan.landscapes import draw
from cyclegan.networks import GeneratorSpec
from cyclegan.plan import ROW_SCHEMA
from cyclegan.translation import Translator, prepare, translate, translated_pairs
from cyclegan.weights import load_generator, save_generator

SPEC = GeneratorSpec(architecture="resnet", channels=4, blocks=1)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("generator"))
    save_generator(folder, SPEC.build(), spec=SPEC, size=32, direction="a2b", training={})
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos of three sizes in nested folders, one turned by EXIF, and three files that are none."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(9):
        path = root / ("2024" if index % 2 else "2023") / f"IMG {index}.png"
        path.parent.mkdir(exist_ok=True)
        photo = draw(index, "a", 48)[: 48 - 11 * (index % 3)]
        path.write_bytes(encode(photo, "png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw(9, "a", 48)[:20]).save(root / "turned.jpg", exif=exif)
    (root / "empty.jpg").touch()
    (root / "notes.jpg").write_text("not a photo")
    (root / "half.jpg").write_bytes(encode(draw(1, "a", 48), "jpeg")[:500])
    return root


def settings_for(generator: str, photos: Path, out: Path, **changes: object) -> TranslateSettings:
    values = {"generator": generator, "source": str(photos), "out": str(out), "size": "native", "encoding": "png", "batch_size": 4}
    return TranslateSettings.model_validate({**values, "segment_rows": 8, **changes})


@pytest.fixture(scope="module")
def translated(cluster: Cluster, generator: str, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TranslateSettings:
    settings = settings_for(generator, photos, tmp_path_factory.mktemp("translations") / "out")
    result = translate(prepare(settings), cluster)
    assert (result.summary["ok"], result.summary["failed"], result.failed_share) == (10, 3, 3 / 13)
    return settings


def rows_of(out: str) -> list[dict[str, object]]:
    return sorted(pq.read_table(Path(out) / "data", partitioning=None).to_pylist(), key=lambda row: row["row_id"])


def test_every_input_is_one_row(translated: TranslateSettings, photos: Path) -> None:
    rows = rows_of(translated.out)
    assert [row["row_id"] for row in rows] == list(range(13))
    assert {row["source_uri"] for row in rows} == {str(path) for path in photos.rglob("*.*g")}
    for path in (Path(translated.out) / "data").rglob("*.parquet"):
        assert pq.read_schema(path).equals(ROW_SCHEMA)
        assert b"huggingface" in pq.read_schema(path).metadata


def test_failed_rows_say_why(translated: TranslateSettings) -> None:
    failed = {Path(str(row["source_uri"])).name: row for row in rows_of(translated.out) if row["status"] == "failed"}
    assert {name: row["error_type"] for name, row in failed.items()} == {
        "empty.jpg": "empty",
        "notes.jpg": "not_an_image",
        "half.jpg": "truncated",
    }
    assert all(row["error"] and row["image"] is None and row["width"] is None for row in failed.values())


def test_pixels_are_the_generators(translated: TranslateSettings) -> None:
    """Whole batches of one size, odd sizes and turned photos: all as the network alone would translate them one by one."""
    network = load_generator(translated.generator).build()
    ok = [row for row in rows_of(translated.out) if row["status"] == "ok"]
    assert len({(row["height"], row["width"]) for row in ok}) == 4
    for row in ok:
        source = decode(Path(str(row["source_uri"])).read_bytes())
        image = row["image"]
        assert isinstance(image, dict)
        assert np.abs(decode(image["bytes"]).astype(int) - alone(network, source)).max() <= 1
        assert (row["source_height"], row["source_width"]) == (row["height"], row["width"]) == source.shape[:2]
        assert image["path"] == str(Path(str(row["source_uri"])).relative_to(translated.source).with_suffix(".png"))


def alone(network: torch.nn.Module, photo: Pixels) -> Pixels:
    height, width = photo.shape[:2]
    half = np.iinfo(photo.dtype).max / 2
    padded = torch.from_numpy(pad_to_multiple(photo, 4).transpose(2, 0, 1).astype(np.float32))[None]
    with torch.inference_mode():
        out = network(padded / half - 1)
    pixels: Pixels = ((out[0] + 1) * half).round().permute(1, 2, 0).numpy()[:height, :width].astype(photo.dtype)
    return pixels


def test_turned_photo_is_upright(translated: TranslateSettings) -> None:
    (row,) = [row for row in rows_of(translated.out) if str(row["source_uri"]).endswith("turned.jpg")]
    assert (row["height"], row["width"]) == (48, 20)


def test_files_around_the_rows(translated: TranslateSettings) -> None:
    out = Path(translated.out)
    plan = json.loads((out / "plan.json").read_text())
    assert plan["request"]["generator_sha256"] == load_generator(translated.generator).sha256
    commits = [json.loads(path.read_text()) for path in sorted((out / "commits").iterdir())]
    assert [(commit["rows"], commit["fingerprint"]) for commit in commits] == [(8, plan["fingerprint"]), (5, plan["fingerprint"])]
    for segment, record in enumerate(commits):
        found = {path.name for path in (out / "data" / f"segment={segment:05d}").iterdir()}
        assert {file["name"] for file in record["files"]} == found
    assert json.loads((out / "summary.json").read_text())["error_types"] == {"empty": 1, "not_an_image": 1, "truncated": 1}
    assert "data:image/png" in (out / "report.html").read_text()


def test_the_same_again_translates_nothing(cluster: Cluster, translated: TranslateSettings) -> None:
    files = {path: path.stat().st_mtime_ns for path in (Path(translated.out) / "data").rglob("*.parquet")}
    assert translate(prepare(translated), cluster).summary["ok"] == 10
    assert {path: path.stat().st_mtime_ns for path in (Path(translated.out) / "data").rglob("*.parquet")} == files


def test_a_killed_run_is_taken_up_segment_by_segment(cluster: Cluster, translated: TranslateSettings, tmp_path: Path) -> None:
    """The second segment has been written, twice even, but never committed."""
    shutil.copytree(translated.out, tmp_path / "out")
    (tmp_path / "out" / "commits" / "00001.json").unlink()
    data = tmp_path / "out" / "data"
    for path in list((data / "segment=00001").iterdir()):
        shutil.copy(path, path.with_name(f"again-{path.name}"))
    committed = {path: path.stat().st_mtime_ns for path in (data / "segment=00000").iterdir()}
    settings = translated.model_copy(update={"out": str(tmp_path / "out")})
    translate(prepare(settings), cluster)
    assert {path: path.stat().st_mtime_ns for path in (data / "segment=00000").iterdir()} == committed
    assert [(row["row_id"], row["status"], row["image"]) for row in rows_of(settings.out)] == [
        (row["row_id"], row["status"], row["image"]) for row in rows_of(translated.out)
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"size": "resize:16"}, "size was native, is resize:16"), ({"encoding": "jpeg"}, "encoding was png, is jpeg")],
)
def test_other_settings_are_refused_by_name(translated: TranslateSettings, changes: dict[str, str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        prepare(translated.model_copy(update=changes))


def test_another_generator_is_refused(translated: TranslateSettings, tmp_path: Path) -> None:
    save_generator(str(tmp_path), SPEC.build(), spec=SPEC, size=32, direction="a2b", training={})
    with pytest.raises(InputError, match="generator_sha256 was"):
        prepare(translated.model_copy(update={"generator": str(tmp_path)}))


def test_nothing_is_written_for_an_empty_source(generator: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="no files found"):
        prepare(settings_for(generator, tmp_path / "photos", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_resize_keeps_the_shape_of_a_photo(generator: str, photos: Path, tmp_path: Path) -> None:
    """By default photos are brought to the size that the generator was trained at."""
    job = prepare(settings_for(generator, photos, tmp_path / "out", size=None))
    assert str(job.policy) == "resize:32"
    assert job.policy.target(48, 96) == (32, 64)


def test_batching_changes_nothing(generator: str) -> None:
    """InstanceNorm sees each photo alone."""
    translator = Translator(load_generator(generator), use_gpu=False, threads=1)
    photos = np.stack([draw(index, "a", 32) for index in range(3)])
    together = translator.translate(photos).astype(int)
    one_by_one = np.concatenate([translator.translate(photo[None]) for photo in photos])
    assert np.abs(together - one_by_one).max() <= 1


def save_deep_generator(folder: Path) -> str:
    """From 16-bit grey to 16-bit grey and alpha."""
    spec = GeneratorSpec(architecture="resnet", channels=4, blocks=1, inputs=1, outputs=2)
    kinds = {"input": PixelFormat(1, 16), "output": PixelFormat(2, 16)}
    save_generator(str(folder), spec.build(), spec=spec, size=32, direction="a2b", training={}, **kinds)
    return str(folder)


def test_sixteen_bits_in_and_out(cluster: Cluster, tmp_path: Path) -> None:
    """No value is rounded to 8 bits on the way; the report shows it nevertheless."""
    generator = save_deep_generator(tmp_path / "generator")
    (tmp_path / "photos").mkdir()
    grey = draw(0, "a", 32)[..., :1].astype(np.uint16) * np.uint16(257) - np.uint16(77)
    (tmp_path / "photos" / "grey.png").write_bytes(encode(grey, "png"))
    (tmp_path / "photos" / "colours.png").write_bytes(encode(draw(1, "a", 32), "png"))
    settings = settings_for(generator, tmp_path / "photos", tmp_path / "out", encoding="tiff")
    assert translate(prepare(settings), cluster).summary["ok"] == 2
    network = load_generator(generator).build()
    for row in rows_of(settings.out):
        source = decode(Path(str(row["source_uri"])).read_bytes(), PixelFormat(1, 16))
        image = row["image"]
        assert isinstance(image, dict)
        assert image["path"] == Path(str(row["source_uri"])).with_suffix(".tif").name
        result = decode(image["bytes"], PixelFormat(2, 16))
        assert np.abs(result.astype(int) - alone(network, source)).max() <= 8
    for _, before, after in translated_pairs(settings.out):
        assert before.shape == after.shape == (32, 32, 3)
        assert before.dtype == after.dtype == np.uint8
    assert "data:image/png" in (tmp_path / "out" / "report.html").read_text()


def test_an_encoding_that_cannot_hold_the_pixels_is_refused(photos: Path, tmp_path: Path) -> None:
    generator = save_deep_generator(tmp_path / "generator")
    for encoding in ("jpeg", "webp"):
        with pytest.raises(InputError, match=f"--encoding {encoding}: can't hold 2 channels of 16 bits; give --encoding png or tiff"):
            prepare(settings_for(generator, photos, tmp_path / "out", encoding=encoding))
    assert not (tmp_path / "out").exists()
