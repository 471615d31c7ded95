"""The network for images of several MNIST digits, plain or with NFM (arXiv:2010.08012, app. C)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from nfm.network import NFMOptions, trunk

#: NFM as on stacked MNIST (arXiv:2010.08012, section 4.2 and appendix C): four places, two passes,
#: no batch normalisation because training mixes batches of different kinds.
STACKED_MNIST_NFM: NFMOptions = {
    "passes": 2,
    "key_size": 16,
    "value_size": 16,
    "num_heads": 4,
    "top_k": 5,
    "rescale": "space_to_depth",
    "batch_norm": False,
}


class StackedCNN(nn.Module):
    """Nine 3x3 convolutions with ReLU, every other one of stride two (arXiv:2010.08012, app. C).

    Channels are ``width`` and double with each of the four halvings. Nothing is normalised. Each
    halving with the convolution after it (the first with the one before it, too) is a module of
    the NFM: four places, after maps of 32, 16, 8 and 4 pixels for an image of 64, hence 8 NFM in
    two passes as in section 4.2.

    The paper does not say how the last map becomes logits; here by its mean over space, as in
    residual networks, or all of it (``pool="none"``).

    Args:
        num_classes: labels, each present or not. Default 10.
        width: channels of the first convolution. Default 32.
        in_channels: channels of the image. Default 1.
        image_size: pixels of a side; used only by ``pool="none"``. Default 64.
        pool: ``"mean"`` (default) or ``"none"``.
        nfm: options of the NFM, such as :data:`STACKED_MNIST_NFM`; ``None`` (default) for none.

    Shape:
        ``(B, in_channels, Y, X) -> (B, num_classes)``, logits of independent labels.

    Raises:
        ValueError: if ``pool`` is neither of the two.

    Example:
        >>> import torch
        >>> StackedCNN(width=2)(torch.zeros(3, 1, 64, 64)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        width: int = 32,
        in_channels: int = 1,
        image_size: int = 64,
        pool: Literal["mean", "none"] = "mean",
        nfm: NFMOptions | None = None,
    ) -> None:
        super().__init__()
        if pool not in ("mean", "none"):
            raise ValueError(f'StackedCNN: pool must be "mean" or "none"; got {pool!r}.')
        self.pool = pool
        channels = [width * 2**halvings for halvings in range(1, 5)]
        stages = [
            nn.Sequential(*_conv(below, above, 2), *_conv(above, above, 1))
            for below, above in zip([width, *channels], channels, strict=False)
        ]
        stages[0] = nn.Sequential(*_conv(in_channels, width, 1), *stages[0])
        self.trunk = trunk(stages, channels, nfm)
        pixels = 1 if pool == "mean" else math.ceil(image_size / 16) ** 2  # four halvings
        self.classifier = nn.Linear(channels[-1] * pixels, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of the images ``(B, in_channels, Y, X)``."""
        features = self.trunk(input)  # (B, C, y, x)
        flat = features.mean((-2, -1)) if self.pool == "mean" else features.flatten(1)
        logits: Tensor = self.classifier(flat)
        return logits


def _conv(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
    # PyTorch's own law halves the signal in every layer; over nine layers without normalisation
    # nothing of the image would be left, and training would stand still.
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv, nn.ReLU()
