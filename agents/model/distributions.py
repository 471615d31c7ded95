"""Distributions of actions: one category, several, or a Gaussian."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Distribution(nn.Module, ABC):
    """Distributions of actions (...,) or (..., D), given what the actor says (..., features).

    Attributes:
        features: how many numbers the actor has to give.
    """

    features: int

    @abstractmethod
    def settle(self, said: Tensor) -> Tensor:
        """The distribution's parameters ``(..., features)`` from the actor's output."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random numbers ``(count, ...)`` that decide as many actions."""

    @abstractmethod
    def sample(self, parameters: Tensor, drawn: Tensor) -> Tensor:
        """Actions by random numbers of :meth:`draw`."""

    @abstractmethod
    def mode(self, parameters: Tensor) -> Tensor:
        """The most probable actions."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Log-probabilities (...), of continuous actions their densities."""

    @abstractmethod
    def entropy(self, parameters: Tensor) -> Tensor:
        """Entropies in nats (...)."""

    @abstractmethod
    def told(self, actions: Tensor) -> NDArray[Any]:
        """Actions as environments take them."""


class Categorical(Distribution):
    """One of some actions.

    Args:
        numbers: the environment's numbers of these actions.

    Example:
        >>> three = Categorical((0, 1, 4))
        >>> three.told(three.mode(three.settle(torch.tensor([0.0, 0.0, 2.0]))))
        array(4, dtype=uint8)
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__()
        self.features = len(numbers)
        self._numbers = np.array(numbers, dtype=np.uint8)

    def settle(self, said: Tensor) -> Tensor:
        """Log-probabilities of the actions, normalised."""
        return said.log_softmax(-1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """One uniform number in [0, 1) for each action."""
        return torch.rand(count, generator=generator, device=generator.device)

    def sample(self, parameters: Tensor, drawn: Tensor) -> Tensor:
        """Places of actions."""
        return sample(parameters, drawn)

    def mode(self, parameters: Tensor) -> Tensor:
        """Places of the most probable actions."""
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Log-probabilities."""
        return parameters.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Entropies."""
        return -(parameters.exp() * parameters).sum(-1)

    def told(self, actions: Tensor) -> NDArray[Any]:
        """Numbers of actions."""
        return np.asarray(self._numbers[actions.cpu().numpy()])


class MultiCategorical(Distribution):
    r"""Several independent numbers: :math:`\pi(a) = \prod_d \pi_d(a_d)`.

    Args:
        sizes: how many values each has.

    Example:
        >>> two = MultiCategorical((2, 3))
        >>> equal = two.settle(torch.zeros(5))
        >>> bool(two.log_prob(equal, torch.tensor([1, 2])).exp().isclose(torch.tensor(1 / 6)))
        True
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.features = sum(sizes)

    def _parts(self, parameters: Tensor) -> Sequence[Tensor]:
        """The part of each component."""
        return parameters.split_with_sizes(self.sizes, -1)

    def settle(self, said: Tensor) -> Tensor:
        """Log-probabilities of the values of each number, side by side."""
        return torch.cat(
            [part.log_softmax(-1) for part in said.split_with_sizes(self.sizes, -1)], -1
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """A uniform number in [0, 1) for each component."""
        shape = count, len(self.sizes)
        return torch.rand(shape, generator=generator, device=generator.device)

    def sample(self, parameters: Tensor, drawn: Tensor) -> Tensor:
        """Values (..., D)."""
        parts = zip(self._parts(parameters), drawn.unbind(-1), strict=True)
        return torch.stack([sample(part, number) for part, number in parts], -1)

    def mode(self, parameters: Tensor) -> Tensor:
        """The most probable values (..., D)."""
        return torch.stack(
            [part.argmax(-1) for part in parameters.split_with_sizes(self.sizes, -1)], -1
        )

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Sum over components."""
        parts = zip(
            parameters.split_with_sizes(self.sizes, -1),
            actions.split_with_sizes([1] * len(self.sizes), -1),
            strict=True,
        )
        return torch.cat([part.gather(-1, number) for part, number in parts], -1).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Sum over components."""
        return -(parameters.exp() * parameters).sum(-1)

    def told(self, actions: Tensor) -> NDArray[Any]:
        """The values, as bytes."""
        return actions.cpu().numpy().astype(np.uint8)


class DiagonalGaussian(Distribution):
    r"""A Gaussian whose deviations do not depend on the state, as in CleanRL and SB3.

    .. math:: \log\pi(a) = \sum_d -\tfrac12 \Bigl(\frac{a_d - \mu_d}{\sigma_d}\Bigr)^2
        - \log\sigma_d - \tfrac12 \log 2\pi

    Probabilities are of the action as it was drawn; the environment is told it clipped to the
    bounds.

    Args:
        low: smallest value of each component.
        high: largest.

    Attributes:
        log_std: (D,), logarithms of the deviations, trained; 0 before.

    Example:
        >>> gaussian = DiagonalGaussian([-2.0], [2.0])
        >>> gaussian.told(torch.tensor([[5.0]]))
        array([[2.]], dtype=float32)
    """

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        self.features = len(low)
        self.low, self.high = (np.array(bound, dtype=np.float32) for bound in (low, high))
        self.log_std = nn.Parameter(torch.zeros(self.features))

    def settle(self, said: Tensor) -> Tensor:
        """The means."""
        return said

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal numbers."""
        shape = count, self.features
        return torch.randn(shape, generator=generator, device=generator.device)

    def sample(self, parameters: Tensor, drawn: Tensor) -> Tensor:
        """Actions, not clipped."""
        return parameters + self.log_std.exp() * drawn

    def mode(self, parameters: Tensor) -> Tensor:
        """The means."""
        return parameters

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Logarithms of densities."""
        distance = (actions - parameters) * (-self.log_std).exp()
        each = distance.square() / 2 + self.log_std + math.log(2 * math.pi) / 2
        return -each.sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """The same for all states."""
        total = (self.log_std + (1 + math.log(2 * math.pi)) / 2).sum()
        return total.expand(parameters.shape[:-1])

    def told(self, actions: Tensor) -> NDArray[Any]:
        """Actions clipped to the bounds."""
        given = actions.detach().cpu().numpy().astype(np.float32)
        return np.clip(given, self.low, self.high)


def sample(log_probs: Tensor, drawn: Tensor) -> Tensor:
    """Draw from categorical distributions ``(E, actions)`` by inverting the distribution function.

    As ``torch.multinomial``, at a third of its time for a few actions.

    Args:
        log_probs: log-probabilities of the actions, normalised.
        drawn: ``(E,)`` random numbers, uniform in [0, 1).
    """
    below = log_probs.exp().cumsum(-1)  # (E, actions)
    # The last sum may fall short of 1 by rounding; scaled, the last action is never overshot.
    return (below[:, :-1] <= drawn.unsqueeze(-1) * below[:, -1:]).sum(-1)
