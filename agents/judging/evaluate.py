"""Evaluating an agent on a task: many first episodes, each on its own level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from agents.config import ActionMode
from agents.learning.rollout import Episode, Runner
from agents.model.policy import RecurrentActorCritic
from envs import (
    BackendChoice,
    EnvironmentFailed,
    Task,
    action_names,
    level_seeds,
    make_vector_env,
    require_makeable,
    resolve_backend,
)
from lab.reporting.statistics import Estimate, mean_over_episodes, proportion

#: Episodes run side by side; more wait for the next wave.
MAX_ENVS = 256

#: Steps of an episode at most: some environments never end one.
MAX_STEPS = 100_000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of an agent on one task."""

    task: Task
    backend: str
    mode: ActionMode
    seed: int
    episodes: tuple[Episode, ...]

    @property
    def success_rate(self) -> Estimate | None:
        """Share of successes, Wilson interval; None unless it is known of every episode."""
        successes = [e.success for e in self.episodes if e.success is not None]
        if len(successes) < len(self.episodes):
            return None
        return proportion(sum(successes), len(successes))

    @property
    def mean_return(self) -> Estimate:
        """Undiscounted return, bootstrap interval."""
        return mean_over_episodes([e.reward for e in self.episodes])

    @property
    def mean_length(self) -> Estimate:
        """Steps per episode, bootstrap interval."""
        return mean_over_episodes([float(e.length) for e in self.episodes])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a success rate that is not known is null."""
        success = self.success_rate
        return {
            "task": self.task.id,
            "backend": self.backend,
            "mode": self.mode,
            "seed": self.seed,
            "episodes": len(self.episodes),
            "success_rate": None if success is None else success.to_dict(),
            "mean_return": self.mean_return.to_dict(),
            "mean_length": self.mean_length.to_dict(),
        }


def evaluate(
    policy: RecurrentActorCritic,
    task: Task,
    *,
    episodes: int,
    seed: int,
    mode: ActionMode = "sample",
    backend: BackendChoice = "auto",
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run ``episodes`` episodes, one per environment and level seed, and record each.

    Taking the first N episodes to finish would favour short ones, which here are the successful
    ones. Every environment contributes exactly its first episode instead, however long.

    Args:
        policy: the agent.
        task: the task to run; its observations and actions must be those of the training task.
        episodes: how many.
        seed: decides levels (never levels of training seeds) and sampled actions.
        mode: ``"sample"`` draws actions from the policy, ``"greedy"`` takes the most probable.
        backend: see :func:`envs.resolve_backend`.
        on_progress: called with the number of episodes newly finished.

    Raises:
        ValueError: as :func:`check_task`, or if the agent's action probabilities are not finite.
        EnvironmentFailed: if the environment does, or ends no episode.
    """
    check_task(policy, task, backend)
    chosen = resolve_backend(task, backend)
    seeds = level_seeds(seed, "eval", episodes)
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(seed) if mode == "sample" else None
    finished: list[Episode] = []
    for start in range(0, episodes, MAX_ENVS):
        wave = seeds[start : start + MAX_ENVS]
        finished += [
            episode._replace(env=start + episode.env)
            for episode in _first_episodes(policy, task, wave, chosen, generator, on_progress)
        ]
    return Evaluation(task=task, backend=chosen, mode=mode, seed=seed, episodes=tuple(finished))


def check_task(policy: RecurrentActorCritic, task: Task, backend: BackendChoice = "auto") -> None:
    """Make sure that the agent can see and act in the task.

    Raises:
        ValueError: if the backend cannot run it, its view is of another size than the agent's, or
            it lacks one of the agent's actions or something the agent reads.
    """
    read = {"direction": policy.encoder.direction, "mission": policy.encoder.mission}
    parts = [name for name, is_read in read.items() if is_read]
    chosen = require_makeable(task, backend, None, parts, policy.view)
    with make_vector_env(task, 1, [0], chosen, view=policy.view) as env:
        if {policy.space.kind, env.actions.kind} != {"discrete"}:
            if policy.space != env.actions:
                raise ValueError(f"{task.id} has {env.actions}, but the agent {policy.space}.")
        elif max(policy.actions) >= env.num_actions:
            raise ValueError(
                f"{task.id} has {env.num_actions} actions, but the agent chooses from "
                f"{', '.join(action_names(policy.actions))}; "
                "evaluate it on a task like the one it was trained on."
            )


def _first_episodes(
    policy: RecurrentActorCritic,
    task: Task,
    seeds: list[int],
    backend: BackendChoice,
    generator: torch.Generator | None,
    on_progress: Callable[[int], None] | None,
) -> list[Episode]:
    first: dict[int, Episode] = {}
    with make_vector_env(task, len(seeds), seeds, backend, view=policy.view) as env:
        runner = Runner(env, policy, generator)
        while len(first) < len(seeds):
            before = len(first)
            if len(runner.actions) >= MAX_STEPS:
                raise EnvironmentFailed(
                    f"environment {task.id!r} has not ended an episode in {MAX_STEPS} steps; give "
                    "it a step limit, such as max_episode_steps where it is registered."
                )
            step = runner.step()
            if bool(step.output.parameters.isnan().any()):
                raise ValueError(f"the agent's action probabilities on {task.id} are not finite.")
            for episode in step.episodes:
                first.setdefault(episode.env, episode)
            if on_progress is not None and len(first) > before:
                on_progress(len(first) - before)
    return [first[env] for env in sorted(first)]
