"""Sheets and pages."""

from __future__ import annotations

import numpy as np

from cyclegan.images import decode
from cyclegan.report import Figure, Section, curves, page, sheet


def test_sheet_places_pictures_of_all_shapes() -> None:
    red, tall = np.full((8, 8, 3), (255, 0, 0), np.uint8), np.full((200, 100, 3), (0, 0, 255), np.uint8)
    pixels = decode(sheet([[red, tall], [red]], cell=40, gap=4))
    assert pixels.shape == (84, 84, 3)
    assert pixels[20, 20].tolist() == [255, 0, 0]
    assert pixels[20, 64].tolist() == [0, 0, 255]
    assert pixels[20, 47].tolist() == pixels[64, 64].tolist() == [255, 255, 255], "beside a narrow picture, and where there is none"


def test_page_holds_everything_and_escapes_text() -> None:
    chart = Figure("losses", curves({"one": {"x": [(0, 1), (1, 2)]}, "two": {"y": [(0, 0)]}}, x_label="step"))
    html = page("a <b> title", [Section(heading="H", text="T", facts={"name": "<script>"}, figures=[chart], code="a: 1")])
    assert "data:image/svg+xml;base64," in html
    assert "<script>" not in html
    assert "a &lt;b&gt; title" in html
    assert "://" not in html
