"""The CycleGAN of Zhu et al. 2017: the two training steps of the paper and all state that changes.

In: batches of real images of both domains, float (N, 3, H, W) in [-1, 1]. Out: updated networks and the losses of the step.

Names against the paper: domain `a` is X, `b` is Y, `generator_a2b` is G, `generator_b2a` is F, `discriminator_b` is D_Y.
Each phase is one module with one forward and one backward, which is what data-parallel training can keep in step.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cyclegan.config import LossSettings, TrainSettings
from cyclegan.image_pool import ImagePool
from cyclegan.losses import adversarial_loss, cycle_loss, discriminator_loss, identity_loss
from cyclegan.networks import DiscriminatorSpec, GeneratorSpec, initialise
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
        adversarial_a2b = adversarial_loss(judge_b(fake_b))
        adversarial_b2a = adversarial_loss(judge_a(fake_a))
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

    def __init__(self, discriminator_a: nn.Module, discriminator_b: nn.Module, weight: float):
        super().__init__()
        self.discriminator_a = discriminator_a
        self.discriminator_b = discriminator_b
        self.weight = weight

    def forward(self, real_a: Tensor, fake_a: Tensor, real_b: Tensor, fake_b: Tensor) -> DiscriminatorOutput:
        loss_a = discriminator_loss(self.discriminator_a(real_a), self.discriminator_a(fake_a))
        loss_b = discriminator_loss(self.discriminator_b(real_b), self.discriminator_b(fake_b))
        return DiscriminatorOutput(self.weight * (loss_a + loss_b), loss_a, loss_b)


def learning_rate_factor(done: float, decay_from: float) -> float:
    """Share of the starting rate after the share `done` of the run: 1 until `decay_from`, then linear to 0 (Zhu et al., appendix 7.1)."""
    return 1.0 if done <= decay_from else max(0.0, (1 - done) / (1 - decay_from))


class CycleGAN:
    """Networks, optimizers and image pools of one worker.

    The first weights follow from `settings.seed` alone, so they are the same on every worker. Where `torch.distributed` runs with
    more than one worker, gradients are averaged and BatchNorm statistics shared.

    Args:
        settings: networks, loss weights, optimizer.
        device: where everything lives.
        rank: this worker's number; its image pool draws differently from the others'.
    """

    def __init__(self, settings: TrainSettings, device: torch.device, rank: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            generators = [initialise(generator_spec(settings).build(), settings.init) for _ in range(2)]
            discriminator_spec = DiscriminatorSpec(**settings.discriminator.model_dump())
            discriminators = [initialise(discriminator_spec.build(), settings.init) for _ in range(2)]
        self.settings = settings
        self.device = device
        self._distributed = dist.is_initialized() and dist.get_world_size() > 1
        self.generator_a2b, self.generator_b2a = (self._place(network) for network in generators)
        self.discriminator_a, self.discriminator_b = (self._place(network) for network in discriminators)
        judges = (self.discriminator_a, self.discriminator_b)
        self.generator_phase = self._parallel(GeneratorPhase(self.generator_a2b, self.generator_b2a, judges, settings.loss))
        self.discriminator_phase = self._parallel(DiscriminatorPhase(*judges, settings.loss.discriminator))
        self.generator_optimizer = self._adam(self.generator_phase)
        self.discriminator_optimizer = self._adam(self.discriminator_phase)
        self.pool_a = ImagePool(settings.pool_size, seed=2 * rank)
        self.pool_b = ImagePool(settings.pool_size, seed=2 * rank + 1)

    def step(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        """One step of the paper: the generators, judged by frozen discriminators; then the discriminators, on fakes out of the pool.

        Returns:
            The unweighted losses of this worker's batch, detached scalars.
        """
        for judge in (self.discriminator_a, self.discriminator_b):
            judge.requires_grad_(False)
        generated: GeneratorOutput = self.generator_phase(real_a, real_b)
        self._descend(self.generator_optimizer, generated.total)

        for judge in (self.discriminator_a, self.discriminator_b):
            judge.requires_grad_(True)
        pooled_a, pooled_b = self.pool_a.query(generated.fake_a), self.pool_b.query(generated.fake_b)
        judged: DiscriminatorOutput = self.discriminator_phase(real_a, pooled_a, real_b, pooled_b)
        self._descend(self.discriminator_optimizer, judged.total)

        losses = {**generated._asdict(), **judged._asdict()}
        return {name: losses[name].detach() for name in LOSS_NAMES}

    def set_learning_rate(self, done: float) -> float:
        """Sets the rate for the share `done` of the run and returns it."""
        optimizer = self.settings.optimizer
        rate = optimizer.learning_rate * learning_rate_factor(done, optimizer.decay_from)
        for group in self.generator_optimizer.param_groups + self.discriminator_optimizer.param_groups:
            group["lr"] = rate
        return rate

    def networks(self) -> dict[str, nn.Module]:
        """The four networks by name."""
        return {name: cast(nn.Module, getattr(self, name)) for name in NETWORK_NAMES}

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes and is the same on all workers."""
        return {
            **{name: network.state_dict() for name, network in self.networks().items()},
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        for name, network in self.networks().items():
            network.load_state_dict(state[name])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])

    def pools_state_dict(self) -> dict[str, Any]:
        """The image pools, which every worker has for itself."""
        return {"pool_a": self.pool_a.state_dict(), "pool_b": self.pool_b.state_dict()}

    def load_pools_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `pools_state_dict` gave."""
        self.pool_a.load_state_dict(state["pool_a"], self.device)
        self.pool_b.load_state_dict(state["pool_b"], self.device)

    def checksum(self) -> Tensor:
        """One number for all parameters, fp64; workers in step agree on it to the last bit."""
        parameters = [p.detach().double().sum() for network in self.networks().values() for p in network.parameters()]
        return torch.stack(parameters).sum().cpu()

    def _place(self, network: nn.Module) -> nn.Module:
        network = network.to(self.device)
        return synchronise_batch_norm(network, self.device) if self._distributed else network

    def _parallel(self, phase: nn.Module) -> nn.Module:
        if not self._distributed:
            return phase
        # The statistics that BatchNorm keeps are shared already; a broadcast before each forward would write over tensors
        # that the backward of the same step still needs. torch renamed the switch in 2.15.
        names = inspect.signature(DistributedDataParallel).parameters
        switch: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(phase, device_ids=devices, **switch)

    def _adam(self, phase: nn.Module) -> torch.optim.Adam:
        optimizer = self.settings.optimizer
        return torch.optim.Adam(phase.parameters(), lr=optimizer.learning_rate, betas=(optimizer.beta1, optimizer.beta2))

    @staticmethod
    def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


NETWORK_NAMES = ("generator_a2b", "generator_b2a", "discriminator_a", "discriminator_b")
LOSS_NAMES = tuple(
    name for output in (GeneratorOutput, DiscriminatorOutput) for name in output._fields if not name.startswith(("total", "fake"))
)


def generator_spec(settings: TrainSettings) -> GeneratorSpec:
    """What the generators of a run are built from."""
    return GeneratorSpec(**settings.generator.model_dump())
