"""The encoder of numbers, categories and images, and running statistics of the numbers."""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor, nn

from agents.model.encoder import MISSION_FEATURES, read_missions
from agents.model.observations import KeptObservations, MixedObservations, RepeatedObservations
from agents.model.view_maps import image_features, image_maps
from envs import VOCABULARY, Layout
from lab.running.world import World
from rims import RepeatedInput

#: Normalised numbers are cut here, as by SB3's VecNormalize.
LARGEST = 10.0
_SMALLEST_VARIANCE = 1e-8


class RunningMoments(nn.Module):
    """Mean and variance of all numbers seen so far, and numbers scaled by them.

    They change between updates only, by :meth:`add`, so that a rollout and what is learned from it
    are of one scale. They are buffers: a checkpoint holds them, and nobody who only uses an agent
    changes them.

    Args:
        size: how many numbers an observation has.

    Shape:
        ``(..., size) -> (..., size)``

    Example:
        >>> moments = RunningMoments(1)
        >>> moments.add(torch.tensor([[1.0], [3.0]]))
        >>> moments(torch.tensor([[3.0]]))
        tensor([[1.]])
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))

    def forward(self, numbers: Tensor) -> Tensor:
        """Shifted and scaled; cut at 10 deviations."""
        scale = (self.variance + _SMALLEST_VARIANCE).rsqrt()
        scaled = (numbers - self.mean.to(numbers.dtype)) * scale.to(numbers.dtype)
        return scaled.clamp(-LARGEST, LARGEST)

    @torch.no_grad()
    def add(self, numbers: Tensor, world: World | None = None) -> None:
        """Take in rows ``(rows, size)``, those of all processes of ``world`` together.

        Chan, Golub and LeVeque's formula for the moments of two samples together.
        """
        world = world or World()
        given = numbers.to(torch.float64)
        rows = world.sum(torch.full_like(self.count, len(given)))
        mean = world.sum(given.sum(0)) / rows
        squares = world.sum((given - mean).square().sum(0))
        total = self.count + rows
        change = mean - self.mean
        between = change.square() * self.count * rows / total
        self.variance.copy_((self.variance * self.count + squares + between) / total)
        self.mean.add_(change * rows / total)
        self.count.copy_(total)


class MixedEncoder(nn.Module):
    """Encode numbers, categories, images and a mission into one vector.

    Images go through convolutions (:func:`agents.model.view_maps.image_maps`), numbers and one-hot
    categories go past them; one linear layer with ReLU reads all.

    Args:
        encoder_size: features of the result.
        layout: what observations are made of.
        mission: whether to read the mission.
        normalize: whether numbers are scaled by running statistics.

    Attributes:
        view: the layout given.
        direction: false; a compass direction is one of the categories.
        moments: the running statistics, or None.

    Shape:
        ``MixedObservations (...) -> (..., encoder_size)``, and ``RepeatedObservations (T, E)`` to
        the ``RepeatedInput`` that stands for ``(T, E, encoder_size)``
    """

    direction = False

    def __init__(
        self, encoder_size: int, layout: Layout, *, mission: bool, normalize: bool
    ) -> None:
        super().__init__()
        self.view = layout
        self.mission = mission
        self.repeats = layout.repeats
        self.moments = RunningMoments(layout.numbers) if normalize and layout.numbers else None
        self.maps = nn.ModuleList(image_maps(shape) for shape in layout.images)
        features = layout.vector_size + sum(image_features(shape) for shape in layout.images)
        if mission:
            features += MISSION_FEATURES
            self.words = nn.Embedding(len(VOCABULARY), MISSION_FEATURES, padding_idx=0)
            self.reader = nn.GRU(MISSION_FEATURES, MISSION_FEATURES)
        self.linear = nn.Linear(features, encoder_size)
        nn.init.orthogonal_(self.linear.weight, math.sqrt(2))
        nn.init.zeros_(self.linear.bias)

    @overload
    def forward(self, observations: MixedObservations) -> Tensor: ...
    @overload
    def forward(self, observations: RepeatedObservations) -> RepeatedInput: ...
    def forward(
        self, observations: MixedObservations | RepeatedObservations
    ) -> Tensor | RepeatedInput:
        """Return (..., encoder_size) features."""
        if isinstance(observations, RepeatedObservations):
            assert isinstance(observations.distinct, MixedObservations)
            return RepeatedInput(self._encode(observations.distinct), observations.place)
        return self._encode(observations)

    def _encode(self, observations: MixedObservations) -> Tensor:
        lead, dtype = observations.lead, self.linear.weight.dtype
        vector = observations.vector.to(dtype)
        if self.moments is not None:
            count = self.view.numbers
            vector = torch.cat([self.moments(vector[..., :count]), vector[..., count:]], -1)
        parts = [vector.flatten(0, -2)]
        pixels = observations.pixels.flatten(0, -2)
        sizes = [math.prod(shape) for shape in self.view.images]
        images = zip(pixels.split_with_sizes(sizes, -1), self.view.images, self.maps, strict=True)
        for image, shape, maps in images if sizes else ():
            parts.append(maps(image.reshape(-1, *shape).to(dtype) / 255).flatten(1))
        if self.mission:
            words = observations.mission.flatten(0, -2)
            parts.append(read_missions(self.words, self.reader, words))
        encoded: Tensor = self.linear(torch.cat(parts, -1)).relu()
        return encoded.reshape(*lead, -1)

    def add_seen(self, observations: KeptObservations, world: World | None = None) -> None:
        """Take the observations (T, E) of a rollout into the running statistics, if there are any.

        Args:
            observations: those of this process.
            world: the processes that train together.
        """
        if self.moments is None:
            return
        if isinstance(observations, RepeatedObservations):
            assert isinstance(observations.distinct, MixedObservations)
            vector = observations.distinct.vector[observations.place]
        else:
            vector = observations.vector
        self.moments.add(vector.flatten(0, -2)[:, : self.view.numbers], world)
