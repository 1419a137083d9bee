"""Every odd file of a folder, such as Pillow's own test images, through a whole translation; held against an independent reading.

    .venv/bin/python -m benchmarks.translation_robustness FOLDER

1. With the identity in place of the generator every file must end as one row; what plain Pillow opens and loads must be `ok` and equal a
   reading of its own (upright, sRGB, on white) within 2 of 255. Exceptions are named. No process may take more than 2 GB.
2. Through the command line with a real generator: the exit code must follow --max-failed-share.

Some minutes on two CPUs.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow.parquet as pq
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps
from torch import nn

from cyclegan.config import TranslateSettings
from cyclegan.networks import GeneratorSpec
from cyclegan.translation import prepare, translate
from cyclegan.weights import Generator, save_generator
from jobs.cli import ray_session

Colours = npt.NDArray[np.float64]

_BITS, _SAMPLES, _SIGN = 258, 338, 339
"""Tags of TIFF: BitsPerSample, ExtraSamples, SampleFormat."""

_PREMULTIPLIED, _SIGNED = 1, 2
"""Values of the latter two."""


class Identity(Generator):
    """Gives back what it takes."""

    def build(self) -> nn.Module:
        """No layers at all."""
        return nn.Identity()


def read_independently(data: bytes) -> Colours:
    """The first frame as plain Pillow reads it, upright, sRGB on white, (H, W, 3) in [0, 255]; raises what Pillow raises."""
    image = Image.open(io.BytesIO(data))
    tags = getattr(image, "tag_v2", {})
    image.load()
    if tags.get(_SAMPLES) == (_PREMULTIPLIED,) and set(tags[_BITS]) == {16}:  # Pillow cuts the products to 8 bits, then divides
        products = tifffile.imread(io.BytesIO(data)).astype(np.float64) / 257
        products = products if products.shape[-1] == len(tags[_BITS]) else np.moveaxis(products, 0, -1)  # planes one after the other
        return products[..., :3] + 255 - products[..., 3:]
    image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        grey = _grey(values, image.mode) * (65535 / 32767 if tags.get(_SIGN) == (_SIGNED,) and tags[_BITS] == (16,) else 1)
        if "transparency" in image.info:  # of a PNG: this value is see-through
            grey = np.where(values == image.info["transparency"], 255, grey)
        return np.repeat(grey[..., None], 3, 2)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"), np.float64)[..., None] / 255
        image = image.convert("RGB")
    elif image.mode not in ("RGB", "L", "CMYK", "LAB"):
        image = image.convert("RGB")
    colours = np.asarray(_to_srgb(image, profile), np.float64)
    return colours if alpha is None else colours * alpha + 255 * (1 - alpha)


def _grey(values: Colours, mode: str) -> Colours:
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=0.0, posinf=high, neginf=low)
    for largest in (1, 255, 65535) if mode == "F" else (65535,):
        if low >= 0 and high <= largest:
            return values / largest * 255
    return (values - low) / max(high - low, 1e-9) * 255


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":
        source: object = ImageCms.createProfile("LAB")
    elif profile:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    else:
        return image.convert("RGB")
    try:
        # exactly by the profile: by default littlecms looks colours up in a coarse table of its own
        exactly = ImageCms.Flags.NOOPTIMIZE
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB", flags=exactly)  # type: ignore[arg-type]
    except ImageCms.PyCMSError:
        return image.convert("RGB")
    assert converted is not None
    return converted


def look_after_memory(most: dict[str, float], over: threading.Event) -> None:
    """Notes the most that any process of this job has held, in GB."""
    while not over.wait(0.1):
        for process in psutil.Process().children(recursive=True):
            try:
                held = process.memory_full_info()
                name = process.name()
            except psutil.Error:
                continue
            most[name] = max(most.get(name, 0), held.uss / 1e9)


@contextmanager
def silent_libraries() -> Iterator[None]:
    """What libtiff has to say of odd files goes straight to the file descriptor, a thousand lines of it."""
    usual, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(usual, 2)
        os.close(usual)
        os.close(nowhere)


def compare(out: Path, files: list[Path]) -> None:
    """Prints what became of each file."""
    rows = [row for path in out.glob("data/*/*.parquet") for row in pq.ParquetFile(path).read().to_pylist()]
    ok = sum(row["status"] == "ok" for row in rows)
    print(f"{len(files)} files, {len(rows)} rows, {len({row['source_uri'] for row in rows})} different, {ok} ok")
    worst: list[tuple[float, str]] = []
    warnings.simplefilter("ignore")
    for row in rows:
        name = "/".join(Path(row["source_uri"]).parts[-2:])
        try:
            expected = read_independently(Path(row["source_uri"]).read_bytes())
        except Exception:  # noqa: S112  # whatever Pillow can't read nobody asks for
            continue
        if row["status"] != "ok":
            print(f"   Pillow reads it: {name}: {row['error_type']}: {row['error']}")
            continue
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        with_alpha = np.asarray(picture.convert("RGBA"), np.float64)
        alpha = with_alpha[..., 3:] / 255
        found = with_alpha[..., :3] * alpha + 255 * (1 - alpha)
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else 999.0
        worst.append((difference, f"{name} {found.shape} {expected.shape}"))
    worst.sort(reverse=True)
    print(f"{len(worst)} compared; {sum(difference <= 2 for difference, _ in worst)} within 2 of 255; the others:")
    for difference, name in worst:
        if difference > 2:
            print(f"   {difference:.1f} {name}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    files = [
        path for path in folder.rglob("*") if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        spec = GeneratorSpec(architecture="resnet", channels=4, blocks=1)
        torch.manual_seed(0)
        save_generator(str(root / "generator"), spec.build(), spec=spec, size=64, direction="a2b", training={})
        settings = {"generator": str(root / "generator"), "source": str(folder), "out": str(root / "out")}
        settings |= {"max_failed_share": 1, "encoding": "png", "precision": "fp32", "size": "native"}
        job = prepare(TranslateSettings.model_validate(settings))
        facts = {name: getattr(job.generator, name) for name in ("spec", "state", "sha256", "size", "input", "output", "direction")}
        object.__setattr__(job, "generator", Identity(**facts))
        most: dict[str, float] = {}
        over = threading.Event()
        watcher = threading.Thread(target=look_after_memory, args=(most, over))
        watcher.start()
        with ray_session() as cluster:
            translate(job, cluster)
        over.set()
        watcher.join()
        with silent_libraries():
            compare(root / "out", files)
        held = ", ".join(f"{name} {size:.2f}" for name, size in sorted(most.items(), key=lambda item: -item[1])[:4])
        print(f"most memory of a process, GB (under 2): {held}")
        for share in ("0.01", "0.5"):
            command = [sys.executable, "-m", "jobs.translate", "--generator", str(root / "generator"), "--source", str(folder)]
            command += ["--out", str(root / f"out-{share}"), "--size", "resize:64", "--max-failed-share", share]
            started = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            last = (done.stderr if done.returncode else done.stdout).strip().splitlines()[-1]
            print(f"--max-failed-share {share}: exit code {done.returncode} after {time.monotonic() - started:.0f} s: {last}")


if __name__ == "__main__":
    main()
