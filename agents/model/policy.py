"""The agent: encoder, recurrent core, one head for the action and one for the value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.config import PPOConfig
from agents.model.cores import RecurrentCore
from agents.model.encoder import EncodedOnce, ObservationEncoder, Observations, RepeatedObservations
from envs import View, mission_varies
from lab.core_modules import CoreState
from rims import RepeatedInput


class PolicyOutput(NamedTuple):
    """The policy's output for a sequence of observations."""

    log_probs: Tensor  # (T, E, actions), normalised
    values: Tensor  # (T, E)
    state: CoreState  # after the last step


class RecurrentActorCritic(nn.Module):
    """Actor and critic on one recurrent core.

    Args:
        config: sizes and the name of the core.
        num_actions: number of discrete actions of the task; ``config.actions`` may leave out some.
        read_mission: whether the mission text is part of the input.
        view: what it can see, see :class:`agents.model.encoder.ObservationEncoder`.

    Attributes:
        actions: numbers, in the task, of the actions it chooses from.
        view: its view.

    Raises:
        ValueError: if ``config.actions`` names one that the task does not have.

    Shape:
        observations ``(T, E, ...)``, state, reset ``(T, E)`` -> :class:`PolicyOutput`
    """

    def __init__(
        self, config: PPOConfig, num_actions: int, *, read_mission: bool, view: View | None = None
    ) -> None:
        super().__init__()
        self.actions = config.action_numbers or tuple(range(num_actions))
        if max(self.actions) >= num_actions:
            raise ValueError(f"actions must be of {num_actions}; got {config.actions!r}.")
        self.encoder = ObservationEncoder(
            config.encoder_size,
            kind=config.encoder,
            direction=config.direction,
            mission=read_mission,
            view=view,
        )
        self.view = self.encoder.view
        self.core = RecurrentCore(config.encoder_size, config)
        self.actor = nn.Linear(self.core.output_size, len(self.actions))
        self.critic = nn.Linear(self.core.output_size, 1)
        # A small actor head starts near the uniform policy, whatever the core's initialisation.
        for head, gain in ((self.actor, 0.01), (self.critic, 1.0)):
            nn.init.orthogonal_(head.weight, gain)
            nn.init.zeros_(head.bias)

    def initial_state(self, num_envs: int) -> CoreState:
        """A state for the first observations; their reset replaces it."""
        return self.core.initial_state(num_envs)

    def forward(
        self,
        observations: Observations | RepeatedObservations,
        state: CoreState,
        reset: Tensor,
    ) -> PolicyOutput:
        """Run the sequence; ``reset`` is true where an observation is the first of an episode."""
        return self._decide(self.encoder(observations), state, reset)

    def _decide(
        self, features: Tensor | RepeatedInput, state: CoreState, reset: Tensor
    ) -> PolicyOutput:
        features, state = self.core(features, state, reset)  # (T, E, I) -> (T, E, H)
        log_probs = self.actor(features).log_softmax(-1)  # (T, E, actions)
        return PolicyOutput(log_probs, self.critic(features).squeeze(-1), state)

    @torch.no_grad()
    def act(
        self,
        observations: Observations,
        state: CoreState,
        reset: Tensor,
        *,
        drawn: Tensor | None,
        encode: EncodedOnce | None = None,
    ) -> tuple[Tensor, PolicyOutput]:
        """One step for every environment: places ``(E,)`` in ``actions`` and what led to them.

        Args:
            observations: ``(E, ...)``.
            state: state of the core.
            reset: ``(E,)``, true where the observation is the first of an episode.
            drawn: ``(E,)`` random numbers, uniform in [0, 1), that decide the actions; ``None``
                takes the most probable ones.
            encode: used in place of the encoder.
        """
        features = (encode or self.encoder)(observations)  # (E, I)
        output = self._decide(features.unsqueeze(0), state, reset.unsqueeze(0))
        log_probs = output.log_probs[0]  # (E, actions)
        if drawn is None:
            return log_probs.argmax(-1), output
        return sample(log_probs, drawn), output


def reads_mission(config: PPOConfig) -> bool:
    """Whether an agent trained with ``config`` reads the mission text."""
    return config.mission == "on" or (config.mission == "auto" and mission_varies(config.task))


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


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
