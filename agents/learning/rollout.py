"""Collecting experience, and cutting it into minibatches over environments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.model.encoder import EncodedOnce
from agents.model.observations import (
    AnyObservations,
    KeptObservations,
    Observations,
    RepeatedObservations,
    tensors_of,
)
from agents.model.policy import PolicyOutput, RecurrentActorCritic
from envs import AnyObservation, StepResult, VectorEnv
from lab.core_modules import CoreState
from lab.running.guards import RunStopped
from lab.running.world import World


class Episode(NamedTuple):
    """One finished episode."""

    env: int  # index of its environment
    reward: float  # undiscounted return
    length: int  # steps
    success: bool | None  # None: neither the environment nor the task says


class Rollout(NamedTuple):
    """T steps of E environments. Row t: the observation, what was done, what came of it."""

    observations: Any  # KeptObservations (T, E); callers know of which kind
    episode_start: Tensor  # (T, E) bool: the observation is the first of an episode
    actions: Tensor  # (T, E) places in the policy's actions, or (T, E, components)
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
        self,
        reward: NDArray[np.float32],
        ended: NDArray[np.bool_],
        valid: NDArray[np.bool_],
        success: NDArray[np.float32],
    ) -> list[Episode]:
        """Count one step and return the episodes it finished; ``success`` is NaN where unknown."""
        self._reward += reward
        self._length += valid
        finished = []
        for env in np.flatnonzero(ended):
            finished.append(
                Episode(
                    env=int(env),
                    reward=float(self._reward[env]),
                    length=int(self._length[env]),
                    success=None if np.isnan(success[env]) else bool(success[env]),
                )
            )
            self._reward[env], self._length[env] = 0.0, 0
        return finished


class Transition(NamedTuple):
    """One step of E environments, as tensors."""

    observation: Any  # AnyObservations (E, ...); callers know of which kind
    episode_start: Tensor  # (E,) bool: that observation is the first of an episode
    action: Tensor  # (E,) place in the policy's actions, or (E, components)
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
        world: the processes that step environments of the same run; all draw the same numbers and
            each uses its part, so that the actions are those of one process with all environments.

    Attributes:
        given: the observation that is to be acted on, as the environments gave it.
        actions: all actions (E, ...) as the environments were told them since ``env`` was reset, by
            which :meth:`replay` brings another one where this one is.
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: RecurrentActorCritic,
        generator: torch.Generator | None,
        world: World | None = None,
    ) -> None:
        self.policy = policy
        self.generator = generator
        self.world = world or World()
        self.device = next(policy.parameters()).device
        self.state = policy.initial_state(env.num_envs)
        self._encode: EncodedOnce | None = None
        self.restart(env)

    def restart(self, env: VectorEnv) -> None:
        """Go on in other environments, which are reset; running episodes count nowhere."""
        self.env = env
        self._see(env.reset(), np.ones(env.num_envs, dtype=np.bool_))
        self._tracker = EpisodeTracker(env.num_envs)
        self.actions: list[NDArray[Any]] = []

    def replay(self, actions: Iterable[NDArray[Any]], expected: AnyObservations) -> None:
        """Bring the environments where these actions led, without the policy.

        Args:
            actions: those of :attr:`actions` of another runner, whose environments had the same
                seeds.
            expected: the observations at the end of these actions.

        Raises:
            RunStopped: if something else is seen.
        """
        for action in actions:
            self._tell(action)
        if not all(torch.equal(a.cpu(), b) for a, b in zip(self.seen, expected, strict=True)):
            raise RunStopped(
                "the run cannot be resumed: its environments do not lead where they led before. "
                "They are of another version (install that which the checkpoint names), or do not "
                "follow their seeds; a new run can begin with this agent, by --init-from."
            )

    @property
    def seen(self) -> Any:
        """The observations that are to be acted on, as AnyObservations."""
        return self._observation

    @contextmanager
    def unchanged_weights(self) -> Iterator[None]:
        """While open, no weight of the policy may change; observations are encoded once only."""
        if self.policy.encoder.repeats:
            self._encode = EncodedOnce(self.policy.encoder)
        try:
            yield
        finally:
            self._encode = None

    def look(self) -> tuple[Tensor, PolicyOutput]:
        """The policy's output for the current observations; draws random numbers, steps nothing."""
        seen: tuple[Tensor, PolicyOutput] = self.policy.act(
            self._observation,
            self.state,
            self._episode_start,
            drawn=self._draw(),
            encode=self._encode,
        )
        return seen

    def _draw(self) -> Tensor | None:
        if self.generator is None:
            return None
        total = self.env.num_envs * self.world.size
        drawn = self.policy.distribution.draw(total, self.generator)
        return drawn[self.world.part(total)].to(self.device)

    def step(self) -> Transition:
        """Let the policy act once in every environment."""
        observation, episode_start = self._observation, self._episode_start
        action, output = self.look()
        result, episodes = self._tell(self.policy.distribution.told(action))
        self.state = output.state
        return Transition(observation, episode_start, action, output, result, episodes)

    def _tell(self, action: NDArray[Any]) -> tuple[StepResult, list[Episode]]:
        """Step the environments, and take note of what comes of it."""
        result = self.env.step(action)
        self.actions.append(action)
        ended = result.terminated | result.truncated
        episodes = self._tracker.step(result.reward, ended, result.valid, result.success)
        self._see(result.observation, result.episode_start)
        return result, episodes

    def _see(self, observation: AnyObservation, episode_start: NDArray[np.bool_]) -> None:
        self.given = observation
        self._observation = tensors_of(observation, self.device)
        self._episode_start = torch.from_numpy(episode_start).to(self.device)


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
    parameters = torch.cat([s.output.parameters for s in steps])  # (T, E, ...)
    rollout = Rollout(
        observations=_kept([s.observation for s in steps], runner.policy.encoder.repeats),
        episode_start=torch.stack([s.episode_start for s in steps]),
        actions=actions,
        log_probs=runner.policy.distribution.log_prob(parameters, actions).detach(),
        values=torch.cat([*(s.output.values for s in steps), after.values]),
        rewards=stack(s.result.reward for s in steps),
        terminated=stack(s.result.terminated for s in steps),
        truncated=stack(s.result.truncated for s in steps),
        valid=stack(s.result.valid for s in steps),
        initial_state=initial_state,
    )
    return rollout, [episode for s in steps for episode in s.episodes]


def _kept(steps: list[AnyObservations], repeats: bool) -> KeptObservations:
    """Steps as one rollout (T, E), in which each different observation is kept once if some are
    frequent."""
    joined = type(steps[0])(*(torch.stack(parts) for parts in zip(*steps, strict=True)))
    if repeats or isinstance(joined, Observations):
        return RepeatedObservations.of(joined)
    return joined


def minibatch_indices(
    num_envs: int, minibatches: int, generator: torch.Generator, part: slice = slice(None)
) -> Iterator[Tensor]:
    """Deal environments into minibatches; time is never cut, so states stay true.

    Of each ``minibatches`` neighbouring environments every minibatch gets one. So each process that
    steps a part of the environments has as many in every minibatch.

    Args:
        num_envs: number over all processes.
        minibatches: per epoch; divides ``num_envs``.
        generator: decides the order.
        part: the environments of this process; its ends are multiples of ``minibatches``.

    Yields:
        Places ``(e,)`` in ``part``.
    """
    groups = num_envs // minibatches
    order = torch.rand(groups, minibatches, generator=generator).argsort(dim=1)
    envs = (order + minibatches * torch.arange(groups).unsqueeze(1)).flatten()[part]
    yield from (envs - (part.start or 0)).view(-1, minibatches).T
