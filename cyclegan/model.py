"""The CycleGAN of Zhu et al. 2017: the two training steps of the paper and all state that changes.

In: batches of real images of both domains, float (N, C, H, W) in [-1, 1]. Out: updated networks and the losses of the step.

Names against the paper: domain `a` is X, `b` is Y, `generator_a2b` is G, `generator_b2a` is F, `discriminator_b` is D_Y.
Each phase is one module with one forward and one backward, which is what data-parallel training can keep in step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cyclegan.average import RunningAverage
from cyclegan.config import Direction, LossSettings, Norm, OptimizerSettings, TrainSettings
from cyclegan.errors import InputError
from cyclegan.image_pool import ImagePool
from cyclegan.losses import adversarial_loss, cycle_loss, discriminator_loss, gradient_penalty, identity_loss
from cyclegan.networks import DiscriminatorSpec, GeneratorSpec, initialise
from cyclegan.optimizer import GuardedAdam
from cyclegan.sync_batch_norm import synchronise_batch_norm


class GeneratorOutput(NamedTuple):
    """What the generators' phase gives: the loss to descend, its terms before weighting, and the fakes for the discriminators."""

    total: Tensor
    adversarial_a2b: Tensor
    adversarial_b2a: Tensor
    cycle_a: Tensor
    cycle_b: Tensor
    identity_a: Tensor
    identity_b: Tensor
    fake_a: Tensor
    fake_b: Tensor


class DiscriminatorOutput(NamedTuple):
    """What the discriminators' phase gives: the loss to descend and its two parts before weighting."""

    total: Tensor
    discriminator_a: Tensor
    discriminator_b: Tensor


class GeneratorPhase(nn.Module):
    """Equation 3 of the paper with the adversarial terms of section 4, as seen by the generators."""

    def __init__(self, generator_a2b: nn.Module, generator_b2a: nn.Module, judges: tuple[nn.Module, nn.Module], weights: LossSettings):
        super().__init__()
        self.generator_a2b = generator_a2b
        self.generator_b2a = generator_b2a
        # In a tuple the discriminators stay no submodules: this phase reads them, the other one trains and synchronises them.
        self.judges = judges
        self.weights = weights

    def forward(self, real_a: Tensor, real_b: Tensor) -> GeneratorOutput:
        judge_a, judge_b = self.judges
        fake_b = self.generator_a2b(real_a)
        fake_a = self.generator_b2a(real_b)
        adversarial_a2b = adversarial_loss(judge_b(fake_b), self.weights.gan)
        adversarial_b2a = adversarial_loss(judge_a(fake_a), self.weights.gan)
        cycle_a = cycle_loss(self.generator_b2a(fake_b), real_a)
        cycle_b = cycle_loss(self.generator_a2b(fake_a), real_b)
        total = adversarial_a2b + adversarial_b2a + self.weights.cycle * (cycle_a + cycle_b)
        identity_a = identity_b = torch.zeros_like(total)
        if self.weights.identity > 0:
            identity_a = identity_loss(self.generator_b2a(real_a), real_a)
            identity_b = identity_loss(self.generator_a2b(real_b), real_b)
            total = total + self.weights.identity * (identity_a + identity_b)
        return GeneratorOutput(
            total, adversarial_a2b, adversarial_b2a, cycle_a, cycle_b, identity_a, identity_b, fake_a.detach(), fake_b.detach()
        )


class DiscriminatorPhase(nn.Module):
    """The adversarial terms of section 4, as seen by the discriminators."""

    def __init__(self, discriminator_a: nn.Module, discriminator_b: nn.Module, weights: LossSettings):
        super().__init__()
        self.discriminator_a = discriminator_a
        self.discriminator_b = discriminator_b
        self.weights = weights

    def forward(self, real_a: Tensor, fake_a: Tensor, real_b: Tensor, fake_b: Tensor) -> DiscriminatorOutput:
        loss_a = discriminator_loss(self.discriminator_a(real_a), self.discriminator_a(fake_a), self.weights.gan)
        loss_b = discriminator_loss(self.discriminator_b(real_b), self.discriminator_b(fake_b), self.weights.gan)
        total = loss_a + loss_b
        if self.weights.gan == "wgangp":
            slopes = gradient_penalty(self.discriminator_a, real_a, fake_a) + gradient_penalty(self.discriminator_b, real_b, fake_b)
            total = total + self.weights.gradient_penalty * slopes
        return DiscriminatorOutput(self.weights.discriminator * total, loss_a, loss_b)


class StepResult(NamedTuple):
    """What a step gives: its unweighted losses, detached scalars by name; and the fakes of the worker's batch."""

    losses: dict[str, Tensor]
    fake_a: Tensor
    fake_b: Tensor


class CycleGAN:
    """Networks, optimizers, averages and image pools of one worker.

    The first weights follow from `settings.seed` alone, so they are the same on every worker. Where `torch.distributed` runs with
    more than one worker, gradients are averaged and BatchNorm statistics shared.

    Args:
        settings: networks, loss weights, optimizer.
        device: where everything lives.
        rank: this worker's number; what it draws at random differs from the others'.
    """

    def __init__(self, settings: TrainSettings, device: torch.device, rank: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            generators = [initialise(generator_spec(settings, direction).build(), settings.init) for direction in ("a2b", "b2a")]
            discriminators = [initialise(discriminator_spec(settings, domain).build(), settings.init) for domain in ("a", "b")]
        torch.manual_seed(settings.seed * 65_537 + rank)  # what dropout and the gradient penalty draw
        self.settings = settings
        self.device = device
        self.dtype = arithmetic(settings.precision, device)
        self._distributed = dist.is_initialized() and dist.get_world_size() > 1
        self.generator_a2b, self.generator_b2a = (self._place(network, settings.generator.norm) for network in generators)
        self.discriminator_a, self.discriminator_b = (self._place(network, settings.discriminator.norm) for network in discriminators)
        self.averages = {
            name: RunningAverage(getattr(self, name), settings.ema_half_life) for name in GENERATOR_NAMES if settings.ema_half_life
        }
        judges = (self.discriminator_a, self.discriminator_b)
        self.generator_phase = self._parallel(GeneratorPhase(self.generator_a2b, self.generator_b2a, judges, settings.loss))
        self.discriminator_phase = self._parallel(DiscriminatorPhase(*judges, settings.loss))
        self.generator_optimizer = self._adam(self.generator_phase)
        self.discriminator_optimizer = self._adam(self.discriminator_phase)
        self.pool_a = ImagePool(settings.pool_size, seed=2 * rank)
        self.pool_b = ImagePool(settings.pool_size, seed=2 * rank + 1)
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)

    def step(self, real_a: Tensor, real_b: Tensor, images: int) -> StepResult:
        """One step of the paper: the generators, judged by frozen discriminators; then the discriminators, on fakes out of the pool.

        Args:
            real_a: this worker's images of domain A.
            real_b: and of domain B.
            images: images of each domain that all workers have seen after this step, for the running averages.
        """
        with self._statistics_kept_finite() as skipped:
            self._freeze_judges(True)
            generated = self._descend(self.generator_optimizer, self.generator_phase, skipped, real_a, real_b)
            # a fake that is no number would come back out of the pool long after the step that was skipped for it
            fake_a, fake_b = (torch.cat([part[name] for part in generated]).nan_to_num(0) for name in ("fake_a", "fake_b"))
            self._freeze_judges(False)
            pooled_a, pooled_b = self.pool_a.query(fake_a), self.pool_b.query(fake_b)
            judged = self._descend(self.discriminator_optimizer, self.discriminator_phase, skipped, real_a, pooled_a, real_b, pooled_b)
        for name, average in self.averages.items():
            average.update(self.networks()[name], batch=len(real_a) * _world_size(), images=images)
        parts = [{**first, **second} for first, second in zip(generated, judged, strict=True)]
        return StepResult({name: torch.stack([part[name] for part in parts]).mean() for name in LOSS_NAMES}, fake_a, fake_b)

    def set_learning_rate(self, done: float) -> float:
        """Sets the rate for the share `done` of the run and returns it."""
        rate = self.settings.optimizer.learning_rate * learning_rate_factor(done, self.settings.optimizer)
        self.generator_optimizer.set_learning_rate(rate)
        self.discriminator_optimizer.set_learning_rate(rate)
        return rate

    def networks(self) -> dict[str, nn.Module]:
        """The four networks by name."""
        return {name: cast(nn.Module, getattr(self, name)) for name in NETWORK_NAMES}

    def generators_to_keep(self) -> dict[Direction, nn.Module]:
        """What samples and exports are made with: the averaged generators, or the generators themselves where there is no average."""
        kept = {name: self.averages[name].network if self.averages else getattr(self, name) for name in GENERATOR_NAMES}
        return {"a2b": kept["generator_a2b"], "b2a": kept["generator_b2a"]}

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes and is the same on all workers."""
        return {
            **{name: network.state_dict() for name, network in self.networks().items()},
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave. An average that the state does not hold begins with the weights it holds."""
        for name, network in self.networks().items():
            network.load_state_dict(state[name])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        for name, average in self.averages.items():
            if name in state["averages"]:
                average.load_state_dict(state["averages"][name])
        self.skipped.copy_(state["skipped"])
        self.skipped_in_a_row.copy_(state["skipped_in_a_row"])

    def worker_state_dict(self) -> dict[str, Any]:
        """What every worker has for itself: image pools and the state of its random numbers."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "pool_a": self.pool_a.state_dict(),
            "pool_b": self.pool_b.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": cuda,
        }

    def load_worker_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `worker_state_dict` gave."""
        self.pool_a.load_state_dict(state["pool_a"], self.device)
        self.pool_b.load_state_dict(state["pool_b"], self.device)
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def checksum(self) -> Tensor:
        """One number for all parameters, fp64; workers in step agree on it to the last bit."""
        parameters = [p.detach().double().sum() for network in self.networks().values() for p in network.parameters()]
        return torch.stack(parameters).sum().cpu()

    def _descend(self, optimizer: GuardedAdam, phase: nn.Module, skipped: list[Tensor], *batch: Tensor) -> list[dict[str, Tensor]]:
        """One phase over the parts of a batch; what it gives for each, detached."""
        optimizer.clear()
        parts = list(zip(*(images.chunk(self.settings.accumulate) for images in batch), strict=True))
        outputs = []
        for number, part in enumerate(parts, 1):
            # workers exchange gradients once, with the last part
            with _without_exchange(phase, number < len(parts)):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    output: GeneratorOutput | DiscriminatorOutput = phase(*part)
                optimizer.backward(output.total / len(parts))
            outputs.append({name: value.detach() for name, value in output._asdict().items()})
        skipped.append(optimizer.step())
        return outputs

    @contextmanager
    def _statistics_kept_finite(self) -> Iterator[list[Tensor]]:
        """Counts the step as skipped where one of the phases was, and takes back what BatchNorm learned in it."""
        statistics = [buffer for network in self.networks().values() for buffer in network.buffers() if buffer.is_floating_point()]
        before = [buffer.clone() for buffer in statistics]
        phases: list[Tensor] = []
        yield phases
        skipped = torch.stack(phases).any()
        for buffer, old in zip(statistics, before, strict=True):
            buffer.copy_(torch.where(skipped, old, buffer))
        self.skipped += skipped
        self.skipped_in_a_row.copy_(torch.where(skipped, self.skipped_in_a_row + 1, 0))

    def _freeze_judges(self, frozen: bool) -> None:
        for judge in (self.discriminator_a, self.discriminator_b):
            judge.requires_grad_(not frozen)

    def _place(self, network: nn.Module, norm: Norm) -> nn.Module:
        network = network.to(self.device)
        if self.device.type == "cuda":  # the layout in which tensor cores take convolutions
            network = network.to(memory_format=torch.channels_last)
        return synchronise_batch_norm(network, self.device) if self._distributed and norm == "sync_batch" else network

    def _parallel(self, phase: nn.Module) -> nn.Module:
        if self.settings.compile:
            phase.compile()  # in place: the names of the parameters stay as they are
        if not self._distributed:
            return phase
        # The statistics that BatchNorm keeps are shared already; a broadcast before each forward would write over tensors
        # that the backward of the same step still needs. torch renamed the switch in 2.15.
        names = inspect.signature(DistributedDataParallel).parameters
        switch: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(phase, device_ids=devices, **switch)

    def _adam(self, phase: nn.Module) -> GuardedAdam:
        optimizer = self.settings.optimizer
        return GuardedAdam(
            phase.parameters(),
            learning_rate=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            fp16=self.dtype == torch.float16,
        )


GENERATOR_NAMES = ("generator_a2b", "generator_b2a")
NETWORK_NAMES = (*GENERATOR_NAMES, "discriminator_a", "discriminator_b")
LOSS_NAMES = tuple(
    name for output in (GeneratorOutput, DiscriminatorOutput) for name in output._fields if not name.startswith(("total", "fake"))
)


def learning_rate_factor(done: float, optimizer: OptimizerSettings) -> float:
    """Share of the starting rate after the share `done` of the run: 1 until `decay_from`, then down to 0.

    `linear` is Zhu et al. 2017, appendix 7.1; `cosine` is Loshchilov and Hutter 2017, equation 5, without restarts.
    """
    if optimizer.schedule == "constant" or done <= optimizer.decay_from:
        return 1.0
    fallen = min(1.0, (done - optimizer.decay_from) / (1 - optimizer.decay_from))
    return 1 - fallen if optimizer.schedule == "linear" else (1 + math.cos(math.pi * fallen)) / 2


def arithmetic(precision: str, device: torch.device) -> torch.dtype:
    """In what the networks compute; weights, losses and what a norm sums up stay fp32."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def generator_spec(settings: TrainSettings, direction: Direction) -> GeneratorSpec:
    """What a generator of a run is built from."""
    channels = (settings.data.channels_a, settings.data.channels_b)
    inputs, outputs = channels if direction == "a2b" else channels[::-1]
    values = settings.generator.model_dump() | {"norm": _layer(settings.generator.norm)}
    return GeneratorSpec(**values, inputs=inputs, outputs=outputs)


def discriminator_spec(settings: TrainSettings, domain: Literal["a", "b"]) -> DiscriminatorSpec:
    """What the discriminator of a domain is built from."""
    values = settings.discriminator.model_dump() | {"norm": _layer(settings.discriminator.norm)}
    return DiscriminatorSpec(**values, inputs=settings.data.channels_a if domain == "a" else settings.data.channels_b)


def describe_networks(settings: TrainSettings) -> dict[str, Any]:
    """The architecture of all networks as plain values: two runs whose checkpoints fit each other agree on it."""
    return {
        "generator_a2b": asdict(generator_spec(settings, "a2b")),
        "generator_b2a": asdict(generator_spec(settings, "b2a")),
        "discriminator_a": asdict(discriminator_spec(settings, "a")),
        "discriminator_b": asdict(discriminator_spec(settings, "b")),
    }


def refuse_sizes(settings: TrainSettings) -> None:
    """Holds the size of the images against what the networks can take.

    Raises:
        InputError: it is no multiple of the stride, or too small to be judged.
    """
    generator, discriminator = generator_spec(settings, "a2b"), discriminator_spec(settings, "b")
    if generator.architecture == "unet" and generator.blocks < 2:
        raise InputError("--generator.blocks 1: a U-Net needs at least 2 levels")
    if settings.size % generator.stride:
        raise InputError(f"--size {settings.size}: must be a multiple of {generator.stride} for this {generator.architecture} generator")
    if settings.size < discriminator.smallest_side:
        raise InputError(
            f"--size {settings.size}: the {discriminator.architecture} discriminator needs at least {discriminator.smallest_side}"
        )


def _layer(norm: Norm) -> Literal["batch", "instance"]:
    """Whether BatchNorm is synchronised shows in training only, not in the network."""
    return "instance" if norm == "instance" else "batch"


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def _without_exchange(phase: nn.Module, wanted: bool) -> Iterator[None]:
    if wanted and isinstance(phase, DistributedDataParallel):
        with phase.no_sync():
            yield
    else:
        yield
