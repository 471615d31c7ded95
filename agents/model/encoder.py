"""The encoder: observations to feature vectors."""

from __future__ import annotations

from itertools import accumulate
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.config import EncoderChoice
from agents.model.observations import (
    AnyObservations,
    Observations,
    RepeatedObservations,
    opaque,
    rows_of,
)
from agents.model.view_maps import map_features, view_maps
from envs import VOCABULARY, View, minigrid_view
from rims import RepeatedInput

NUM_DIRECTIONS = 4
MISSION_FEATURES = 32


class ObservationEncoder(nn.Module):
    """Encode view, compass direction and mission text.

    The view holds *categories* (which object, which colour, which state), so it enters one-hot:
    read as intensities, a door would be "twice a wall". The mission is embedded and read by a GRU.

    Args:
        encoder_size: features of the result.
        kind: what the view goes through first: nothing (``"linear"``, default), convolutions
            (``"cnn"``) or these with NFM (``"nfm"``), see :func:`agents.model.view_maps.view_maps`.
        direction: whether to use the compass direction.
        mission: whether to read the mission.
        view: size of the view and what its cells can hold. Default: MiniGrid's 7 by 7 cells with
            all objects and colours that minigrid knows now.

    Attributes:
        view: the view given.
        repeats: true; equal observations are frequent, so that it pays to look for them.

    Raises:
        ValueError: when it is called, if a cell holds what has no place in its one-hot code.

    Shape:
        ``Observations (...) -> (..., encoder_size)``, and ``RepeatedObservations (T, E)`` to the
        ``RepeatedInput`` that stands for ``(T, E, encoder_size)``
    """

    offsets: Tensor
    largest: Tensor
    repeats = True

    def __init__(
        self,
        encoder_size: int,
        *,
        kind: EncoderChoice = "linear",
        direction: bool,
        mission: bool,
        view: View | None = None,
    ) -> None:
        super().__init__()
        self.direction = direction
        self.mission = mission
        self.view = view = view or minigrid_view()
        per_cell = sum(view.categories)
        starts = [
            start - size
            for size, start in zip(view.categories, accumulate(view.categories), strict=True)
        ]
        offsets = [cell * per_cell + start for cell in range(view.cells) for start in starts]
        largest = [size - 1 for size in view.categories] * view.cells
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)
        self.register_buffer("largest", torch.tensor(largest, dtype=torch.uint8), persistent=False)
        self.view_features = view.cells * per_cell
        self.maps = None if kind == "linear" else view_maps(kind, per_cell)
        features = self.view_features
        if self.maps is not None:
            features = map_features(view.width, view.height)
        if direction:
            features += NUM_DIRECTIONS
        if mission:
            features += MISSION_FEATURES
            self.words = nn.Embedding(len(VOCABULARY), MISSION_FEATURES, padding_idx=0)
            self.reader = nn.GRU(MISSION_FEATURES, MISSION_FEATURES)
        self.linear = nn.Linear(features, encoder_size)
        nn.init.orthogonal_(self.linear.weight, 2**0.5)
        nn.init.zeros_(self.linear.bias)

    @overload
    def forward(self, observations: Observations) -> Tensor: ...
    @overload
    def forward(self, observations: RepeatedObservations) -> RepeatedInput: ...
    def forward(self, observations: Observations | RepeatedObservations) -> Tensor | RepeatedInput:
        """Return (..., encoder_size) features."""
        if isinstance(observations, RepeatedObservations):
            assert isinstance(observations.distinct, Observations)
            return RepeatedInput(self._encode(observations.distinct), observations.place)
        return self._encode(observations)

    def _encode(self, observations: Observations) -> Tensor:
        lead = observations.direction.shape
        image = observations.image.reshape(-1, len(self.offsets))
        if bool((image > self.largest).any()):  # its place would be that of another feature
            largest = image.view(-1, 3).amax(0).tolist()
            raise ValueError(
                f"ObservationEncoder: objects, colours and states must be below "
                f"{self.view.categories}; got {tuple(largest)}. Own ones stand in "
                "minigrid.core.constants, or in the observation space, before the encoder is made."
            )
        index = image.long() + self.offsets
        dtype = self.linear.weight.dtype
        view = torch.zeros(len(index), self.view_features, dtype=dtype, device=index.device)
        parts = [self._view(view.scatter_(1, index, 1.0))]
        if self.direction:
            parts.append(F.one_hot(observations.direction.flatten(), NUM_DIRECTIONS).to(dtype))
        if self.mission:
            words = observations.mission.flatten(0, -2)
            parts.append(read_missions(self.words, self.reader, words))
        features = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        encoded: Tensor = self.linear(features).relu()
        return encoded.reshape(*lead, -1)

    def _view(self, one_hot: Tensor) -> Tensor:
        """Features of the view from its cells, each one-hot: ``(rows, cells * categories)``."""
        if self.maps is None:
            return one_hot
        cells = one_hot.view(len(one_hot), self.view.width, self.view.height, -1).permute(
            0, 3, 1, 2
        )
        features: Tensor = self.maps(cells.contiguous()).flatten(1)
        return features


def read_missions(words: nn.Embedding, reader: nn.GRU, mission: Tensor) -> Tensor:
    """Features (rows, F) of missions (rows, L): the reader's output at their last words."""
    # A rollout repeats few missions many times: read each once.
    unique, inverse = torch.unique(mission, dim=0, return_inverse=True)  # (U, L), (rows,)
    lengths = (unique != 0).sum(-1).clamp(min=1)
    longest = int(lengths.max())
    outputs, _ = reader(words(unique[:, :longest]).transpose(0, 1))  # (L, U, F)
    rows = torch.arange(len(unique), device=mission.device)
    final: Tensor = outputs[lengths - 1, rows]  # (U, F)
    return final[inverse]


class EncodedOnce:
    """An encoder whose weights stay as they are for a while: it encodes nothing twice.

    Args:
        encoder: must not change as long as this is used.

    Shape:
        ``Observations (E, ...) -> (E, encoder_size)``
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._encoder = encoder
        self._known: dict[bytes, int] = {}  # row of the features of each observation
        assert isinstance(encoder.linear, nn.Linear)  # the last layer of every encoder
        self._features = encoder.linear.weight.new_empty(0, encoder.linear.out_features)

    def __call__(self, observations: AnyObservations) -> Tensor:
        """The features of ``observations``."""
        place: list[int] = []
        new: list[int] = []
        known = self._known
        for row, key in enumerate(opaque(observations).tolist()):
            count = len(known)
            place.append(known.setdefault(key, count))
            if len(known) > count:
                new.append(row)
        if new:
            encoded = self._encoder(rows_of(observations, new))
            self._features = torch.cat([self._features, encoded])
        return self._features[place]
