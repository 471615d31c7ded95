"""Convolutions over the agent's view, with and without NFM."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from nfm import NFMOptions, trunk

#: Channels after each convolution; the second and third halve a view of 7 cells to 4 and 2.
CHANNELS = (16, 32, 32)
_STRIDES = (1, 2, 2)

#: Small, as the maps are; batches of an agent are correlated, so nothing is normalised over them.
VIEW_NFM: NFMOptions = {
    "passes": 2,
    "key_size": 8,
    "value_size": 8,
    "num_heads": 2,
    "top_k": 5,
    "batch_norm": False,
    "out_kernel_size": 1,
}


def view_maps(name: Literal["cnn", "nfm"], in_channels: int) -> nn.Module:
    """Three 3x3 convolutions over the one-hot view, plain or as a Neural Function Module network.

    Args:
        name: ``"cnn"``, or ``"nfm"`` for the same convolutions in two passes with an NFM after each
            (arXiv:2010.08012).
        in_channels: categories of a cell.

    Shape:
        ``(B, in_channels, width, height) -> (B, 32, ceil(width / 4), ceil(height / 4))``

    Example:
        >>> import torch
        >>> view_maps("nfm", 21)(torch.zeros(5, 21, 7, 7)).shape
        torch.Size([5, 32, 2, 2])
    """
    below = (in_channels, *CHANNELS[:-1])
    layers = [
        nn.Sequential(_conv(a, b, stride), nn.ReLU())
        for a, b, stride in zip(below, CHANNELS, _STRIDES, strict=True)
    ]
    return trunk(layers, CHANNELS, VIEW_NFM if name == "nfm" else None)


def map_features(width: int, height: int) -> int:
    """Features of the last map of a view, side by side.

    Example:
        >>> map_features(7, 7)
        128
    """
    return CHANNELS[-1] * math.ceil(width / 4) * math.ceil(height / 4)


def _conv(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
    nn.init.orthogonal_(conv.weight, math.sqrt(2))  # as the agent's other layers
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
