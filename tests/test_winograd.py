"""Winograd's convolutions against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cyclegan import winograd
from cyclegan.winograd import FEWEST_CHANNELS, WinogradConv2d, quicken_convolutions


@pytest.mark.parametrize("padding", [0, 1, (1, 0)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (3, 3), (5, 30), (21, 10), (100, 70)])
def test_equals_the_convolution(padding: int, bias: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, 3, padding=padding, bias=bias)
    x = torch.randn(3, 5, *size)
    with torch.inference_mode():
        expected = copy.deepcopy(conv).double()(x.double())
        for layout in (torch.contiguous_format, torch.channels_last):
            made = WinogradConv2d(conv)(x.contiguous(memory_format=layout))
            torch.testing.assert_close(made.double(), expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("squares", [1, 3, 20])
def test_any_number_of_squares_together(monkeypatch: pytest.MonkeyPatch, squares: int) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(2, 2, 3, padding=1), torch.randn(5, 2, 13, 17)
    monkeypatch.setattr(winograd, "SQUARES", squares)
    with torch.inference_mode():
        torch.testing.assert_close(WinogradConv2d(conv)(x), conv(x), atol=1e-5, rtol=0)


def test_only_where_it_is_the_same_and_pays() -> None:
    torch.manual_seed(0)
    many = FEWEST_CHANNELS
    network = nn.Sequential(
        nn.Conv2d(many, many, 3, padding=1),
        nn.Sequential(nn.Conv2d(many, 2 * many, 3)),
        nn.Conv2d(2 * many, many, 3, stride=2),
        nn.Conv2d(many, many, 3, dilation=2),
        nn.Conv2d(many, many, 3, groups=2),
        nn.Conv2d(many, many, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(many, many, 5),
        nn.Conv2d(many, many - 1, 3),
        nn.ConvTranspose2d(many - 1, many, 3),
    )
    x = torch.randn(1, many, 40, 40)
    with torch.inference_mode():
        expected = network(x)
        quicken_convolutions(network)
        torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=0)
    assert [name for name, layer in network.named_modules() if isinstance(layer, WinogradConv2d)] == ["0", "1.0"]
