"""All jobs with everything in an object store: photos in, a run and a translation out."""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
import ray
import torch

from cyclegan import run, storage
from cyclegan.config import Cluster, DataSettings, TranslateSettings
from cyclegan.networks import GeneratorSpec
from cyclegan.plan import ROW_SCHEMA, open_plan
from cyclegan.training import prepare as prepare_training
from cyclegan.training import train
from cyclegan.translation import prepare as prepare_translation
from cyclegan.translation import translate
from cyclegan.verification import repair, verify
from cyclegan.weights import save_generator
from tests.conftest import tiny_settings


def test_a_worker_that_imports_the_tests_finds_the_same_object_store(cluster: Cluster) -> None:
    def endpoint() -> str:
        importlib.import_module("tests.conftest")
        return os.environ["AWS_ENDPOINT_URL"]

    assert ray.get(ray.remote(endpoint).remote()) == os.environ["AWS_ENDPOINT_URL"]


def test_all_jobs_from_and_to_a_bucket(cluster: Cluster, bucket: str, landscapes: Path) -> None:
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    s3.put(f"{landscapes}/", f"{bucket}/photos/", recursive=True)
    data = DataSettings(a=f"{bucket}/photos/a", b=f"{bucket}/photos/b/*.png")
    settings = tiny_settings(landscapes, f"{bucket}/run", data=data.model_dump(), epochs=None, steps=4, workers=1)
    train(prepare_training(settings), cluster)
    names = {path.removeprefix("bucket/run/") for path in s3.find("bucket/run")}
    assert {"config.yaml", "report.html", "checkpoints/step-00000004/model.pt", "generators/b2a/generator.safetensors"} <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert [record["step"] for record in run.read_metrics(settings.out)] == [1, 2, 3, 4]

    translation = TranslateSettings(
        generator=f"{bucket}/run", source=f"{bucket}/photos", out=f"{bucket}/out", direction="b2a", batch_size=4
    )
    result = translate(prepare_translation(translation), cluster)
    assert (result.summary["ok"], result.summary["planned"], result.summary["segments_committed"]) == (22, 22, 1)
    tables = [pq.read_table(io.BytesIO(s3.cat_file(path))) for path in s3.glob("bucket/out/data/*/*.parquet")]
    assert sorted(row_id for table in tables for row_id in table["row_id"].to_pylist()) == list(range(22))
    assert all(table.schema == ROW_SCHEMA for table in tables)
    assert tables[0]["source_uri"][0].as_py().startswith("s3://bucket/photos/")


@pytest.mark.parametrize("kind", ["images", "webdataset"])
def test_pictures_in_a_bucket_are_verified_and_repaired(cluster: Cluster, bucket: str, landscapes: Path, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    spec = GeneratorSpec(architecture="resnet", channels=4, blocks=1)
    save_generator(str(tmp_path), spec.build(), spec=spec, size=32, direction="a2b", training={})
    out = f"{bucket}/{kind}"
    settings = TranslateSettings(generator=str(tmp_path), source=str(landscapes), out=out, format=kind)  # type: ignore[arg-type]
    assert translate(prepare_translation(settings), cluster).summary["ok"] == 22
    plan = open_plan(out)
    assert plan
    findings = verify(plan)
    assert (findings.problems, findings.ok) == ([], 22)
    place = f"{out}/images/a/03.png.jpg" if kind == "images" else storage.join(out, "shards", "segment=00000")
    lost = place if kind == "images" else storage.join(place, min(storage.names(place)))
    before = {row["row_id"]: row["sha256"] for row in rows_of(out)}
    storage.remove(lost)
    storage.write_bytes(f"{out}/{'images' if kind == 'images' else 'shards'}/stranger.bin", b"x")
    findings = verify(plan)
    assert {problem.kind for problem in findings.problems} == {"missing", "foreign"}
    repair(plan, findings, "repair")
    translate(prepare_translation(settings), cluster)
    assert verify(plan).is_whole
    assert {row["row_id"]: row["sha256"] for row in rows_of(out)} == before


def rows_of(out: str) -> list[dict[str, object]]:
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    tables = [pq.ParquetFile(io.BytesIO(s3.cat_file(path))).read() for path in s3.glob(f"{out}/data/*/*.parquet")]
    return [row for table in tables for row in table.to_pylist()]


def test_a_write_is_seen_by_a_listing_at_once(bucket: str) -> None:
    """Listings are not remembered: another process may have written in between."""
    filesystem, place = storage.open_filesystem(f"{bucket}/fresh")
    assert filesystem.glob(f"{place}/*") == []
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file("bucket/fresh/x", b"x")
    assert filesystem.glob(f"{place}/*") == ["bucket/fresh/x"]
