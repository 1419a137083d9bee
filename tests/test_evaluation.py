"""Figures of evaluation on images whose difference is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cyclegan.config import Cluster, EvaluateSettings
from cyclegan.errors import InputError
from cyclegan.evaluation import compare, evaluate, prepare
from cyclegan.images import encode
from cyclegan.landscapes import draw


def test_known_differences() -> None:
    picture = draw(0, "a", 32) // 2
    same, brighter = compare(picture, picture), compare(picture + 10, picture)
    assert (same["mean_absolute_error"], same["mean_squared_error"]) == (0, 0)
    assert same["ssim"] == pytest.approx(1)
    assert (brighter["mean_absolute_error"], brighter["mean_squared_error"]) == (10, 100)
    assert compare(picture, np.flip(picture, 0))["ssim"] < 0.5
    assert math.isnan(compare(picture[:8], picture[:8])["ssim"])


def test_folders_are_paired_by_name(cluster: Cluster, tmp_path: Path) -> None:
    for folder, ending, offset in (("generated", "png", 0), ("real", "webp", 10)):
        (tmp_path / folder / "sub").mkdir(parents=True)
        for name in ("x", "sub/x", "y"):
            picture = draw(len(name), "a", 32) // 2 + offset
            data = encode(picture, "png")  # what counts is the content, whatever the ending
            (tmp_path / folder / f"{name}.{ending}").write_bytes(data)
    (tmp_path / "real" / "y.webp").unlink()
    (tmp_path / "generated" / "sub" / "z.png").write_bytes(b"broken")
    (tmp_path / "real" / "sub" / "z.png").write_bytes(encode(draw(0, "a", 32), "png"))
    settings = EvaluateSettings(
        generated=str(tmp_path / "generated"), real=str(tmp_path / "real"), paired=True, out=str(tmp_path / "result.json")
    )
    result = evaluate(prepare(settings))
    assert (result.pairs, result.missing, result.unreadable) == (2, 1, 1)
    assert result.mean_absolute_error == 10
    assert result.psnr == pytest.approx(10 * math.log10(255**2 / 100))
    assert json.loads((tmp_path / "result.json").read_text())["pairs"] == 2


def test_nothing_to_compare(cluster: Cluster, landscapes: Path, tmp_path: Path) -> None:
    (tmp_path / "other.png").write_bytes(encode(draw(0, "a", 32), "png"))
    with pytest.raises(InputError, match="no image can be paired"):
        evaluate(prepare(EvaluateSettings(generated=str(landscapes / "a"), real=str(tmp_path), paired=True)))
    with pytest.raises(InputError, match="--paired"):
        prepare(EvaluateSettings(generated="x", real="y"))
