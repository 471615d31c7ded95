"""Convolutions over the agent's view, with and without NFM, and over images."""

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


#: Channels, kernel sizes and strides of Mnih et al. (Nature, 2015), without padding.
_NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))

#: The smallest side of an image over which these have a place to stand.
SMALLEST_NATURE = 36


def image_maps(shape: tuple[int, int, int]) -> nn.Module:
    """Convolutions over an image: those of DQN (Nature, 2015), or 3x3 ones if it is small.

    Args:
        shape: channels, height, width. If a side is shorter than 36, the convolutions are those of
            :func:`view_maps`.

    Shape:
        ``(B, *shape) -> (B, channels, height, width)``, of as many numbers as
        :func:`image_features` says

    Example:
        >>> import torch
        >>> image_maps((3, 56, 56))(torch.zeros(5, 3, 56, 56)).shape
        torch.Size([5, 64, 3, 3])
    """
    channels, *sides = shape
    if min(sides) < SMALLEST_NATURE:
        return view_maps("cnn", channels)
    layers: list[nn.Module] = []
    for out_channels, kernel, stride in _NATURE:
        layers += [_conv(channels, out_channels, stride, kernel, 0), nn.ReLU()]
        channels = out_channels
    return nn.Sequential(*layers)


def image_features(shape: tuple[int, int, int]) -> int:
    """Features of the last map of an image, side by side.

    Example:
        >>> image_features((3, 56, 56)), image_features((4, 10, 10))
        (576, 288)
    """
    _, *sides = shape
    if min(sides) < SMALLEST_NATURE:
        return map_features(*sides)
    for _, kernel, stride in _NATURE:
        sides = [(side - kernel) // stride + 1 for side in sides]
    return _NATURE[-1][0] * math.prod(sides)


def _conv(
    in_channels: int, out_channels: int, stride: int, kernel: int = 3, padding: int = 1
) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=padding)
    nn.init.orthogonal_(conv.weight, math.sqrt(2))  # as the agent's other layers
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
