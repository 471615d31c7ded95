"""The agent: encoder, recurrent core, one head for the action and one for the value.

Which encoder and which distribution there are, the spaces of an environment decide, here alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.config import PPOConfig
from agents.model.cores import RecurrentCore
from agents.model.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)
from agents.model.encoder import EncodedOnce, ObservationEncoder
from agents.model.mixed_encoder import MixedEncoder
from agents.model.observations import AnyObservations, RepeatedObservations
from envs import ActionSpace, AnyView, Layout, mission_varies
from lab.core_modules import CoreState
from lab.settings import ConfigError
from rims import RepeatedInput


class PolicyOutput(NamedTuple):
    """The policy's output for a sequence of observations."""

    parameters: Tensor  # (T, E, ...), of the distribution of actions
    values: Tensor  # (T, E)
    state: CoreState  # after the last step

    @property
    def log_probs(self) -> Tensor:
        """Of single numbers: log-probabilities of all actions (T, E, actions), normalised."""
        return self.parameters


class RecurrentActorCritic(nn.Module):
    """Actor and critic on one recurrent core.

    Args:
        config: sizes and the name of the core.
        actions: the task's space of actions, or the number of its discrete actions;
            ``config.actions`` may leave out some of these.
        read_mission: whether the mission text is part of the input.
        view: what it can see, see :func:`make_encoder`.

    Attributes:
        space: the space of actions.
        actions: numbers, in the task, of the actions it chooses from; none if an action is not a
            single number.
        view: its view.

    Raises:
        ValueError: if ``config.actions`` names one that the task does not have.

    Shape:
        observations ``(T, E, ...)``, state, reset ``(T, E)`` -> :class:`PolicyOutput`
    """

    def __init__(
        self,
        config: PPOConfig,
        actions: ActionSpace | int,
        *,
        read_mission: bool,
        view: AnyView | None = None,
    ) -> None:
        super().__init__()
        self.space = ActionSpace.discrete(actions) if isinstance(actions, int) else actions
        distribution = make_distribution(config, self.space)
        single = self.space.kind == "discrete"
        self.actions = config.action_numbers or tuple(range(self.space.length if single else 0))
        self.encoder = make_encoder(config, view, read_mission=read_mission)
        self.view: AnyView = self.encoder.view
        self.core = RecurrentCore(config.encoder_size, config)
        self.actor = nn.Linear(self.core.output_size, distribution.features)
        self.critic = nn.Linear(self.core.output_size, 1)
        # A small actor head starts near the uniform policy, whatever the core's initialisation.
        for head, gain in ((self.actor, 0.01), (self.critic, 1.0)):
            nn.init.orthogonal_(head.weight, gain)
            nn.init.zeros_(head.bias)
        self.distribution = distribution  # last: the order of parameters is that of checkpoints

    def initial_state(self, num_envs: int) -> CoreState:
        """A state for the first observations; their reset replaces it."""
        return self.core.initial_state(num_envs)

    def forward(
        self,
        observations: AnyObservations | RepeatedObservations,
        state: CoreState,
        reset: Tensor,
    ) -> PolicyOutput:
        """Run the sequence; ``reset`` is true where an observation is the first of an episode."""
        return self._decide(self.encoder(observations), state, reset)

    def _decide(
        self, features: Tensor | RepeatedInput, state: CoreState, reset: Tensor
    ) -> PolicyOutput:
        features, state = self.core(features, state, reset)  # (T, E, I) -> (T, E, H)
        parameters = self.distribution.settle(self.actor(features))  # (T, E, ...)
        return PolicyOutput(parameters, self.critic(features).squeeze(-1), state)

    @torch.no_grad()
    def act(
        self,
        observations: AnyObservations,
        state: CoreState,
        reset: Tensor,
        *,
        drawn: Tensor | None,
        encode: EncodedOnce | None = None,
    ) -> tuple[Tensor, PolicyOutput]:
        """One step for every environment: its action and what led to it.

        Actions are places ``(E,)`` in ``actions``, or ``(E, components)``; ``distribution.told``
        makes of them what environments take.

        Args:
            observations: ``(E, ...)``.
            state: state of the core.
            reset: ``(E,)``, true where the observation is the first of an episode.
            drawn: random numbers of ``distribution.draw`` that decide the actions; ``None`` takes
                the most probable ones.
            encode: used in place of the encoder.
        """
        features = (encode or self.encoder)(observations)  # (E, I)
        output = self._decide(features.unsqueeze(0), state, reset.unsqueeze(0))
        parameters = output.parameters[0]  # (E, ...)
        if drawn is None:
            return self.distribution.mode(parameters), output
        return self.distribution.sample(parameters, drawn), output


def make_encoder(
    config: PPOConfig, view: AnyView | None, *, read_mission: bool
) -> ObservationEncoder | MixedEncoder:
    """The encoder of what is seen.

    Args:
        config: its settings.
        view: what is seen; None: MiniGrid's usual view.
        read_mission: whether missions are read.
    """
    if isinstance(view, Layout):
        return MixedEncoder(
            config.encoder_size,
            view,
            mission=read_mission,
            normalize=config.normalize_observations,
        )
    return ObservationEncoder(
        config.encoder_size,
        kind=config.encoder,
        direction=config.direction,
        mission=read_mission,
        view=view,
    )


def make_distribution(config: PPOConfig, space: ActionSpace) -> Distribution:
    """The distribution of actions.

    Raises:
        ValueError: if ``config.actions`` names an action that the space does not have.
    """
    if space.kind == "discrete":
        numbers = config.action_numbers or tuple(range(space.length))
        if max(numbers) >= space.length:
            raise ValueError(f"actions must be of {space.length}; got {config.actions!r}.")
        return Categorical(numbers)
    if config.action_numbers is not None:
        raise ValueError(f"actions must be all where there are {space}; got {config.actions!r}.")
    if space.kind == "multi_discrete":
        return MultiCategorical(space.sizes)
    return DiagonalGaussian(space.low, space.high)


def require_settings(config: PPOConfig, view: AnyView) -> None:
    """Refuse settings that do nothing with what is seen.

    Raises:
        ConfigError: in one line.
    """
    gives = f"{config.task.id} gives {view if isinstance(view, Layout) else 'a symbolic view'}"
    if isinstance(view, Layout) and config.encoder != "linear":
        what = "images go through convolutions in any case" if view.images else "there is no image"
        rule = f"must be linear: the others are for MiniGrid's symbolic view. {gives}; {what}."
        raise ConfigError("encoder", rule)
    if config.normalize_observations and not (isinstance(view, Layout) and view.numbers):
        raise ConfigError("normalize_observations", f"needs a Box of numbers to read; {gives}.")


def reads_mission(config: PPOConfig) -> bool:
    """Whether an agent trained with ``config`` reads the mission text."""
    return config.mission == "on" or (config.mission == "auto" and mission_varies(config.task))


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
