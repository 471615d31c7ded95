"""Observations as tensors, and rollouts in which equal ones are kept once."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs import VOCABULARY, AnyObservation, Observation


class Observations(NamedTuple):
    """MiniGrid's observations as tensors with any leading shape, usually (T, E)."""

    image: Tensor  # (..., width, height, 3) uint8 category indices
    direction: Tensor  # (...,) int64
    mission: Tensor  # (..., L) int64 token ids, 0 is padding

    @property
    def lead(self) -> torch.Size:
        """The leading shape."""
        return self.direction.shape

    @classmethod
    def from_numpy(cls, observation: AnyObservation, device: torch.device) -> Self:
        """One step of all environments."""
        return cls(*(torch.from_numpy(np.asarray(part)).to(device) for part in observation))

    @classmethod
    def stack(cls, steps: list[Self]) -> Self:
        """Join steps along a new leading axis of time."""
        return cls(*(torch.stack(parts) for parts in zip(*steps, strict=True)))


class MixedObservations(NamedTuple):
    """Observations by a :class:`envs.Layout`, with any leading shape."""

    vector: Tensor  # (..., V) float32: numbers, then each category one-hot
    pixels: Tensor  # (..., P) uint8: images side by side
    mission: Tensor  # (..., L) int64 token ids, or (..., 0)

    @property
    def lead(self) -> torch.Size:
        """The leading shape."""
        return self.vector.shape[:-1]

    @classmethod
    def from_numpy(cls, observation: AnyObservation, device: torch.device) -> Self:
        """One step of all environments."""
        return cls(*(torch.from_numpy(np.asarray(part)).to(device) for part in observation))

    @classmethod
    def stack(cls, steps: list[Self]) -> Self:
        """Join steps along a new leading axis of time."""
        return cls(*(torch.stack(parts) for parts in zip(*steps, strict=True)))

    def envs(self, index: Tensor) -> Self:
        """The environments ``index`` of (T, E, ...)."""
        return type(self)(*(part[:, index] for part in self))


AnyObservations = Observations | MixedObservations


def tensors_of(observation: AnyObservation, device: torch.device) -> AnyObservations:
    """One step of all environments as tensors."""
    if isinstance(observation, Observation):
        return Observations.from_numpy(observation, device)
    return MixedObservations.from_numpy(observation, device)


def rows_of(observations: AnyObservations, index: Any) -> AnyObservations:
    """The observations ``index`` of (rows, ...)."""
    return type(observations)(*(part[index] for part in observations))


assert len(VOCABULARY) <= 256, "opaque compares bytes"


def opaque(observations: AnyObservations) -> NDArray[np.void]:
    """Each observation as one value, to be compared as a whole."""
    rows = observations.lead.numel()
    # Whole numbers fit a byte: categories, four directions, pixels, words of a vocabulary of fewer.
    flat = [_bytes(part).reshape(rows, -1) for part in observations]
    joined = torch.cat(flat, dim=1).cpu().numpy()
    return joined.view(f"V{joined.shape[1]}").ravel()


def _bytes(part: Tensor) -> Tensor:
    if part.dtype == torch.float32 and part.numel():
        return part.contiguous().view(torch.uint8)
    return part.to(torch.uint8)


class RepeatedObservations(NamedTuple):
    """Observations (T, E) in which each different one is kept, and encoded, only once.

    Agents stand still, turn back and see the same corner again: a rollout of 2 048 observations in
    small rooms holds a few hundred different ones, and the encoder is half of a small agent.
    """

    distinct: Any  # AnyObservations (U, ...); callers know of which kind
    place: Tensor  # (T, E) int64: which of them each observation is

    @classmethod
    def of(cls, observations: AnyObservations) -> Self:
        """Find the different ones of (T, E, ...)."""
        lead = observations.lead
        _, first, place = np.unique(opaque(observations), return_index=True, return_inverse=True)
        index = torch.from_numpy(first).to(observations.mission.device)
        flat = type(observations)(*(part.flatten(0, len(lead) - 1) for part in observations))
        return cls(rows_of(flat, index), torch.from_numpy(place.reshape(lead)).to(index.device))

    def envs(self, index: Tensor) -> Self:
        """The environments ``index``, and only what they see."""
        used, place = torch.unique(self.place[:, index], return_inverse=True)
        return type(self)(rows_of(self.distinct, used), place)


#: The observations (T, E) of a rollout, from which :meth:`envs` takes environments.
KeptObservations = MixedObservations | RepeatedObservations
