"""Collecting experience, and cutting it into minibatches over environments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.cores import CoreState
from agents.encoder import EncodedOnce, Observations, RepeatedObservations
from agents.policy import PolicyOutput, RecurrentActorCritic
from envs import StepResult, VectorEnv


class Episode(NamedTuple):
    """One finished episode."""

    env: int  # index of its environment
    reward: float  # undiscounted return
    length: int  # steps
    success: bool  # ended with a reward above 0


class Rollout(NamedTuple):
    """T steps of E environments. Row t: the observation, what was done, what came of it."""

    observations: RepeatedObservations  # (T, E)
    episode_start: Tensor  # (T, E) bool: the observation is the first of an episode
    actions: Tensor  # (T, E)
    log_probs: Tensor  # (T, E) of the actions, when they were taken
    values: Tensor  # (T + 1, E), the last row of the observation after the last step
    rewards: Tensor  # (T, E)
    terminated: Tensor  # (T, E) bool
    truncated: Tensor  # (T, E) bool
    valid: Tensor  # (T, E) bool: false where the step only reset the environment
    initial_state: CoreState  # of the core, before the first row


class EpisodeTracker:
    """Adds up rewards and steps of running episodes."""

    def __init__(self, num_envs: int) -> None:
        self._reward = np.zeros(num_envs)
        self._length = np.zeros(num_envs, dtype=np.int64)

    def step(
        self, reward: NDArray[np.float32], ended: NDArray[np.bool_], valid: NDArray[np.bool_]
    ) -> list[Episode]:
        """Count one step and return the episodes it finished."""
        self._reward += reward
        self._length += valid
        finished = []
        for env in np.flatnonzero(ended):
            finished.append(
                Episode(
                    env=int(env),
                    reward=float(self._reward[env]),
                    length=int(self._length[env]),
                    success=bool(reward[env] > 0),
                )
            )
            self._reward[env], self._length[env] = 0.0, 0
        return finished


class Transition(NamedTuple):
    """One step of E environments, as tensors."""

    observation: Observations  # (E, ...)
    episode_start: Tensor  # (E,) bool: that observation is the first of an episode
    action: Tensor  # (E,)
    output: PolicyOutput  # with T = 1
    result: StepResult  # what the action led to
    episodes: list[Episode]  # that ended with this step


class Runner:
    """Steps a vector environment with a policy, without a break at the ends of episodes.

    The state of the core starts anew by ``episode_start``, which belongs to the observation about
    to be read, so an episode never starts with the memory of another.

    Args:
        env: is reset here.
        policy: the agent.
        generator: source of randomness of the actions; ``None`` takes the most probable ones.
    """

    def __init__(
        self, env: VectorEnv, policy: RecurrentActorCritic, generator: torch.Generator | None
    ) -> None:
        self.env = env
        self.policy = policy
        self.generator = generator
        self.device = next(policy.parameters()).device
        self.state = policy.initial_state(env.num_envs)
        self._observation = Observations.from_numpy(env.reset(), self.device)
        self._episode_start = torch.ones(env.num_envs, dtype=torch.bool, device=self.device)
        self._tracker = EpisodeTracker(env.num_envs)
        self._encode: EncodedOnce | None = None

    @contextmanager
    def unchanged_weights(self) -> Iterator[None]:
        """While open, no weight of the policy may change; observations are encoded once only."""
        self._encode = EncodedOnce(self.policy.encoder)
        try:
            yield
        finally:
            self._encode = None

    def look(self) -> tuple[Tensor, PolicyOutput]:
        """What the policy would do now; nothing moves on, but randomness is drawn."""
        seen: tuple[Tensor, PolicyOutput] = self.policy.act(
            self._observation,
            self.state,
            self._episode_start,
            generator=self.generator,
            encode=self._encode,
        )
        return seen

    def step(self) -> Transition:
        """Let the policy act once in every environment."""
        observation, episode_start = self._observation, self._episode_start
        action, output = self.look()
        result = self.env.step(action.cpu().numpy())
        ended = result.terminated | result.truncated
        episodes = self._tracker.step(result.reward, ended, result.valid)
        self._observation = Observations.from_numpy(result.observation, self.device)
        self._episode_start = torch.from_numpy(result.episode_start).to(self.device)
        self.state = output.state
        return Transition(observation, episode_start, action, output, result, episodes)


def collect(runner: Runner, num_steps: int) -> tuple[Rollout, list[Episode]]:
    """Take ``num_steps`` steps in every environment of ``runner``.

    Returns:
        The rollout, and the episodes that ended in it.
    """
    initial_state = runner.state
    with runner.unchanged_weights():
        steps = [runner.step() for _ in range(num_steps)]
        _, after = runner.look()

    def stack(parts: Iterable[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.stack(list(parts))).to(runner.device)

    actions = torch.stack([s.action for s in steps])  # (T, E)
    log_probs = torch.cat([s.output.log_probs for s in steps])  # (T, E, actions)
    rollout = Rollout(
        observations=RepeatedObservations.of(Observations.stack([s.observation for s in steps])),
        episode_start=torch.stack([s.episode_start for s in steps]),
        actions=actions,
        log_probs=log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1),
        values=torch.cat([*(s.output.values for s in steps), after.values]),
        rewards=stack(s.result.reward for s in steps),
        terminated=stack(s.result.terminated for s in steps),
        truncated=stack(s.result.truncated for s in steps),
        valid=stack(s.result.valid for s in steps),
        initial_state=initial_state,
    )
    return rollout, [episode for s in steps for episode in s.episodes]


def minibatch_indices(
    num_envs: int, minibatch_envs: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Shuffle environments into minibatches; time is never cut, so states stay true."""
    order = torch.randperm(num_envs, generator=generator)
    yield from torch.split(order, minibatch_envs)
