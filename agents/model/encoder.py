"""The encoder: observations to feature vectors."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from agents.config import EncoderChoice
from agents.model.view_maps import map_features, view_maps
from envs import VOCABULARY, Observation, View, minigrid_view
from rims import RepeatedInput

NUM_DIRECTIONS = 4
MISSION_FEATURES = 32


class Observations(NamedTuple):
    """Observations as tensors with any leading shape, usually (T, E)."""

    image: Tensor  # (..., width, height, 3) uint8 category indices
    direction: Tensor  # (...,) int64
    mission: Tensor  # (..., L) int64 token ids, 0 is padding

    @classmethod
    def from_numpy(cls, observation: Observation, device: torch.device) -> Self:
        """One step of all environments."""
        return cls(*(torch.from_numpy(np.asarray(part)).to(device) for part in observation))

    @classmethod
    def stack(cls, steps: list[Self]) -> Self:
        """Join steps along a new leading axis of time."""
        return cls(*(torch.stack(parts) for parts in zip(*steps, strict=True)))


assert len(VOCABULARY) <= 256, "RepeatedObservations compares bytes"


class RepeatedObservations(NamedTuple):
    """Observations (T, E) in which each different one is kept, and encoded, only once.

    Agents stand still, turn back and see the same corner again: a rollout of 2 048 observations in
    small rooms holds a few hundred different ones, and the encoder is half of a small agent.
    """

    distinct: Observations  # (U, ...)
    place: Tensor  # (T, E) int64: which of them each observation is

    @classmethod
    def of(cls, observations: Observations) -> Self:
        """Find the different ones of (T, E, ...)."""
        lead = observations.direction.shape
        _, first, place = np.unique(_opaque(observations), return_index=True, return_inverse=True)
        index = torch.from_numpy(first).to(observations.direction.device)
        return cls(
            Observations(*(part.flatten(0, len(lead) - 1)[index] for part in observations)),
            torch.from_numpy(place.reshape(lead)).to(index.device),
        )

    def envs(self, index: Tensor) -> Self:
        """The environments ``index``, and only what they see."""
        used, place = torch.unique(self.place[:, index], return_inverse=True)
        return type(self)(Observations(*(part[used] for part in self.distinct)), place)


def _opaque(observations: Observations) -> NDArray[np.void]:
    """Each observation as one value, to be compared as a whole."""
    flat = [part.reshape(observations.direction.numel(), -1) for part in observations]
    # Every value fits a byte: categories, four directions, words of a vocabulary of fewer.
    rows = torch.cat([part.to(torch.uint8) for part in flat], dim=1).cpu().numpy()
    return rows.view(f"V{rows.shape[1]}").ravel()


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

    Raises:
        ValueError: when it is called, if a cell holds what has no place in its one-hot code.

    Shape:
        ``Observations (...) -> (..., encoder_size)``, and ``RepeatedObservations (T, E)`` to the
        ``RepeatedInput`` that stands for ``(T, E, encoder_size)``
    """

    offsets: Tensor
    largest: Tensor

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
            parts.append(self._read(observations.mission.flatten(0, -2)))
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

    def _read(self, mission: Tensor) -> Tensor:
        # A rollout repeats few missions many times: read each once.
        unique, inverse = torch.unique(mission, dim=0, return_inverse=True)  # (U, L), (rows,)
        lengths = (unique != 0).sum(-1).clamp(min=1)
        longest = int(lengths.max())
        outputs, _ = self.reader(self.words(unique[:, :longest]).transpose(0, 1))  # (L, U, F)
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

    def __init__(self, encoder: ObservationEncoder) -> None:
        self._encoder = encoder
        self._known: dict[bytes, int] = {}  # row of the features of each observation
        self._features = encoder.linear.weight.new_empty(0, encoder.linear.out_features)

    def __call__(self, observations: Observations) -> Tensor:
        """The features of ``observations``."""
        place: list[int] = []
        new: list[int] = []
        known = self._known
        for row, key in enumerate(_opaque(observations).tolist()):
            count = len(known)
            place.append(known.setdefault(key, count))
            if len(known) > count:
                new.append(row)
        if new:
            encoded = self._encoder(Observations(*(part[new] for part in observations)))
            self._features = torch.cat([self._features, encoded])
        return self._features[place]
