"""The generators and discriminators of the two CycleGAN lineages.

In: float images (N, 3, H, W) in [-1, 1]. Out of a generator: images of the same shape and range; out of a discriminator: a map of
scores (N, 1, h, w), unbounded, near 1 for real and near 0 for fake (least squares, no sigmoid).

- *seed*: the small networks of the Udacity exercise; state-dict keys as there (`conv1.0.weight`, `res_blocks.0.conv1.0.weight`).
- *resnet*, *patch*: the networks of Zhu et al. 2017, section 4 and appendix 7.2; keys as in junyanz/pytorch-CycleGAN-and-pix2pix
  (`model.1.weight`, `model.10.conv_block.1.weight`), so weights travel both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "instance"]
Init = Literal["default", "normal"]


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """BatchNorm with learned scale and running statistics, or InstanceNorm with neither, as in both original code bases."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.InstanceNorm2d(channels)


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec:
    """All that is needed to build a generator; stored beside its weights.

    Args:
        architecture: `seed` (three stride-2 convolutions) or `resnet` (two).
        channels: width after the first convolution; 64 in both originals.
        blocks: number of residual blocks; 6 for the seed, 6 or 9 for the paper's.
        norm: `batch` or `instance`.
        dropout: only for `resnet`: half of the features dropped between the convolutions of a block while training.
    """

    architecture: Literal["seed", "resnet"]
    channels: int = 64
    blocks: int = 6
    norm: Norm = "instance"
    dropout: bool = False

    @property
    def stride(self) -> int:
        """Height and width must be multiples of this for the output to have the input's size."""
        return 8 if self.architecture == "seed" else 4

    def build(self) -> nn.Module:
        """A generator with freshly drawn weights."""
        if self.architecture == "seed":
            return SeedGenerator(self.channels, self.blocks, self.norm)
        return ResnetGenerator(self.channels, self.blocks, self.norm, self.dropout)


@dataclass(frozen=True, kw_only=True)
class DiscriminatorSpec:
    """All that is needed to build a discriminator: `seed` has five layers; `patch` is the 70x70 PatchGAN."""

    architecture: Literal["seed", "patch"]
    channels: int = 64
    norm: Norm = "instance"

    def build(self) -> nn.Module:
        """A discriminator with freshly drawn weights."""
        network = SeedDiscriminator if self.architecture == "seed" else PatchDiscriminator
        return network(self.channels, self.norm)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, norm: Norm | None) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False)]
    if norm:
        layers.append(norm_layer(norm, outputs))
    return nn.Sequential(*layers)


def _deconv(inputs: int, outputs: int, norm: Norm | None) -> nn.Sequential:
    layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, outputs, 4, 2, padding=1, bias=False)]
    if norm:
        layers.append(norm_layer(norm, outputs))
    return nn.Sequential(*layers)


class SeedResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), without an activation after the sum."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, 3, 1, norm)
        self.conv2 = _conv(channels, channels, 3, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.relu(self.conv1(x)))
        return out


class SeedGenerator(nn.Module):
    """The exercise's generator: down by 8 in three convolutions, residual blocks, up by 8 in three deconvolutions, tanh."""

    def __init__(self, channels: int = 64, blocks: int = 6, norm: Norm = "batch") -> None:
        super().__init__()
        self.conv1 = _conv(3, channels, 4, 2, norm)
        self.conv2 = _conv(channels, channels * 2, 4, 2, norm)
        self.conv3 = _conv(channels * 2, channels * 4, 4, 2, norm)
        self.res_blocks = nn.Sequential(*(SeedResidualBlock(channels * 4, norm) for _ in range(blocks)))
        self.deconv1 = _deconv(channels * 4, channels * 2, norm)
        self.deconv2 = _deconv(channels * 2, channels, norm)
        self.deconv3 = _deconv(channels, 3, None)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        x = self.res_blocks(x)
        x = F.relu(self.deconv1(x))
        x = F.relu(self.deconv2(x))
        return F.tanh(self.deconv3(x))


class SeedDiscriminator(nn.Module):
    """The exercise's discriminator: four stride-2 convolutions with ReLU, one stride-1 convolution to the score map (7x7 at 128 px)."""

    def __init__(self, channels: int = 64, norm: Norm = "batch") -> None:
        super().__init__()
        self.conv1 = _conv(3, channels, 4, 2, None)
        self.conv2 = _conv(channels, channels * 2, 4, 2, norm)
        self.conv3 = _conv(channels * 2, channels * 4, 4, 2, norm)
        self.conv4 = _conv(channels * 4, channels * 8, 4, 2, norm)
        self.conv5 = _conv(channels * 8, 1, 4, 1, None)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        out: Tensor = self.conv5(x)
        return out


class ResnetBlock(nn.Module):
    """x + two reflection-padded 3x3 convolutions; the attribute name and the indices are junyanz's."""

    def __init__(self, channels: int, norm: Norm, dropout: bool) -> None:
        super().__init__()
        bias = norm == "instance"
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            norm_layer(norm, channels),
            nn.ReLU(inplace=True),
            *([nn.Dropout(0.5)] if dropout else []),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            norm_layer(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv_block(x)
        return out


class ResnetGenerator(nn.Module):
    """The paper's generator c7s1-64, d128, d256, R256 x blocks, u128, u64, c7s1-3 (appendix 7.2)."""

    def __init__(self, channels: int = 64, blocks: int = 9, norm: Norm = "instance", dropout: bool = False) -> None:
        super().__init__()
        bias = norm == "instance"  # BatchNorm has a bias of its own

        def activated(layer: nn.Module, outputs: int) -> list[nn.Module]:
            return [layer, norm_layer(norm, outputs), nn.ReLU(inplace=True)]

        def down(inputs: int) -> list[nn.Module]:
            return activated(nn.Conv2d(inputs, inputs * 2, 3, stride=2, padding=1, bias=bias), inputs * 2)

        def up(inputs: int) -> list[nn.Module]:
            layer = nn.ConvTranspose2d(inputs, inputs // 2, 3, stride=2, padding=1, output_padding=1, bias=bias)
            return activated(layer, inputs // 2)

        self.model = nn.Sequential(
            nn.ReflectionPad2d(3),
            *activated(nn.Conv2d(3, channels, 7, bias=bias), channels),
            *down(channels),
            *down(channels * 2),
            *(ResnetBlock(channels * 4, norm, dropout) for _ in range(blocks)),
            *up(channels * 4),
            *up(channels * 2),
            nn.ReflectionPad2d(3),
            nn.Conv2d(channels, 3, 7),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class PatchDiscriminator(nn.Module):
    """The paper's 70x70 PatchGAN C64-C128-C256-C512: each score judges a 70x70 patch (30x30 scores at 256 px)."""

    def __init__(self, channels: int = 64, norm: Norm = "instance") -> None:
        super().__init__()
        bias = norm == "instance"

        def layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, outputs, 4, stride, padding=1, bias=bias)
            return [conv, norm_layer(norm, outputs), nn.LeakyReLU(0.2, inplace=True)]

        self.model = nn.Sequential(
            nn.Conv2d(3, channels, 4, 2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            *layer(channels, channels * 2, 2),
            *layer(channels * 2, channels * 4, 2),
            *layer(channels * 4, channels * 8, 1),
            nn.Conv2d(channels * 8, 1, 4, 1, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


def initialise(network: nn.Module, init: Init) -> nn.Module:
    """Draws the weights: `default` is PyTorch's own (the seed's choice), `normal` is N(0, 0.02) (Zhu et al., appendix 7.1).

    Returns:
        The network itself.
    """
    if init == "default":
        return network
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
    return network
