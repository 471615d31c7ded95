"""Residual GAN of the Mimicry library (arXiv:2005.02494), generator plain or with NFM.

Generators and discriminators for images of 32 and 64 pixels, as InfoMax-GAN (arXiv:2007.04589) uses
them; the losses are in :mod:`nfm.models.gan_losses`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from nfm.network import NFMOptions, trunk

#: NFM as in the generator of InfoMax-GAN (arXiv:2010.08012, section 4.1 and appendix F): after the
#: first map and every residual block, in two passes. The paper does not give k; 5 is that of its
#: other image tasks.
GAN_NFM: NFMOptions = {
    "passes": 2,
    "key_size": 32,
    "value_size": 32,
    "num_heads": 4,
    "top_k": 5,
    "rescale": "space_to_depth",
    "batch_norm": True,
}

#: Image size -> width by default, of generator and discriminator.
_GENERATOR_WIDTH = {32: 256, 64: 1024}
_DISCRIMINATOR_WIDTH = {32: 128, 64: 1024}
#: Pixels of a side of the first map.
_FIRST_SIZE = 4

_Layer = TypeVar("_Layer", bound=nn.Conv2d | nn.Linear)


class UpBlock(nn.Module):
    r"""Residual block that doubles the size (arXiv:1802.05957, appendix B, as in Mimicry).

    .. math:: y = U W_s x + W_2\, \sigma(\mathrm{BN}(W_1 U \sigma(\mathrm{BN}(x))))

    with U bilinear up-sampling by two, :math:`W_1, W_2` 3x3 and :math:`W_s` 1x1.

    Args:
        in_channels: of the input.
        out_channels: of the output and in between.

    Shape:
        ``(B, in_channels, Y, X) -> (B, out_channels, 2 Y, 2 X)``

    Example:
        >>> UpBlock(3, 5)(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 5, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _xavier(nn.Conv2d(in_channels, out_channels, 3, padding=1), math.sqrt(2))
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = _xavier(nn.Conv2d(out_channels, out_channels, 3, padding=1), math.sqrt(2))
        self.shortcut = _xavier(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Up-sample residual and shortcut."""
        hidden = self.conv1(self.up(F.relu(self.norm1(input))))
        residual: Tensor = self.conv2(F.relu(self.norm2(hidden)))
        # A 1x1 convolution before up-sampling is the same as after it, on a quarter of the pixels.
        shortcut: Tensor = self.up(self.shortcut(input))
        return residual + shortcut


class DownBlock(nn.Module):
    r"""Residual block of the discriminator, spectrally normalised (arXiv:1802.05957, app. B).

    .. math:: y = A\, W_s x + A\, W_2\, \sigma(W_1 \sigma(x))

    with A the mean over 2 by 2 pixels if ``down``; where neither size nor channels change,
    :math:`W_s` is the identity. The first block of a network, which sees the image, has no ReLU
    before :math:`W_1`.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        down: whether the size is halved. Default true.
        first: whether the input is the image. Default false.

    Shape:
        ``(B, in_channels, Y, X) -> (B, out_channels, Y / 2, X / 2)``, or the same size.

    Example:
        >>> DownBlock(3, 5)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 5, 4, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, down: bool = True, first: bool = False
    ) -> None:
        super().__init__()
        self.down = down
        self.first = first
        between = out_channels if first else in_channels
        self.conv1 = _normalised(nn.Conv2d(in_channels, between, 3, padding=1), math.sqrt(2))
        self.conv2 = _normalised(nn.Conv2d(between, out_channels, 3, padding=1), math.sqrt(2))
        self.shortcut: nn.Module | None = None
        if down or in_channels != out_channels:
            self.shortcut = _normalised(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Residual and shortcut, averaged down after their sum (the mean is linear)."""
        hidden = self.conv1(input if self.first else F.relu(input))
        output: Tensor = self.conv2(F.relu(hidden))
        output = output + (input if self.shortcut is None else self.shortcut(input))
        return F.avg_pool2d(output, 2) if self.down else output


class Generator(nn.Module):
    """Latent vectors to images: linear, residual up-sampling blocks, BN-ReLU-conv-tanh.

    For 32 pixels three blocks of equal width, for 64 pixels four blocks that halve it. The first
    map and each block are the modules of the NFM: 4 places for 32 pixels, as in appendix F of
    arXiv:2010.08012, and 5 for 64.

    Args:
        image_size: 32 (default) or 64 pixels.
        latent_size: features of a latent vector. Default 128.
        width: channels of the first map. Default 256 for 32 pixels, 1024 for 64.
        image_channels: Default 3.
        nfm: options of the NFM, such as :data:`GAN_NFM`; ``None`` (default) for none.

    Shape:
        ``(B, latent_size) -> (B, image_channels, image_size, image_size)``, within [-1, 1].

    Raises:
        ValueError: for another image size, or a width that cannot be halved so often.

    Example:
        >>> Generator(latent_size=3, width=2)(torch.zeros(5, 3)).shape
        torch.Size([5, 3, 32, 32])
    """

    def __init__(
        self,
        image_size: int = 32,
        *,
        latent_size: int = 128,
        width: int | None = None,
        image_channels: int = 3,
        nfm: NFMOptions | None = None,
    ) -> None:
        super().__init__()
        width = _checked_width("Generator", image_size, width, _GENERATOR_WIDTH)
        self.latent_size = latent_size
        channels = [width] * 4 if image_size == 32 else [width // 2**i for i in range(5)]
        first = nn.Sequential(
            _xavier(nn.Linear(latent_size, width * _FIRST_SIZE**2)),
            nn.Unflatten(1, (width, _FIRST_SIZE, _FIRST_SIZE)),
        )
        blocks = [UpBlock(below, above) for below, above in pairwise(channels)]
        self.trunk = trunk([first, *blocks], channels, nfm)
        self.to_image = nn.Sequential(
            nn.BatchNorm2d(channels[-1]),
            nn.ReLU(),
            _xavier(nn.Conv2d(channels[-1], image_channels, 3, padding=1)),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        """Images of the latent vectors ``(B, latent_size)``."""
        images: Tensor = self.to_image(self.trunk(latent))
        return images

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``count`` images of latent vectors from a standard normal distribution.

        Args:
            count: B.
            generator: of the latent vectors, on the CPU so that a seed means the same everywhere;
                ``None`` (default) for torch's own.
        """
        parameter = next(self.parameters())
        latent = torch.randn(count, self.latent_size, generator=generator)
        return self(latent.to(parameter))  # type: ignore[no-any-return]


class Features(NamedTuple):
    """Local features at each position, and one global feature, of an image."""

    local: Tensor  # (B, C, y, x)
    whole: Tensor  # (B, C')


class Verdict(NamedTuple):
    """Output of a discriminator, and the features it is computed from."""

    score: Tensor  # (B,), above zero for real
    features: Features


class Discriminator(nn.Module):
    """Images to scores, spectrally normalised, with the features and heads of InfoMax-GAN.

    Local features are the last map before the last block, the global one is the sum over space
    after it (arXiv:2007.04589). :meth:`project` brings both into one space of ``projection_size``
    by a small residual critic each, for :func:`~nfm.models.gan_losses.infomax_loss`.

    Args:
        image_size: 32 (default) or 64 pixels.
        width: channels of the last map. Default 128 for 32 pixels, 1024 for 64.
        image_channels: Default 3.
        projection_size: R. Default 1024.

    Shape:
        ``(B, image_channels, image_size, image_size) -> Verdict((B,), Features)``

    Raises:
        ValueError: for another image size, or a width that cannot be halved so often.

    Example:
        >>> model = Discriminator(width=4, projection_size=7)
        >>> verdict = model(torch.zeros(2, 3, 32, 32))
        >>> verdict.score.shape, model.project(verdict.features).local.shape
        (torch.Size([2]), torch.Size([2, 7, 8, 8]))
    """

    def __init__(
        self,
        image_size: int = 32,
        *,
        width: int | None = None,
        image_channels: int = 3,
        projection_size: int = 1024,
    ) -> None:
        super().__init__()
        width = _checked_width("Discriminator", image_size, width, _DISCRIMINATOR_WIDTH)
        small = image_size == 32
        channels = [width] * 4 if small else [width // 2**i for i in range(4, -1, -1)]
        # 32 pixels: 32 -> 16 -> 8, then two blocks at 8; 64 pixels: halved by every block to 2.
        down = [True, True, False, False] if small else [True] * 5
        blocks = [
            DownBlock(below, above, down=halve, first=not index)
            for index, (below, above, halve) in enumerate(
                zip([image_channels, *channels], channels, down, strict=False)
            )
        ]
        self.local_blocks = nn.Sequential(*blocks[:-1])
        self.global_block = blocks[-1]
        self.score = _normalised(nn.Linear(width, 1))
        self.local_critic = _Critic(nn.Conv2d, channels[-2], projection_size)
        self.global_critic = _Critic(nn.Linear, width, projection_size)

    def forward(self, images: Tensor) -> Verdict:
        """Score the images, whose values lie in [-1, 1]."""
        local = self.local_blocks(images)  # (B, C, y, x)
        whole = F.relu(self.global_block(local)).sum((2, 3))  # (B, C')
        return Verdict(self.score(whole).squeeze(1), Features(local, whole))

    def project(self, features: Features) -> Features:
        """Both features in the space where they are compared: ``(B, R, y, x), (B, R)``."""
        return Features(self.local_critic(features.local), self.global_critic(features.whole))


class _Critic(nn.Module):
    """One hidden layer beside a linear shortcut, over positions (1x1) or over vectors."""

    def __init__(self, kind: type[nn.Conv2d] | type[nn.Linear], size: int, out_size: int) -> None:
        super().__init__()
        kernel = (1,) if kind is nn.Conv2d else ()
        self.first = _normalised(kind(size, size, *kernel))
        self.second = _normalised(kind(size, out_size, *kernel))
        self.shortcut = _normalised(kind(size, out_size, *kernel))

    def forward(self, input: Tensor) -> Tensor:
        projected: Tensor = self.second(F.relu(self.first(input))) + self.shortcut(input)
        return projected


def _checked_width(where: str, image_size: int, width: int | None, defaults: dict[int, int]) -> int:
    if image_size not in defaults:
        raise ValueError(f"{where}: image_size must be 32 or 64; got {image_size}.")
    if width is None:
        return defaults[image_size]
    if image_size == 64 and width % 16:
        raise ValueError(
            f"{where}: width must be a multiple of 16 for images of 64 pixels, where it is halved "
            f"four times; got {width}."
        )
    return width


def _xavier(layer: _Layer, gain: float = 1.0) -> _Layer:
    nn.init.xavier_uniform_(layer.weight, gain)
    return layer


def _normalised(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> nn.Module:
    return spectral_norm(_xavier(layer, gain))
