"""Pre-activation residual networks for small images (arXiv:1603.05027), plain or with NFM."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from nfm.network import NFMOptions, trunk

#: NFM as on CIFAR-10 and -100, Tiny-ImageNet and ImageNet (arXiv:2010.08012, appendix B): after
#: each of the four stages, in two passes.
CIFAR_NFM: NFMOptions = {
    "passes": 2,
    "key_size": 32,
    "value_size": 32,
    "num_heads": 4,
    "top_k": 5,
    "rescale": "space_to_depth",
    "batch_norm": True,
}


class PreActBlock(nn.Module):
    r"""Two 3x3 convolutions, each after BatchNorm and ReLU (arXiv:1603.05027, Fig. 4e).

    .. math:: a = \sigma(\mathrm{BN}(x)), \qquad
              y = s(x) + W_2\, \sigma(\mathrm{BN}(W_1 a))

    with :math:`s(x) = x`, or :math:`W_s a` (1x1) where the shape changes.

    Args:
        in_channels: channels of the input.
        planes: channels of the output.
        stride: of the first convolution. Default 1.

    Shape:
        ``(B, in_channels, Y, X) -> (B, planes, Y / stride, X / stride)``, rounded up.

    Example:
        >>> import torch
        >>> PreActBlock(3, 5, stride=2)(torch.zeros(2, 3, 7, 7)).shape
        torch.Size([2, 5, 4, 4])
    """

    #: channels of the output per plane
    expansion = 1

    def __init__(self, in_channels: int, planes: int, *, stride: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.residual = nn.Sequential(
            _conv3x3(in_channels, planes, stride),
            nn.BatchNorm2d(planes),
            nn.ReLU(),
            _conv3x3(planes, planes),
        )
        self.shortcut = _shortcut(in_channels, planes, stride)

    def forward(self, input: Tensor) -> Tensor:
        """Add the residual to the input or to its projection."""
        return _add_residual(input, self.norm, self.residual, self.shortcut)


class PreActBottleneck(nn.Module):
    r"""1x1, 3x3 and 1x1 convolutions, each after BatchNorm and ReLU (arXiv:1603.05027).

    As :class:`PreActBlock` with three convolutions; the last has four times as many channels.

    Args:
        in_channels: channels of the input.
        planes: channels between the 1x1 convolutions.
        stride: of the 3x3 convolution. Default 1.

    Shape:
        ``(B, in_channels, Y, X) -> (B, 4 planes, Y / stride, X / stride)``, rounded up.

    Example:
        >>> import torch
        >>> PreActBottleneck(3, 5, stride=2)(torch.zeros(2, 3, 7, 7)).shape
        torch.Size([2, 20, 4, 4])
    """

    #: channels of the output per plane
    expansion = 4

    def __init__(self, in_channels: int, planes: int, *, stride: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
            nn.ReLU(),
            _conv3x3(planes, planes, stride),
            nn.BatchNorm2d(planes),
            nn.ReLU(),
            nn.Conv2d(planes, self.expansion * planes, 1, bias=False),
        )
        self.shortcut = _shortcut(in_channels, self.expansion * planes, stride)

    def forward(self, input: Tensor) -> Tensor:
        """Add the residual to the input or to its projection."""
        return _add_residual(input, self.norm, self.residual, self.shortcut)


class PreActResNet(nn.Module):
    """Stem, four stages of pre-activation blocks, mean over space, linear (arXiv:1603.05027).

    The stem is a 3x3 convolution without stride, for images of 32 or 64 pixels; the stages have
    strides 1, 2, 2, 2 and double the channels each time. Each stage (the first with the stem) is a
    module of the NFM, which therefore sits after each of the four stages, in every pass
    (arXiv:2010.08012, appendix B, counts 8 in two passes).

    Args:
        block: :class:`PreActBlock` or :class:`PreActBottleneck`.
        depths: blocks of each stage.
        num_classes: size of the output.
        planes: planes of the first stage. Default 64.
        in_channels: channels of the image. Default 3.
        nfm: options of the NFM, such as :data:`CIFAR_NFM`; ``None`` (default) for none.

    Shape:
        ``(B, in_channels, Y, X) -> (B, num_classes)``

    Raises:
        ValueError: if ``depths`` is empty.

    Example:
        >>> import torch
        >>> model = PreActResNet(PreActBlock, (1, 1), 10, planes=4)
        >>> model(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        block: type[PreActBlock] | type[PreActBottleneck],
        depths: Sequence[int],
        num_classes: int,
        *,
        planes: int = 64,
        in_channels: int = 3,
        nfm: NFMOptions | None = None,
    ) -> None:
        super().__init__()
        if not depths:
            raise ValueError("PreActResNet: depths must name at least one stage; got none.")
        stages: list[nn.Module] = []
        channels: list[int] = []
        width = planes  # of the stem
        for stage, depth in enumerate(depths):
            blocks: list[nn.Module] = [] if stage else [_conv3x3(in_channels, planes)]
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(block(width, planes * 2**stage, stride=stride))
                width = block.expansion * planes * 2**stage
            stages.append(nn.Sequential(*blocks))
            channels.append(width)
        self.trunk = trunk(stages, channels, nfm)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of the images ``(B, in_channels, Y, X)``."""
        features = F.relu(self.norm(self.trunk(input)))  # (B, C, y, x)
        logits: Tensor = self.classifier(features.mean((-2, -1)))
        return logits


def preact_resnet18(
    num_classes: int, *, planes: int = 64, in_channels: int = 3, nfm: NFMOptions | None = None
) -> PreActResNet:
    """PreActResNet-18; arguments as of :class:`PreActResNet`.

    Example:
        >>> sum(parameter.numel() for parameter in preact_resnet18(10).parameters())
        11172170
    """
    return PreActResNet(
        PreActBlock, (2, 2, 2, 2), num_classes, planes=planes, in_channels=in_channels, nfm=nfm
    )


def preact_resnet34(
    num_classes: int, *, planes: int = 64, in_channels: int = 3, nfm: NFMOptions | None = None
) -> PreActResNet:
    """PreActResNet-34; arguments as of :class:`PreActResNet`."""
    return PreActResNet(
        PreActBlock, (3, 4, 6, 3), num_classes, planes=planes, in_channels=in_channels, nfm=nfm
    )


def preact_resnet50(
    num_classes: int, *, planes: int = 64, in_channels: int = 3, nfm: NFMOptions | None = None
) -> PreActResNet:
    """PreActResNet-50, of bottleneck blocks; arguments as of :class:`PreActResNet`."""
    return PreActResNet(
        PreActBottleneck, (3, 4, 6, 3), num_classes, planes=planes, in_channels=in_channels, nfm=nfm
    )


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """A projection where the residual has another shape than the input."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def _add_residual(
    input: Tensor, norm: nn.Module, residual: nn.Module, shortcut: nn.Module | None
) -> Tensor:
    activated = F.relu(norm(input))
    output: Tensor = residual(activated)
    # A projection reads the activated map, an identity the raw one: nothing may stand in its way.
    return output + (input if shortcut is None else shortcut(activated))
