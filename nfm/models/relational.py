"""Networks for Sort-of-CLEVR: convolutions with an MLP, and Relation Networks; plain or with NFM.

An image comes with Q questions. The convolutions see it once, whatever Q is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfm.network import NFMOptions, trunk

#: NFM as on Sort-of-CLEVR (arXiv:2010.08012, section 4.3; key and value sizes of the authors'
#: code): after each of the four convolutions, in two passes.
SORT_OF_CLEVR_NFM: NFMOptions = {
    "passes": 2,
    "key_size": 16,
    "value_size": 16,
    "num_heads": 4,
    "top_k": 5,
    "rescale": "space_to_depth",
    "batch_norm": True,
}

#: Convolutions in the trunk, each of stride two.
_HALVINGS = 4
#: Outputs of a layer of g that are computed before the next layer: few enough for a cache. On a CPU
#: a batch of 32 images with 20 questions takes about half the time of all images at once.
_NUMBERS_AT_ONCE = 2**20


class CNN_MLP(nn.Module):
    r"""Four convolutions, then an MLP on the flat map and the question (arXiv:1706.01427, suppl.).

    .. math:: a = f(\sigma(W [\mathrm{flat}(\mathrm{conv}(\mathit{image})), q] + b))

    A convolution is 3x3 of stride 2 and padding 1, ReLU, BatchNorm (75 -> 38 -> 19 -> 10 -> 5
    pixels); the head f is ``Linear, ReLU, dropout 0.5, Linear``. This is the CNN of the comparison
    in arXiv:2010.08012, Tables 6 and 7, with an NFM after each convolution if ``nfm`` is given.

    Differs from the NFM authors' code, which averages the last map into one pixel before it is
    flattened, so that no position reaches the MLP, and which drops out in evaluation, too.

    Args:
        channels: of each convolution. Default 24.
        hidden: size of the two hidden layers. Default 256.
        question_size: bits of a question. Default 11.
        num_classes: possible answers. Default 10.
        image_size: pixels of a side. Default 75.
        nfm: options of the NFM, such as :data:`SORT_OF_CLEVR_NFM`; ``None`` (default) for none.

    Shape:
        ``images (B, 3, image_size, image_size), questions (B, Q, question_size) ->
        logits (B, Q, num_classes)``

    Example:
        >>> model = CNN_MLP(channels=2, hidden=4)
        >>> model(torch.zeros(5, 3, 75, 75), torch.zeros(5, 7, 11)).shape
        torch.Size([5, 7, 10])
    """

    def __init__(
        self,
        *,
        channels: int = 24,
        hidden: int = 256,
        question_size: int = 11,
        num_classes: int = 10,
        image_size: int = 75,
        nfm: NFMOptions | None = None,
    ) -> None:
        super().__init__()
        self.trunk = _conv_trunk(channels, nfm)
        self.num_features = channels * _map_size(image_size) ** 2
        self.hidden = nn.Linear(self.num_features + question_size, hidden)
        self.head = _head(hidden, num_classes)

    def forward(self, images: Tensor, questions: Tensor) -> Tensor:
        """Logits ``(B, Q, num_classes)`` of the answers to Q questions on each image."""
        features = self.trunk(images).flatten(1)  # (B, F)
        # W [f, q] = W_f f + W_q q, so that the image's part is computed once for its Q questions.
        of_image, of_question = self.hidden.weight.tensor_split([self.num_features], dim=1)
        image = F.linear(features, of_image).unsqueeze(1)  # (B, 1, hidden)
        question = F.linear(questions, of_question, self.hidden.bias)  # (B, Q, hidden)
        logits: Tensor = self.head(F.relu(image + question))
        return logits


class RelationNetwork(nn.Module):
    r"""Relation Network (arXiv:1706.01427, Eq. 1) on the trunk of :class:`CNN_MLP`.

    .. math:: a = f\Big(\sum_{i,j} g(o_i, o_j, q)\Big)

    over all ordered pairs of cells of the last map. An object :math:`o_i` is the channels of a cell
    and its two coordinates, from -1 to 1. g is four layers ``Linear, ReLU``; f is one and the
    head of :class:`CNN_MLP`. The first layer of g is the sum of three projections,

    .. math:: W [o_i, o_j, q] + b = W_1 o_i + W_2 o_j + W_3 q + b

    which is the same and needs no vectors of pairs.

    The activations of g take ``B Q n^4 hidden`` numbers a layer for a map of n by n cells.

    Args:
        channels: of each convolution. Default 24.
        hidden: size of the layers of g and f. Default 256.
        question_size: bits of a question. Default 11.
        num_classes: possible answers. Default 10.
        image_size: pixels of a side. Default 75.
        nfm: options of the NFM in the trunk; ``None`` (default) for none, as in the paper.

    Shape:
        ``images (B, 3, image_size, image_size), questions (B, Q, question_size) ->
        logits (B, Q, num_classes)``

    Example:
        >>> model = RelationNetwork(channels=2, hidden=4)
        >>> model(torch.zeros(5, 3, 75, 75), torch.zeros(5, 7, 11)).shape
        torch.Size([5, 7, 10])
    """

    #: (cells, 2): row and column of each cell, from -1 to 1
    coordinates: Tensor

    def __init__(
        self,
        *,
        channels: int = 24,
        hidden: int = 256,
        question_size: int = 11,
        num_classes: int = 10,
        image_size: int = 75,
        nfm: NFMOptions | None = None,
    ) -> None:
        super().__init__()
        self.trunk = _conv_trunk(channels, nfm)
        side = torch.linspace(-1, 1, _map_size(image_size))
        self.register_buffer("coordinates", torch.cartesian_prod(side, side), persistent=False)
        self.object_size = channels + 2
        self.first = nn.Linear(2 * self.object_size + question_size, hidden)
        # ReLU in place: the activations of all pairs are what fills the memory.
        self.others = nn.Sequential(
            *(layer for _ in range(3) for layer in (nn.Linear(hidden, hidden), nn.ReLU(True)))
        )
        self.relation = nn.Linear(hidden, hidden)
        self.head = _head(hidden, num_classes)

    def forward(self, images: Tensor, questions: Tensor) -> Tensor:
        """Logits ``(B, Q, num_classes)`` of the answers to Q questions on each image."""
        objects = self.objects(images)  # (B, n, object_size), n cells
        per_image = questions.shape[1] * objects.shape[1] ** 2 * self.relation.in_features
        images_at_once = max(1, _NUMBERS_AT_ONCE // per_image)
        sums = [
            self.others(self.first_layer(some, their_questions)).sum((2, 3))
            for some, their_questions in zip(
                torch.split(objects, images_at_once),
                torch.split(questions, images_at_once),
                strict=True,
            )
        ]
        logits: Tensor = self.head(F.relu(self.relation(torch.cat(sums))))  # (B, Q, num_classes)
        return logits

    def objects(self, images: Tensor) -> Tensor:
        """``(B, n, object_size)``: the channels of each of the n cells and its coordinates."""
        cells = self.trunk(images).flatten(2).mT  # (B, n, channels)
        coordinates = self.coordinates.to(cells.dtype).expand(len(cells), -1, -1)
        return torch.cat([cells, coordinates], dim=-1)

    def first_layer(self, objects: Tensor, questions: Tensor) -> Tensor:
        """``(B, Q, n, n, hidden)``: the first layer of g for all pairs and questions."""
        size = self.object_size
        of_left, of_right, of_question = self.first.weight.tensor_split([size, 2 * size], dim=1)
        left = F.linear(objects, of_left)[:, None, :, None]  # (B, 1, n, 1, hidden)
        right = F.linear(objects, of_right)[:, None, None]  # (B, 1, 1, n, hidden)
        question = F.linear(questions, of_question, self.first.bias)[:, :, None, None]
        return F.relu((left + right) + question, inplace=True)


def _conv_trunk(channels: int, nfm: NFMOptions | None) -> nn.Module:
    stages = [
        nn.Sequential(
            nn.Conv2d(channels if stage else 3, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(channels),
        )
        for stage in range(_HALVINGS)
    ]
    return trunk(stages, [channels] * _HALVINGS, nfm)


def _map_size(image_size: int) -> int:
    """Pixels of a side after the trunk: halved with rounding up, four times."""
    return math.ceil(image_size / (1 << _HALVINGS))


def _head(hidden: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, num_classes)
    )
