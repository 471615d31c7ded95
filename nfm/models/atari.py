"""Residual encoder of Atari frames, plain or with NFM, and the agent's network around it."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfm.models.iqn import IQNHead, IQNOutput
from nfm.network import NFMOptions, trunk

#: NFM as in the encoder of the Rainbow-IQN agent (arXiv:2010.08012, appendix E): two places in two
#: passes. No batch normalisation: statistics of replayed batches would not be those of acting, and
#: the target network would have its own.
ATARI_NFM: NFMOptions = {
    "passes": 2,
    "key_size": 32,
    "value_size": 32,
    "num_heads": 4,
    "top_k": 4,
    "rescale": "space_to_depth",
    "batch_norm": False,
}


class AtariEncoder(nn.Module):
    """A narrow ResNet-18 without normalisation: stacked frames to features.

    Stem 3x3 of stride 2, then four stages of two residual blocks (ReLU-conv-ReLU-conv plus
    shortcut) with strides 1, 2, 2, 2 and doubling channels: 84 -> 42 -> 42 -> 21 -> 11 -> 6 pixels.
    The stages form two pairs, which are the modules of the NFM: two places, hence the four of
    arXiv:2010.08012, appendix E, in two passes. That paper names the network only "ResNet18"; its
    width, and that nothing is normalised, are choices of this module.

    Args:
        in_channels: frames stacked. Default 4.
        width: channels of the first stage. Default 16.
        image_size: pixels of a side. Default 84.
        nfm: options of the NFM, such as :data:`ATARI_NFM`; ``None`` (default) for none.

    Attributes:
        num_features: F, features of the output.

    Shape:
        ``(B, in_channels, image_size, image_size) -> (B, F)``; bytes are divided by 255, floating
        point is taken to lie in [0, 1] already.

    Example:
        >>> encoder = AtariEncoder(width=1)
        >>> encoder(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
        torch.Size([2, 288])
    """

    def __init__(
        self,
        *,
        in_channels: int = 4,
        width: int = 16,
        image_size: int = 84,
        nfm: NFMOptions | None = None,
    ) -> None:
        super().__init__()
        channels = [width * 2**stage for stage in range(4)]
        stages = [_stage(width, width, 1)] + [
            _stage(below, above, 2) for below, above in pairwise(channels)
        ]
        stem = nn.Conv2d(in_channels, width, 3, stride=2, padding=1)
        pairs = [nn.Sequential(stem, *stages[:2]), nn.Sequential(*stages[2:])]
        self.trunk = trunk(pairs, [channels[1], channels[3]], nfm)
        self.num_features = channels[-1] * math.ceil(image_size / 16) ** 2  # four halvings

    def forward(self, frames: Tensor) -> Tensor:
        """Features ``(B, F)`` of the frames ``(B, in_channels, Y, X)``."""
        if not frames.is_floating_point():
            frames = frames.to(next(self.parameters()).dtype) / 255
        return F.relu(self.trunk(frames)).flatten(1)


class AtariIQN(nn.Module):
    """Encoder and IQN head: the network of a Rainbow-style IQN agent (arXiv:1806.06923).

    Args:
        num_actions: A.
        in_channels: frames stacked. Default 4.
        width: of the encoder. Default 16.
        hidden: units of the value and advantage streams. Default 512.
        image_size: pixels of a side. Default 84.
        nfm: options of the NFM in the encoder; ``None`` (default) for none.

    Shape:
        ``(B, in_channels, image_size, image_size) -> IQNOutput((B, N, A), (B, N))``

    Example:
        >>> model = AtariIQN(6, width=1, hidden=8)
        >>> frames = torch.zeros(2, 4, 84, 84, dtype=torch.uint8)
        >>> model(frames, 5).quantiles.shape
        torch.Size([2, 5, 6])
    """

    def __init__(
        self,
        num_actions: int,
        *,
        in_channels: int = 4,
        width: int = 16,
        hidden: int = 512,
        image_size: int = 84,
        nfm: NFMOptions | None = None,
    ) -> None:
        super().__init__()
        self.encoder = AtariEncoder(
            in_channels=in_channels, width=width, image_size=image_size, nfm=nfm
        )
        self.head = IQNHead(self.encoder.num_features, num_actions, hidden=hidden)

    def forward(
        self, frames: Tensor, num_quantiles: int, *, generator: torch.Generator | None = None
    ) -> IQNOutput:
        """Returns' quantiles at ``num_quantiles`` drawn fractions, see :class:`IQNHead`."""
        output: IQNOutput = self.head(self.encoder(frames), num_quantiles, generator=generator)
        return output


class _ResidualBlock(nn.Module):
    """Pre-activation block without normalisation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride)

    def forward(self, input: Tensor) -> Tensor:
        residual: Tensor = self.conv2(F.relu(self.conv1(F.relu(input))))
        return residual + (input if self.shortcut is None else self.shortcut(input))


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _ResidualBlock(in_channels, out_channels, stride),
        _ResidualBlock(out_channels, out_channels, 1),
    )
