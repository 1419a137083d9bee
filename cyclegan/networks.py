"""The generators and discriminators of the two CycleGAN lineages.

In: float images (N, inputs, H, W) in [-1, 1]. Out of a generator: images (N, outputs, H, W) in the same range; out of a discriminator:
a map of scores (N, 1, h, w), unbounded, higher for real than for fake (no sigmoid).

- *seed*: the small networks of the Udacity exercise; state-dict keys as there (`conv1.0.weight`, `res_blocks.0.conv1.0.weight`).
- *resnet*, *patch*: the networks of Zhu et al. 2017, section 4 and appendix 7.2; *unet*, *pixel*: those of Isola et al. 2017. Keys as in
  junyanz/pytorch-CycleGAN-and-pix2pix (`model.1.weight`, `model.10.conv_block.1.weight`), so weights travel both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
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
        architecture: `seed` (three stride-2 convolutions), `resnet` (two) or `unet` (`blocks` of them, with skip connections).
        channels: width after the first convolution; 64 in both originals.
        blocks: residual blocks, 6 for the seed, 6 or 9 for the paper's; levels of a U-Net, 7 for 128 px and 8 for 256 px.
        norm: `batch` or `instance`.
        dropout: half of the features dropped while training; for `resnet` between the convolutions of a block, for `unet` in the
            levels at full width.
        inputs: channels of the images it takes.
        outputs: channels of the images it gives.
    """

    architecture: Literal["seed", "resnet", "unet"]
    channels: int = 64
    blocks: int = 6
    norm: Norm = "instance"
    dropout: bool = False
    inputs: int = 3
    outputs: int = 3

    @property
    def stride(self) -> int:
        """Height and width must be multiples of this for the output to have the input's size."""
        if self.architecture == "unet":
            return 1 << self.blocks
        return 8 if self.architecture == "seed" else 4

    def build(self) -> nn.Module:
        """A generator with freshly drawn weights."""
        if self.architecture == "seed":
            return SeedGenerator(self.channels, self.blocks, self.norm, self.inputs, self.outputs)
        network = ResnetGenerator if self.architecture == "resnet" else UnetGenerator
        return network(self.channels, self.blocks, self.norm, dropout=self.dropout, inputs=self.inputs, outputs=self.outputs)


@dataclass(frozen=True, kw_only=True)
class DiscriminatorSpec:
    """All that is needed to build a discriminator.

    Args:
        architecture: `seed` has five layers; `patch` is the PatchGAN, 70x70 at three `layers`; `pixel` judges each pixel for itself.
        channels: width after the first convolution.
        layers: stride-2 convolutions of `patch`, which set the size of its patches: 16, 34, 70, 142 px for 1 to 4.
        norm: `batch` or `instance`.
        inputs: channels of the images it judges.
    """

    architecture: Literal["seed", "patch", "pixel"]
    channels: int = 64
    layers: int = 3
    norm: Norm = "instance"
    inputs: int = 3

    @property
    def smallest_side(self) -> int:
        """Height and width of the smallest image that leaves a score, and more than one value for a norm to work on."""
        return {"seed": 32, "patch": 3 << self.layers, "pixel": 2}[self.architecture]

    def build(self) -> nn.Module:
        """A discriminator with freshly drawn weights."""
        if self.architecture == "seed":
            return SeedDiscriminator(self.channels, self.norm, self.inputs)
        if self.architecture == "pixel":
            return PixelDiscriminator(self.channels, self.norm, self.inputs)
        return PatchDiscriminator(self.channels, self.layers, self.norm, self.inputs)


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

    def __init__(self, channels: int = 64, blocks: int = 6, norm: Norm = "batch", inputs: int = 3, outputs: int = 3) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, channels, 4, 2, norm)
        self.conv2 = _conv(channels, channels * 2, 4, 2, norm)
        self.conv3 = _conv(channels * 2, channels * 4, 4, 2, norm)
        self.res_blocks = nn.Sequential(*(SeedResidualBlock(channels * 4, norm) for _ in range(blocks)))
        self.deconv1 = _deconv(channels * 4, channels * 2, norm)
        self.deconv2 = _deconv(channels * 2, channels, norm)
        self.deconv3 = _deconv(channels, outputs, None)

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

    def __init__(self, channels: int = 64, norm: Norm = "batch", inputs: int = 3) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, channels, 4, 2, None)
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

    def __init__(
        self,
        channels: int = 64,
        blocks: int = 9,
        norm: Norm = "instance",
        *,
        dropout: bool = False,
        inputs: int = 3,
        outputs: int = 3,
    ) -> None:
        super().__init__()
        bias = norm == "instance"  # BatchNorm has a bias of its own

        def activated(layer: nn.Module, outputs: int) -> list[nn.Module]:
            return [layer, norm_layer(norm, outputs), nn.ReLU(inplace=True)]

        def down(width: int) -> list[nn.Module]:
            return activated(nn.Conv2d(width, width * 2, 3, stride=2, padding=1, bias=bias), width * 2)

        def up(width: int) -> list[nn.Module]:
            layer = nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1, bias=bias)
            return activated(layer, width // 2)

        self.model = nn.Sequential(
            nn.ReflectionPad2d(3),
            *activated(nn.Conv2d(inputs, channels, 7, bias=bias), channels),
            *down(channels),
            *down(channels * 2),
            *(ResnetBlock(channels * 4, norm, dropout) for _ in range(blocks)),
            *up(channels * 4),
            *up(channels * 2),
            nn.ReflectionPad2d(3),
            nn.Conv2d(channels, outputs, 7),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class UnetGenerator(nn.Module):
    """The U-Net of Isola et al. 2017, section 6.1: halved `levels` times down to the bottleneck, with a skip connection at each level."""

    def __init__(
        self,
        channels: int = 64,
        levels: int = 8,
        norm: Norm = "instance",
        *,
        dropout: bool = False,
        inputs: int = 3,
        outputs: int = 3,
    ) -> None:
        super().__init__()
        widths = [min(channels * 2**level, channels * 8) for level in range(levels)]
        below: UnetLevel | None = None
        for level in range(levels - 1, 0, -1):
            # the bottleneck itself has no dropout, nor have the levels that are still widening
            dropped = dropout and below is not None and widths[level] == widths[level - 1]
            below = UnetLevel(widths[level - 1], widths[level], below, norm, dropped)
        assert below is not None
        bias = norm == "instance"
        down = nn.Conv2d(inputs, channels, 4, 2, padding=1, bias=bias)
        up = nn.ConvTranspose2d(2 * channels, outputs, 4, 2, padding=1)
        # one more Sequential than needed, for junyanz's keys
        self.model = nn.ModuleDict({"model": nn.Sequential(down, below, nn.ReLU(inplace=True), up, nn.Tanh())})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model["model"](x)
        return out


class UnetLevel(nn.Module):
    """A level of the U-Net with all below it: half the size and back, put beside what came in; twice `outer` channels go out."""

    def __init__(self, outer: int, inner: int, below: UnetLevel | None, norm: Norm, dropout: bool) -> None:
        super().__init__()
        bias = norm == "instance"
        middle = [norm_layer(norm, inner), below] if below is not None else []
        self.model = nn.Sequential(
            nn.LeakyReLU(0.2, inplace=True),  # in place: what skips past this level is activated too, as in junyanz's weights
            nn.Conv2d(outer, inner, 4, 2, padding=1, bias=bias),
            *middle,
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * inner if below is not None else inner, outer, 4, 2, padding=1, bias=bias),
            norm_layer(norm, outer),
            *([nn.Dropout(0.5)] if dropout else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.model(x)], 1)


class PatchDiscriminator(nn.Module):
    """The paper's 70x70 PatchGAN C64-C128-C256-C512: each score judges a 70x70 patch (30x30 scores at 256 px); other sizes by `layers`."""

    def __init__(self, channels: int = 64, layers: int = 3, norm: Norm = "instance", inputs: int = 3) -> None:
        super().__init__()
        bias = norm == "instance"
        widths = [channels * min(2**layer, 8) for layer in range(layers + 1)]

        def layer(number: int) -> list[nn.Module]:
            stride = 1 if number == layers else 2
            conv = nn.Conv2d(widths[number - 1], widths[number], 4, stride, padding=1, bias=bias)
            return [conv, norm_layer(norm, widths[number]), nn.LeakyReLU(0.2, inplace=True)]

        self.model = nn.Sequential(
            nn.Conv2d(inputs, channels, 4, 2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            *(module for number in range(1, layers + 1) for module in layer(number)),
            nn.Conv2d(widths[-1], 1, 4, 1, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class PixelDiscriminator(nn.Module):
    """The 1x1 "PixelGAN" of Isola et al. 2017, section 6.1.2: judges colours, not shapes."""

    def __init__(self, channels: int = 64, norm: Norm = "instance", inputs: int = 3) -> None:
        super().__init__()
        bias = norm == "instance"
        self.net = nn.Sequential(
            nn.Conv2d(inputs, channels, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(channels, channels * 2, 1, bias=bias),
            norm_layer(norm, channels * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(channels * 2, 1, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
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
