"""3x3 convolutions with a quarter of the multiplications, for CPUs.

In and out: float (N, C, H, W), as of the `nn.Conv2d` that is replaced. Squares of 4x4 outputs are the product of transformed squares of
6x6 inputs with transformed weights: 36 multiplications instead of 144, as one matrix product for each of the 36. cuDNN does so on GPUs;
torch's convolutions on CPUs do not. In fp32 the last bits differ: for 16-bit pixels by a level or two of 65,535.

Source: Lavin and Gray 2016, *Fast Algorithms for Convolutional Neural Networks*, F(4x4, 3x3), whose letters these are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEWEST_CHANNELS = 128
"""In and out, from which it is quicker than torch's convolution: with fewer the transforms take more than the products save."""

SQUARES = 128
"""That go through together, so that what is made of them stays in the cache."""

# the paper's transposed B, its G and its transposed A: a row for each value that comes out
_B = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]

_ONES = 7
"""Of the 36 products the one that all 16 outputs contain once: the place of the bias."""


def quicken_convolutions(network: nn.Module) -> None:
    """Exchanges those layers for which it pays; float32, on a CPU."""
    for name, layer in network.named_children():
        if isinstance(layer, nn.Conv2d) and _pays(layer):
            setattr(network, name, WinogradConv2d(layer))
        else:
            quicken_convolutions(layer)


def _pays(conv: nn.Conv2d) -> bool:
    plain = (conv.kernel_size, conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((3, 3), (1, 1), (1, 1), 1, "zeros")
    return plain and not isinstance(conv.padding, str) and min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS


class WinogradConv2d(nn.Conv2d):
    """Does what `conv` does, for inference.

    Args:
        conv: 3x3, stride 1, of one group, padded with zeros; its weights are copied.

    Attributes:
        weight: transformed, (36, inputs, outputs).
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        assert not isinstance(conv.padding, str)
        self.top, self.left = conv.padding
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=(self.top, self.left), bias=conv.bias is not None, device="meta")
        transform, weight = torch.tensor(_G, dtype=torch.float64), conv.weight.detach().double()
        squares = torch.einsum("ir,ocrs,js->ijco", transform, weight, transform)
        self.weight = nn.Parameter(squares.reshape(36, self.in_channels, self.out_channels).float(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        # of both axes at once
        self.take: Tensor
        self.give: Tensor
        self.register_buffer("take", torch.kron(torch.tensor(_B), torch.tensor(_B)).float())
        self.register_buffer("give", torch.kron(torch.tensor(_A), torch.tensor(_A)).float())

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W) if padded by one pixel; channels_last in memory."""
        number, channels, rows_in, columns_in = x.shape
        height, width = rows_in + 2 * self.top - 2, columns_in + 2 * self.left - 2
        down, across = -(-height // 4), -(-width // 4)
        bottom, right = 4 * down + 2 - rows_in - self.top, 4 * across + 2 - columns_in - self.left
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, self.left, right, self.top, bottom)).contiguous()
        image, row, column, _ = padded.stride()
        squares = padded.as_strided((6, 6, number, down, across, channels), (row, column, image, 4 * row, 4 * column, 1))
        made = x.new_empty(number, down, 4, across, 4, self.out_channels)
        for images in _parts(number, SQUARES // (down * across)):
            for rows in _parts(down, SQUARES // across):
                made[images, rows] = self._multiply(squares[:, :, images, rows]).permute(2, 3, 0, 4, 1, 5)
        return made.view(number, 4 * down, 4 * across, self.out_channels)[:, :height, :width].permute(0, 3, 1, 2)

    def _multiply(self, squares: Tensor) -> Tensor:
        """(6, 6, n, h, w, inputs) to (4, 4, n, h, w, outputs)."""
        taken = (self.take @ squares.reshape(36, -1)).view(36, -1, self.in_channels)
        products = torch.bmm(taken, self.weight)
        if self.bias is not None:
            products[_ONES] += self.bias
        return (self.give @ products.view(36, -1)).view(4, 4, *squares.shape[2:5], self.out_channels)


def _parts(length: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(start, start + size) for start in range(0, length, size)]
