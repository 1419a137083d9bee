"""What came of a translation: its totals, where its time went, pictures to look at.

In: a plan and its commits, the pictures that they name. Out: OUT/summary.json, OUT/report.html.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cyclegan import images, ledger, report, storage
from cyclegan.images import ImageError, Pixels
from cyclegan.plan import STAGES, Plan, Segment
from cyclegan.progress import duration
from cyclegan.sinks import read_picture
from cyclegan.sources import Input, read_input

SHEET_PAIRS = 8
"""Before-and-after pairs on a sheet."""

_CELL = 192

_LIMITS = {
    "read": ("the storage", "more workers read more at once; a source in the same region as the cluster is quicker"),
    "decode": ("decoding", "more CPUs help, and so do smaller photos"),
    "generate": ("the generator", "more or faster GPUs help, and so does a smaller --size"),
    "encode": ("encoding", "more CPUs help, and so does --encoding jpeg"),
}

_READERS = 8
"""Photos that a CPU waits for at once, as in `loading`."""

Rebuild = Callable[[pa.Table], pa.Table]
"""Columns row_id, source and picture (bytes of image files) to row_id, error (mean absolute, of 255) and rebuilt (bytes of a PNG)."""


@dataclass(frozen=True)
class Pair:
    """A photo and its translation, as files."""

    row_id: int
    name: str
    source: bytes
    picture: bytes

    def shown(self) -> tuple[Pixels, Pixels]:
        """Both to be looked at: 8-bit RGB.

        Raises:
            ImageError: one is damaged.
        """
        return images.decode(self.source), images.decode(self.picture)


def finished(plan: Plan) -> bool:
    """Whether all is committed, and the report on it written."""
    return storage.exists(_report_path(plan)) and not any(ledger.open_segments(plan))


def withdraw_report(plan: Plan) -> None:
    """Deletes the report where there is one: it is about rows that are translated again now."""
    storage.remove(_report_path(plan))


def _report_path(plan: Plan) -> str:
    return storage.join(plan.out, "report.html")


def summarise(plan: Plan) -> dict[str, Any]:
    """Totals over all commits; also written to OUT/summary.json."""
    commits = ledger.commits(plan)
    seconds = sum(record["seconds"] for record in commits)
    translated = sum(record["translated"] for record in commits)
    summary = {
        "fingerprint": plan.fingerprint,
        "planned": plan.rows,
        "done": sum(record["rows"] for record in commits),
        "ok": sum(record["ok"] for record in commits),
        "failed": sum(record["failed"] for record in commits),
        "error_types": _sum(commits, "error_types"),
        "notes": _sum(commits, "notes"),
        "segments": len(plan.segments),
        "segments_committed": len(commits),
        "bytes": sum(file["bytes"] for record in commits for file in [*record["files"], *record["shards"]]),
        "seconds": round(seconds, 3),
        "images_per_second": round(translated / seconds, 2) if seconds else None,
        "stages": _stages(commits),
    }
    summary["limit"] = _limit(summary["stages"])
    storage.write_text(storage.join(plan.out, "summary.json"), json.dumps(summary, indent=2) + "\n")
    return summary


def write_report(plan: Plan, summary: dict[str, Any], rebuild: Rebuild | None, cycle_sample: int) -> None:
    """Writes OUT/report.html.

    Args:
        plan: with at least one commit.
        summary: of `summarise`.
        rebuild: translates pictures back; None where there is no generator for that.
        cycle_sample: how many.
    """
    plain = {name.replace("_", " "): value for name, value in summary.items() if not isinstance(value, dict) and name != "limit"}
    sections = [report.Section(heading="Totals", facts=plain), _stages_section(summary)]
    if summary["error_types"]:
        text = "Each is a row with its reason in data/; --retry-failed translates them again."
        sections.append(report.Section(heading="Failures by type", text=text, facts=summary["error_types"]))
    if summary["notes"]:
        sections.append(report.Section(heading="Photos that are ok, but", facts=summary["notes"]))
    sections += _sheets(list(sample_pairs(plan, SHEET_PAIRS)), "Before and after")
    if rebuild and cycle_sample:
        sections += _worst(list(sample_pairs(plan, cycle_sample)), rebuild)
    sections.append(report.Section(heading="Plan", code=json.dumps({"source": plan.source, **plan.request}, indent=2)))
    storage.write_text(_report_path(plan), report.page(f"Translation: {plan.out}", sections))


def sample_pairs(plan: Plan, count: int) -> Iterator[Pair]:
    """Translated photos with their sources, evenly spread over the commits; fewer than `count` where photos failed or are gone."""
    files = [(record, file) for record in ledger.commits(plan) for file in record["files"]]
    ends = np.cumsum([file["rows"] for _, file in files])
    if not len(ends):
        return
    wanted = np.unique(np.linspace(0, ends[-1] - 1, count).astype(int))
    for number in np.unique(np.searchsorted(ends, wanted, side="right")):
        record, file = files[number]
        start = int(ends[number]) - file["rows"]
        here = [int(place) - start for place in wanted if start <= place < ends[number]]
        yield from _read_pairs(plan, plan.segments[record["segment"]], file["name"], here)


def _read_pairs(plan: Plan, segment: Segment, name: str, places: list[int]) -> Iterator[Pair]:
    path = storage.join(plan.data_path(segment), name)
    try:
        data = pq.read_table(pa.BufferReader(storage.read_bytes(path)), columns=["row_id", "source_uri", "status", "image"])
        rows = [row for row in data.take(places).to_pylist() if row["status"] == "ok"]
        inputs = _inputs(plan, segment, [row["row_id"] for row in rows])
    except (OSError, pa.ArrowInvalid):
        return
    for row in rows:
        try:
            source, picture = read_input(inputs[row["row_id"]]), read_picture(plan, row["source_uri"], row["image"])
        except OSError:
            continue  # a photo that is gone since is missed on the page, not by the job
        yield Pair(row["row_id"], row["image"]["path"].rpartition("/")[2], source, picture)


def _inputs(plan: Plan, segment: Segment, ids: list[int]) -> dict[int, Input]:
    manifest = pq.read_table(pa.BufferReader(storage.read_bytes(plan.manifest_path(segment))))
    chosen = manifest.filter(pc.is_in(manifest["row_id"], pa.array(ids, pa.int64())))
    return {row.pop("row_id"): Input(**row) for row in chosen.to_pylist()}


def _sheets(pairs: list[Pair], heading: str) -> list[report.Section]:
    shown = []
    for pair in pairs:
        try:
            shown.append(pair.shown())
        except ImageError:
            continue
    if not shown:
        return []
    sheet = report.sheet([[before for before, _ in shown], [after for _, after in shown]], cell=_CELL)
    return [report.Section(heading=heading, figures=[report.Figure("Photos above, translations below.", sheet)])]


def _worst(pairs: list[Pair], rebuild: Rebuild) -> list[report.Section]:
    """The pairs whose photos are least like what the reverse generator makes of their translations."""
    if not pairs:
        return []
    columns = {"row_id": [p.row_id for p in pairs], "source": [p.source for p in pairs], "picture": [p.picture for p in pairs]}
    schema = pa.schema([("row_id", pa.int64()), ("source", pa.large_binary()), ("picture", pa.large_binary())])
    judged = {row["row_id"]: row for row in rebuild(pa.table(columns, schema=schema)).to_pylist()}
    ranked = sorted((pair for pair in pairs if pair.row_id in judged), key=lambda pair: -judged[pair.row_id]["error"])
    worst = ranked[:SHEET_PAIRS]
    if not worst:
        return []
    errors = sorted(judged[pair.row_id]["error"] for pair in ranked)
    rebuilt = [images.decode(judged[pair.row_id]["rebuilt"]) for pair in worst]
    shown = [pair.shown() for pair in worst]
    sheet = report.sheet([[before for before, _ in shown], [after for _, after in shown], rebuilt], cell=_CELL)
    return [
        report.Section(
            heading="Worst by cycle error",
            text=f"Of {len(ranked)} photos, evenly spread, that were translated back by the reverse generator: the mean absolute "
            f"difference to the photo is {errors[len(errors) // 2]:.1f} of 255 in the middle and {errors[-1]:.1f} at worst.",
            figures=[report.Figure("Photos above, translations in the middle, translated back below; the worst first.", sheet)],
            facts={f"row {pair.row_id}, {pair.name}": f"{judged[pair.row_id]['error']:.1f} of 255" for pair in worst},
        )
    ]


def _stages(commits: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each stage: milliseconds a photo, photos a second that it could do alone, and how much of the time it was at work."""
    rows = sum(record["rows"] for record in commits)
    stages = {}
    for stage in STAGES:
        spent = sum(record["stage_seconds"][stage] for record in commits)
        capacity = available = 0.0
        for record in commits:
            workers = record["workers"]["generators"] if stage == "generate" else record["workers"]["cpus"]
            workers *= _READERS if stage == "read" else 1
            # a segment that was taken up again took less time than its rows did
            available += record["seconds"] * workers * record["rows"] / max(1, record["translated"])
            capacity = max(capacity, workers)
        stages[stage] = {
            "milliseconds": round(1000 * spent / max(1, rows), 3),
            "images_per_second": round(capacity * rows / spent, 1) if spent else 0.0,
            "busy": round(min(1.0, spent / available), 3) if available else 0.0,
        }
    return stages


def _limit(stages: dict[str, dict[str, float]]) -> str:
    """In words, what the job waited for."""
    stage = max(stages, key=lambda name: stages[name]["busy"])
    name, advice = _LIMITS[stage]
    busy = stages[stage]["busy"]
    if busy < 0.3:
        return f"Nothing was busy for long ({name} most, {busy:.0%} of the time): starting up was what took the time."
    return f"The job waited for {name}, which was at work {busy:.0%} of the time: {advice}."


def _stages_section(summary: dict[str, Any]) -> report.Section:
    facts = {"in all": duration(summary["seconds"])}
    for stage, figures in summary["stages"].items():
        facts[stage] = f"{figures['milliseconds']:.2f} ms a photo, {figures['images_per_second']:.0f} a second, busy {figures['busy']:.0%}"
    return report.Section(heading="Where the time went", text=summary["limit"], facts=facts)


def _sum(commits: list[dict[str, Any]], name: str) -> dict[str, int]:
    return dict(sum((Counter(record[name]) for record in commits), Counter[str]()).most_common())
