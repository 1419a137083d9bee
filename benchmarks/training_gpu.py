"""The paper's training step on a GPU against a plain fp32 loop written the way the original code does it, in one run.

    python -m benchmarks.training_gpu [--batches 1 8] [--steps 50] [--out results.json]

Both take ResNet-9 generators and 70x70 PatchGANs at 256 px with image pools and identity loss. The plain loop is NCHW and fp32, runs the
four networks one by one, keeps its pool image by image, and reads its losses now and then, as pytorch-CycleGAN-and-pix2pix does. Ours is
`CycleGAN.step` with --precision bf16, with and without --compile. They take turns; medians of images/s and ratios are printed, and the
share of a step during which the GPU was computing, from the profiler. Needs no Ray.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from cyclegan.config import PRESETS, TrainSettings
from cyclegan.model import CycleGAN
from cyclegan.networks import DiscriminatorSpec, GeneratorSpec, initialise

SIZE, WARM_UP, ROUNDS = 256, 10, 3
Step = Callable[[Tensor, Tensor], None]


class PlainPool:
    """Fifty past fakes, taken one by one with Python's own random numbers."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def query(self, fakes: Tensor) -> Tensor:
        """Past fakes for about half of the batch."""
        given = []
        for fake in fakes.detach():
            image = fake.unsqueeze(0)
            if len(self.images) < 50:
                self.images.append(image)
            elif random.random() > 0.5:
                index = random.randrange(50)
                image, self.images[index] = self.images[index].clone(), image
            given.append(image)
        return torch.cat(given)


def plain_step(device: torch.device) -> Step:
    """The original's step: fp32, one network after the other, two Adams."""
    generator = GeneratorSpec(architecture="resnet", blocks=9)
    g, f = (initialise(generator.build(), "normal").to(device) for _ in range(2))
    judge_a, judge_b = (initialise(DiscriminatorSpec(architecture="patch").build(), "normal").to(device) for _ in range(2))
    generators = torch.optim.Adam(itertools.chain(g.parameters(), f.parameters()), lr=2e-4, betas=(0.5, 0.999))
    judges = torch.optim.Adam(itertools.chain(judge_a.parameters(), judge_b.parameters()), lr=2e-4, betas=(0.5, 0.999))
    l1, mse, pools = nn.L1Loss(), nn.MSELoss(), (PlainPool(), PlainPool())

    def taken_for(scores: Tensor, real: bool) -> Tensor:
        loss: Tensor = mse(scores, torch.tensor(float(real), device=device).expand_as(scores))
        return loss

    def step(a: Tensor, b: Tensor) -> None:
        fake_b, fake_a = g(a), f(b)
        back_a, back_b = f(fake_b), g(fake_a)
        for judge in (judge_a, judge_b):
            judge.requires_grad_(False)
        generators.zero_grad()
        identity = 5 * l1(g(b), b) + 5 * l1(f(a), a)
        loss = taken_for(judge_b(fake_b), True) + taken_for(judge_a(fake_a), True) + 10 * l1(back_a, a) + 10 * l1(back_b, b) + identity
        loss.backward()
        generators.step()
        for judge in (judge_a, judge_b):
            judge.requires_grad_(True)
        judges.zero_grad()
        for judge, real, fake, pool in ((judge_a, a, fake_a, pools[0]), (judge_b, b, fake_b, pools[1])):
            ((taken_for(judge(real), True) + taken_for(judge(pool.query(fake)), False)) * 0.5).backward()  # type: ignore[no-untyped-call]
        judges.step()

    return step


def our_step(device: torch.device, batch: int, compiled: bool) -> Step:
    """`CycleGAN.step` of the paper's preset."""
    values = {**PRESETS["paper"], "data": {"a": "", "b": ""}, "out": "", "batch_size": batch, "precision": "bf16", "compile": compiled}
    model, images = CycleGAN(TrainSettings.model_validate(values), device), itertools.count(batch, batch)

    def step(a: Tensor, b: Tensor) -> None:
        model.step(a, b, next(images))

    return step


def images_per_second(step: Step, batch: int, steps: int, device: torch.device, layout: torch.memory_format) -> float:
    """Over `steps` steps, on batches that differ."""
    batches = [torch.rand(2, batch, 3, SIZE, SIZE, device=device).mul_(2).sub_(1) for _ in range(4)]
    pairs = [tuple(images.contiguous(memory_format=layout) for images in both) for both in batches]
    torch.cuda.synchronize()
    started = time.perf_counter()
    for number in range(steps):
        step(*pairs[number % len(pairs)])
    torch.cuda.synchronize()
    return steps * batch / (time.perf_counter() - started)


def busy_share(step: Step, batch: int, device: torch.device, layout: torch.memory_format) -> float:
    """Time during which a kernel ran, as a share of the time from the first to the last; kernels that overlap count once."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        images_per_second(step, batch, 10, device, layout)
    spans = sorted((event.time_range.start, event.time_range.end) for event in trace.events() if event.device_type.name == "CUDA")
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / (reached - spans[0][0])


def main() -> None:
    """Measures in turns and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = torch.device("cuda")
    torch.backends.cudnn.benchmark = True  # as the original sets it, and as our workers do
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for batch in given.batches:
        makers: dict[str, Callable[[], Step]] = {
            "plain": lambda: plain_step(device),
            "ours": lambda batch=batch: our_step(device, batch, False),  # type: ignore[misc]
            "ours, compiled": lambda batch=batch: our_step(device, batch, True),  # type: ignore[misc]
        }
        steps = {name: make() for name, make in makers.items()}
        layouts = {name: torch.contiguous_format if name == "plain" else torch.channels_last for name in makers}
        for name, step in steps.items():
            images_per_second(step, batch, WARM_UP, device, layouts[name])
        rates: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                rates[name].append(images_per_second(step, batch, given.steps, device, layouts[name]))
        for name, step in steps.items():
            rate, busy = statistics.median(rates[name]), busy_share(step, batch, device, layouts[name])
            ratio = rate / statistics.median(rates["plain"])
            found[f"batch {batch}, {name}"] = {"images_per_second": rate, "times_plain": ratio, "busy": busy}
            print(f"batch {batch}, {name}: {rate:.1f} images/s, {ratio:.2f} times the plain loop, GPU busy {busy:.0%}", flush=True)
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
