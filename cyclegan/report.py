"""Pictures and pages: sheets of samples, curves, one self-contained HTML page.

In: uint8 pixels (H, W, 3), lists of metrics, text. Out: PNG and SVG bytes; an HTML page with everything inside it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
import numpy as np
from PIL import Image

from cyclegan.images import Pixels, encode

_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
figure { margin: 1rem 0; } figcaption { color: #555; font-size: .9rem; }
img { max-width: 100%; } img.pixels { image-rendering: pixelated; }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: .85rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for section in sections %}
<h2>{{ section.heading }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.facts %}
<table>
{% for name, value in section.facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% for figure in section.figures %}
<figure><img {% if figure.is_sheet %}class="pixels" {% endif %}alt="{{ figure.caption }}" src="{{ figure.data_uri }}">
<figcaption>{{ figure.caption }}</figcaption></figure>
{% endfor %}
{% if section.code %}<pre>{{ section.code }}</pre>{% endif %}
{% endfor %}
</body>
</html>
""")


@dataclass(frozen=True)
class Figure:
    """A picture of a page: the bytes of a PNG or SVG."""

    caption: str
    data: bytes

    @property
    def is_sheet(self) -> bool:
        """Whether it is made of pixels that should stay sharp when enlarged."""
        return self.data.startswith(b"\x89PNG")

    @property
    def data_uri(self) -> str:
        """The picture as an inline source."""
        kind = "png" if self.is_sheet else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page; what is left empty is not shown."""

    heading: str
    text: str = ""
    facts: Mapping[str, object] | None = None
    figures: Sequence[Figure] = ()
    code: str = ""


def page(title: str, sections: Sequence[Section]) -> str:
    """One HTML page that needs nothing else."""
    return _PAGE.render(title=title, sections=sections)


def sheet(rows: Sequence[Sequence[Pixels]], cell: int, gap: int = 4) -> bytes:
    """A PNG of rows of pictures, each scaled to fit a square of `cell` pixels, on white."""
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (cell + gap) - gap, columns * (cell + gap) - gap, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            picture = _fit(pixels, cell)
            height, width = picture.shape[:2]
            top, left = y * (cell + gap) + (cell - height) // 2, x * (cell + gap) + (cell - width) // 2
            canvas[top : top + height, left : left + width] = picture
    return encode(canvas, "png")


def curves(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], x_label: str) -> bytes:
    """An SVG of line charts side by side: title of the panel -> name of the line -> points (x, y)."""
    from matplotlib.figure import Figure as Plot  # noqa: PLC0415  # a third of a second that only one process of a job needs

    plot = Plot(figsize=(4.2 * len(panels), 3), layout="constrained")
    for index, (title, lines) in enumerate(panels.items()):
        axes = plot.add_subplot(1, len(panels), index + 1)
        for name, points in lines.items():
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, linewidth=1)
        axes.set(title=title, xlabel=x_label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    buffer = io.BytesIO()
    plot.savefig(buffer, format="svg")
    return buffer.getvalue()


def _fit(pixels: Pixels, cell: int) -> Pixels:
    scale = cell / max(pixels.shape[:2])
    width, height = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    # small pictures are enlarged as they are, so that one sees their pixels
    filtering = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize((width, height), filtering))
