"""Translation on real Ray: each input is one row, its pixels are the generator's, and nothing is done twice."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from cyclegan import ledger, translation, watch
from cyclegan.config import Cluster, TranslateSettings
from cyclegan.dry_run import dry_run
from cyclegan.errors import InputError, StoppedError
from cyclegan.geometry import SizePolicy, pad_to_multiple
from cyclegan.images import PixelFormat, Pixels, decode, encode
from cyclegan.landscapes import draw
from cyclegan.loading import load
from cyclegan.networks import GeneratorSpec
from cyclegan.plan import ROW_SCHEMA, make_plan, open_plan
from cyclegan.second_try import is_second_try
from cyclegan.sinks import read_picture
from cyclegan.sources import list_inputs
from cyclegan.storing import store
from cyclegan.translation import already_done, prepare, run_attempt, translate
from cyclegan.translation_report import sample_pairs
from cyclegan.verification import verify
from cyclegan.weights import Generator, load_generator, save_generator
from tests.conftest import REPOSITORY

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
    values = {"generator": generator, "source": str(photos), "out": str(out), "size": "native", "encoding": "png", "precision": "fp32"}
    # more failures are among the photos than a job would bear
    return TranslateSettings.model_validate({**values, "segment_rows": 8, "max_failed_share": 1, **changes})


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


def test_several_generators_leave_a_cpu_for_writing(cluster: Cluster, translated: TranslateSettings, tmp_path: Path) -> None:
    settings = translated.model_copy(update={"out": str(tmp_path / "out"), "generators": 2})
    assert translate(prepare(settings), cluster).summary["ok"] == 10
    for ours, theirs in zip(rows_of(settings.out), rows_of(translated.out), strict=True):
        assert (ours["row_id"], ours["status"], ours["width"]) == (theirs["row_id"], theirs["status"], theirs["width"])


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
        name = str(Path(str(row["source_uri"])).relative_to(translated.source))
        assert image["path"] == (name if name.endswith(".png") else f"{name}.png")


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
    again = prepare(translated)
    done = already_done(again)
    assert done == translate(again, cluster)
    assert done
    assert done.summary["ok"] == 10
    assert {path: path.stat().st_mtime_ns for path in (Path(translated.out) / "data").rglob("*.parquet")} == files
    assert already_done(prepare(translated.model_copy(update={"retry_failed": True}))) is None


def test_a_segment_is_taken_up_where_it_was_left(cluster: Cluster, translated: TranslateSettings, tmp_path: Path) -> None:
    """Of the first segment one data file is whole; a stranger's lies beside it."""
    settings = copied(translated, tmp_path)
    data = tmp_path / "out" / "data"
    plan = open_plan(settings.out)
    assert plan
    (name,) = [file["name"] for file in ledger.read_commit(plan, plan.segments[0])["files"]]
    ledger.reopen(plan, plan.segments[0], "test", drop=[1, 4])
    shutil.copy(data / "segment=00000" / f"test-{name}", data / "segment=00000" / "stranger-0.parquet")
    committed = {path: path.stat().st_mtime_ns for path in data.rglob("*.parquet") if "00001" in str(path) or path.name.startswith("test-")}
    assert translate(prepare(settings), cluster).summary["ok"] == 10
    assert {path: path.stat().st_mtime_ns for path in committed} == committed
    assert pictures_of(settings.out) == pictures_of(translated.out)
    assert ledger.read_commit(plan, plan.segments[0])["translated"] == 2
    assert verify(plan).is_whole


def copied(translated: TranslateSettings, folder: Path) -> TranslateSettings:
    shutil.copytree(translated.out, folder / "out")
    return translated.model_copy(update={"out": str(folder / "out")})


def pictures_of(out: str) -> list[tuple[object, ...]]:
    return [(row["row_id"], row["status"], row["image"], row["sha256"]) for row in rows_of(out)]


def test_only_failed_photos_are_tried_again(
    cluster: Cluster, generator: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    settings = settings_for(generator, tmp_path / "photos", tmp_path / "out")
    with pytest.raises(InputError, match=r"--retry-failed: .* holds no translation yet"):
        prepare(settings.model_copy(update={"retry_failed": True}))
    assert translate(prepare(settings), cluster).summary["failed"] == 3
    before = pictures_of(settings.out)
    (tmp_path / "photos" / "notes.jpg").write_bytes(encode(draw(3, "a", 40), "jpeg"))
    with monkeypatch.context() as full_disk:
        full_disk.setattr(translation, "write_report", Mock(side_effect=OSError(errno.ENOSPC, "")))
        with pytest.raises(StoppedError, match="No space left on device"):
            translate(prepare(settings.model_copy(update={"retry_failed": True})), cluster)
    result = translate(prepare(settings), cluster)  # all that is left to do is the report
    assert "not_an_image" not in (tmp_path / "out" / "report.html").read_text()
    # a failed photo may have been replaced by one that is none
    assert (result.summary["ok"], result.summary["error_types"]) == (11, {"empty": 1, "truncated": 1})
    after = {picture[0]: picture for picture in pictures_of(settings.out)}
    assert all(after[picture[0]] == picture for picture in before if picture[1] == "ok")
    plan = open_plan(settings.out)
    assert plan
    assert [record["translated"] for record in ledger.commits(plan)] == [8, 3]  # the three are all in the second segment
    assert verify(plan).is_whole


def test_a_hopeless_job_stops_early(cluster: Cluster, generator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as more have failed than may fail of all; what was done stays, and more patience goes on from there."""
    (tmp_path / "photos").mkdir()
    for index in range(80):
        (tmp_path / "photos" / f"{index:03d}.jpg").write_bytes(b"no photo" if index < 20 else encode(draw(index % 8, "a", 96), "jpeg"))
    settings = settings_for(generator, tmp_path / "photos", tmp_path / "out", segment_rows=1000, max_failed_share=0.1, file_rows=1)
    monkeypatch.setattr(watch, "LOOK_EVERY", 1)
    result = translate(prepare(settings), cluster)
    assert result.stopped
    assert "images failed so far, more than --max-failed-share 0.1 of 80" in result.stopped
    assert result.summary["done"] == 0
    patient = translate(prepare(settings.model_copy(update={"max_failed_share": 0.5})), cluster)
    assert (patient.stopped, patient.summary["ok"], patient.summary["failed"]) == (None, 60, 20)
    plan = open_plan(settings.out)
    assert plan
    assert ledger.read_commit(plan, plan.segments[0])["translated"] < 80


@pytest.mark.parametrize("kind", ["images", "webdataset"])
def test_pictures_outside_of_their_rows(cluster: Cluster, translated: TranslateSettings, tmp_path: Path, kind: str) -> None:
    """The same pictures as in Parquet, and provably whole; also after a move."""
    settings = translated.model_copy(update={"out": str(tmp_path / "out"), "format": kind})
    assert translate(prepare(settings), cluster).summary["ok"] == 10
    rows = rows_of(settings.out)
    assert [row["sha256"] for row in rows] == [row["sha256"] for row in rows_of(translated.out)]
    assert all(row["image"]["bytes"] is None for row in rows if row["image"])  # type: ignore[index]
    shutil.move(settings.out, tmp_path / "moved")
    plan = open_plan(str(tmp_path / "moved"))
    assert plan
    for row in rows:
        if row["image"]:
            picture = read_picture(plan, str(row["source_uri"]), row["image"])  # type: ignore[arg-type]
            assert hashlib.sha256(picture).hexdigest() == row["sha256"]
    findings = verify(plan)
    assert (findings.problems, findings.ok, findings.failed) == ([], 10, 3)
    pictures = tmp_path / "moved" / "images"
    names = {path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*")}
    if kind == "images":
        assert {"2023/IMG 0.png", "2024/IMG 1.png", "turned.jpg.png"} <= names
    else:
        shards = sorted((tmp_path / "moved" / "shards").rglob("*.tar"))
        samples = [name for shard in shards for name in members(shard)]
        assert sorted(samples) == sorted(f"{row['row_id']:012d}{suffix}" for row in rows if row["image"] for suffix in (".json", ".png"))


def members(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return tar.getnames()


class Poisonous(SizePolicy):
    """Ends the process that decodes a photo 26 pixels high, as a fault in a decoder would."""

    def target(self, height: int, width: int) -> tuple[int, int]:
        if height == 26:
            os.kill(os.getpid(), signal.SIGKILL)
        return height, width


@pytest.mark.parametrize("staged", [False, True])
def test_a_photo_that_kills_its_process_is_a_row(cluster: Cluster, generator: str, photos: Path, tmp_path: Path, staged: bool) -> None:
    """Two of them; all others are translated. Once as on a CPU, once as on GPUs."""
    settings = settings_for(generator, photos / "2023", tmp_path / "out", segment_rows=100)
    job = dataclasses.replace(prepare(settings), policy=Poisonous())
    plan = make_plan(job.out, job.request, job.source, list_inputs(job.source), segment_rows=100, settings={})
    attempt = ledger.begin(plan, plan.segments[0], "test")
    run_attempt(job, attempt, job.workers(cluster), staged=staged)
    record = ledger.commit(attempt, 1.0, {"generators": 1, "cpus": 2.0})
    assert (record["ok"], record["error_types"]) == (3, {"kills_its_process": 2})


class Driverless(Generator):
    """Fails on its worker, as one does where torch can't use the GPU."""

    def build(self) -> nn.Module:
        raise RuntimeError("Found no NVIDIA driver on your system.")


def test_a_generator_that_its_worker_cannot_hold_stops_the_job_in_one_line(
    cluster: Cluster, generator: str, photos: Path, tmp_path: Path
) -> None:
    job = prepare(settings_for(generator, photos, tmp_path / "out"))
    job = dataclasses.replace(job, generator=Driverless(**vars(job.generator)))
    for start in (translate, dry_run):
        with pytest.raises(StoppedError, match=r"out: a generator could not be set up on its worker: RuntimeError: Found no NVIDIA driver"):
            start(job, cluster)


def test_processes_that_load_and_store_photos_need_no_torch(generator: str, photos: Path, tmp_path: Path) -> None:
    """With it each of the many beside a GPU would be more than twice as large, and begin seconds later."""
    job = prepare(settings_for(generator, photos, tmp_path / "out", format="webdataset"))
    plan = make_plan(job.out, job.request, job.source, list_inputs(job.source), segment_rows=100, settings={})
    attempt = ledger.begin(plan, plan.segments[0], "test")
    sink = job.sink(plan, plan.segments[0], attempt.token)
    tasks = (
        partial(load, loading=job.recipe.loading, threads=1, apart=is_second_try),
        partial(store, storing=job.recipe.storing, sink=sink, claim=attempt.claim, threads=1),
    )
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], input=pickle.dumps(tasks), cwd=REPOSITORY, check=False).returncode == 0


def test_a_dry_run_writes_nothing(cluster: Cluster, generator: str, photos: Path, tmp_path: Path) -> None:
    settings = settings_for(generator, photos, tmp_path / "out", dry_run=True, sample=12, price_per_hour=2.0)
    estimate = dry_run(prepare(settings), cluster)
    assert not (tmp_path / "out").exists()
    assert (estimate.inputs, estimate.sample, sum(estimate.error_types.values()) in (2, 3)) == (13, 12, True)
    assert estimate.input_bytes == sum(path.stat().st_size for path in photos.rglob("*.*g"))
    text = "\n".join(estimate.lines())
    assert re.search(r"^13 images, .*\nrate +[\d.]+ images/s.*\ntime .*\noutput .*\nfailures .*\nprice +0\.\d\d at 2 an hour$", text)


def test_photos_come_back_at_their_own_size(cluster: Cluster, generator: str, photos: Path, tmp_path: Path) -> None:
    """Translated at 32 pixels, and with what they had of transparency, date and place."""
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0132] = "2024:05:06 07:08:09"
    with_alpha = np.dstack([draw(0, "a", 70)[:50], np.full((50, 70), 77, np.uint8)])
    Image.fromarray(with_alpha).save(tmp_path / "photos" / "glass.png", exif=exif)
    settings = settings_for(generator, tmp_path / "photos", tmp_path / "out", size="resize:32", restore_size=True, keep_exif=True)
    assert translate(prepare(settings), cluster).summary["ok"] == 1
    (row,) = rows_of(settings.out)
    image = row["image"]
    assert isinstance(image, dict)
    picture = Image.open(io.BytesIO(image["bytes"]))
    assert (picture.size, picture.mode) == ((70, 50), "RGBA")
    assert np.asarray(picture)[..., 3].tolist() == with_alpha[..., 3].tolist()
    assert picture.getexif()[0x0132] == "2024:05:06 07:08:09"


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
        assert image["path"] == Path(str(row["source_uri"])).name + ".tif"
        result = decode(image["bytes"], PixelFormat(2, 16))
        assert np.abs(result.astype(int) - alone(network, source)).max() <= 8
    plan = open_plan(settings.out)
    assert plan
    for before, after in (pair.shown() for pair in sample_pairs(plan, 2)):
        assert before.shape == after.shape == (32, 32, 3)
        assert before.dtype == after.dtype == np.uint8
    assert "data:image/png" in (tmp_path / "out" / "report.html").read_text()


def test_an_encoding_that_cannot_hold_the_pixels_is_refused(photos: Path, tmp_path: Path) -> None:
    generator = save_deep_generator(tmp_path / "generator")
    for encoding in ("jpeg", "webp"):
        with pytest.raises(InputError, match=f"--encoding {encoding}: can't hold 2 channels of 16 bits; give --encoding png or tiff"):
            prepare(settings_for(generator, photos, tmp_path / "out", encoding=encoding))
    assert not (tmp_path / "out").exists()
