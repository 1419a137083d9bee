"""What a translation would take, from a sample of it.

In: a job that has begun nothing. Out: an `Estimate`; nothing is written.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from cyclegan.config import Cluster
from cyclegan.images import SUFFIXES
from cyclegan.plan import manifest_table
from cyclegan.progress import duration
from cyclegan.sinks import Sink
from cyclegan.sources import Input, base_of, list_inputs
from cyclegan.streaming import in_blocks, through
from cyclegan.translation import TranslateJob, in_one_line

BLOCKS = 32
"""Parts that the sample goes through in; the first is not timed, for the workers start with it."""


@dataclass(frozen=True)
class Estimate:
    """What was measured on `sample` photos, and what follows for all `inputs`.

    Args:
        inputs: of the source.
        input_bytes: of those whose size the source tells.
        sample: photos that were translated.
        images_per_second: once all workers were at work.
        output_bytes: of the pictures of the sample.
        error_types: of the sample's failures.
        price_per_hour: of the cluster, where it was said.
    """

    inputs: int
    input_bytes: int
    sample: int
    images_per_second: float
    output_bytes: int
    error_types: dict[str, int]
    price_per_hour: float | None

    @property
    def seconds(self) -> float:
        """For all inputs, without the start of the workers."""
        return self.inputs / self.images_per_second

    def lines(self) -> Iterator[str]:
        """As it is said to the user."""
        failed = sum(self.error_types.values())
        yield f"{self.inputs} images, {_size(self.input_bytes)}; measured on {self.sample} of them, drawn at random; nothing was written"
        yield f"rate       {self.images_per_second:.1f} images/s with the generators and CPUs of now"
        yield f"time       {duration(self.seconds)}, {self.seconds / 3600:.2f} hours"
        yield f"output     {_size(self.output_bytes / self.sample * self.inputs)}"
        reasons = f" ({', '.join(f'{count} {name}' for name, count in self.error_types.items())})" if failed else ""
        yield f"failures   {failed} of {self.sample}{reasons}, so about {failed / self.sample * self.inputs:.0f} in all"
        if self.price_per_hour is not None:
            yield f"price      {self.seconds / 3600 * self.price_per_hour:.2f} at {self.price_per_hour:g} an hour"


def dry_run(job: TranslateJob, cluster: Cluster) -> Estimate:
    """Translates a sample, counts and throws it away.

    Raises:
        InputError: too few GPUs.
        StoppedError: a generator can't be set up on its worker.
    """
    settings = job.settings
    workers = job.workers(cluster)
    drawn, inputs, input_bytes = draw(list_inputs(job.source), settings.sample)
    rows = max(1, len(drawn) // BLOCKS)
    listed = in_blocks(manifest_table(drawn, 0), rows)
    # the pictures come back in their rows, whatever the format
    sink = Sink("parquet", base_of(job.source), SUFFIXES[settings.encoding], "", "")
    translated = through(listed, job.recipe, sink, None, rows=rows, chunk=rows, staged=workers.use_gpu, workers=workers)
    output_bytes = 0
    error_types: Counter[str] = Counter()
    times, counts = [time.monotonic()], [0]
    blocks: Iterable[Any] = translated.iter_batches(batch_size=None, batch_format="pyarrow")
    with in_one_line(job.out):
        for block in blocks:
            times.append(time.monotonic())
            counts.append(len(block))
            output_bytes += pc.sum(pc.binary_length(pc.struct_field(block["image"], "bytes"))).as_py() or 0
            error_types.update(block["error_type"].drop_null().to_pylist())
    # from the first block on, where there is more than one
    since = 1 if len(times) > 2 else 0
    rate = sum(counts[since + 1 :]) / max(1e-3, times[-1] - times[since])
    return Estimate(inputs, input_bytes, len(drawn), rate, output_bytes, dict(error_types.most_common()), settings.price_per_hour)


def draw(inputs: Iterable[Input], count: int) -> tuple[list[Input], int, int]:
    """`count` inputs, each as likely as any other, in their order; how many there are; their bytes, as far as known.

    Algorithm R of Vitter 1985: one pass, nothing else kept.
    """
    chance = random.Random(0)  # noqa: S311  # the same sample each time
    drawn: list[tuple[int, Input]] = []
    number = size = 0
    for number, item in enumerate(inputs, 1):
        size += item.size or 0
        if len(drawn) < count:
            drawn.append((number, item))
        elif (place := chance.randrange(number)) < count:
            drawn[place] = (number, item)
    return [item for _, item in sorted(drawn, key=lambda pair: pair[0])], number, size


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
