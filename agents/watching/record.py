"""Recording an episode: observations, probabilities, values and active mechanisms."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import rims
from agents.config import ActionMode
from agents.learning.rollout import Episode, Runner
from agents.model.policy import RecurrentActorCritic
from envs import (
    VOCABULARY,
    AnyObservation,
    AnyView,
    Layout,
    Observation,
    Task,
    VectorEnv,
    level_seeds,
    make_drawable_env,
    mission_varies,
)
from lab.words import plural


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Data of one episode; row t is the moment before action t."""

    task: Task
    core: str
    mission: str  # as the policy gets it; empty if the task has the same one in every level
    frames: list[NDArray[np.uint8]]  # steps + 1, each (Y, X, 3)
    views: list[NDArray[Any]]  # steps + 1, see seen_of
    symbolic: bool  # whether these are MiniGrid's view
    taken: list[tuple[int, ...]]  # places in action_names; () of a continuous action
    action_names: list[str]  # of those the agent chooses from
    probabilities: NDArray[np.float32]  # (steps, actions); of continuous ones the place in bounds
    values: list[float]
    active: NDArray[np.bool_] | None  # (steps, N), for cores with mechanisms
    episode: Episode | None  # None if cut by max_steps

    @property
    def steps(self) -> int:
        """How many actions there are."""
        return len(self.taken)

    @property
    def actions(self) -> list[int]:
        """Actions that are single numbers: places in ``action_names``."""
        return [place for (place,) in self.taken]

    @property
    def outcome(self) -> str:
        """The end of the episode, in words."""
        if self.episode is None:
            return f"Stopped after {plural(self.steps, 'step')}"
        result = {True: "success", False: "failure", None: "ended"}[self.episode.success]
        steps = plural(self.episode.length, "step")
        return f"{result} after {steps}, return {self.episode.reward:.2f}"


def record_episode(
    policy: RecurrentActorCritic,
    task: Task,
    core: str,
    *,
    seed: int,
    mode: ActionMode = "sample",
    max_steps: int = 500,
) -> Recording:
    """Run one episode on gymnasium, which can draw it, and keep what the agent thought.

    Args:
        policy: the agent.
        task: the task to run.
        core: name of the agent's core, for the title.
        seed: decides level and sampled actions.
        mode: draw actions from the policy, or take the most probable.
        max_steps: stop after this many.

    Raises:
        ValueError: if the task cannot be drawn.
        EnvironmentFailed: if the environment does.
    """
    generator = torch.Generator().manual_seed(seed) if mode == "sample" else None
    frames: list[NDArray[np.uint8]] = []
    views: list[NDArray[Any]] = []
    taken: list[tuple[int, ...]] = []
    probabilities: list[NDArray[np.float32]] = []
    values: list[float] = []
    episode: Episode | None = None
    with (
        make_drawable_env(task, level_seeds(seed, "eval", 1)[0], policy.view) as env,
        rims.trace(policy) as trace,
    ):
        runner = Runner(env, policy, generator)
        frames.append(env.frame())
        before = runner.given
        while episode is None and len(taken) < max_steps:
            step = runner.step()
            frames.append(env.frame())
            views.append(seen_of(before, policy.view))
            before = step.result.observation
            taken.append(_taken(policy, step.action[0]))
            probabilities.append(_weights(policy, step.output.parameters[0, 0], step.action[0]))
            values.append(float(step.output.values[0, 0]))
            episode = step.episodes[0] if step.episodes else None
    # A core from elsewhere may call a layer of mechanisms more than once a step: no raster then.
    steps = len(taken)
    active = [cell[:, 0].numpy() for cell in trace.active.values() if len(cell) == steps]
    return Recording(
        task=task,
        core=core,
        mission=mission_text(step.observation.mission[0]) if mission_varies(task) else "",
        frames=frames,
        views=[*views, seen_of(before, policy.view)],
        symbolic=not isinstance(policy.view, Layout),
        taken=taken,
        action_names=_names(policy, env),
        probabilities=np.stack(probabilities),
        values=values,
        active=np.concatenate(active, axis=1) if active else None,
        episode=episode,
    )


def seen_of(observation: AnyObservation, view: AnyView) -> NDArray[Any]:
    """What the first of some agents sees, to be drawn.

    Returns:
        Category indices (width, height, 3) of a symbolic view; else the pixels (height, width,
        channels) of the first image, or the vector (V,) if there is none.
    """
    if isinstance(observation, Observation):
        image: NDArray[np.uint8] = observation.image[0]
        return image
    assert isinstance(view, Layout)
    if not view.images:
        vector: NDArray[np.float32] = observation.vector[0]
        return vector
    channels, height, width = view.images[0]
    pixels: NDArray[np.uint8] = observation.pixels[0, : channels * height * width]
    return pixels.reshape(channels, height, width).transpose(1, 2, 0)


def _taken(policy: RecurrentActorCritic, action: Tensor) -> tuple[int, ...]:
    """Places among the names of actions."""
    if policy.space.kind == "continuous":
        return ()
    if policy.space.kind == "discrete":
        return (int(action),)
    starts = [0, *accumulate(policy.space.sizes)]
    return tuple(start + int(number) for start, number in zip(starts, action, strict=False))


def _weights(
    policy: RecurrentActorCritic, parameters: Tensor, action: Tensor
) -> NDArray[np.float32]:
    """Probabilities of actions; of continuous ones where they lie between their bounds, 0 to 1."""
    if policy.space.kind != "continuous":
        return parameters.exp().numpy()
    low, high = (np.array(x, dtype=np.float64) for x in (policy.space.low, policy.space.high))
    given = policy.distribution.told(action).astype(np.float64)
    return np.asarray((given - low) / (high - low).clip(1e-12), dtype=np.float32)


def _names(policy: RecurrentActorCritic, env: VectorEnv) -> list[str]:
    space = policy.space
    if space.kind == "discrete":
        return [env.action_names[number] for number in policy.actions]
    if space.kind == "continuous":
        bounds = enumerate(zip(space.low, space.high, strict=True))
        return [f"{i}: {low:.3g} to {high:.3g}" for i, (low, high) in bounds]
    return [f"{i}: {value}" for i, size in enumerate(space.sizes) for value in range(size)]


def mission_text(tokens: Tensor) -> str:
    """The words of a mission (L,), read from its tokens: what a policy that reads it gets.

    >>> from envs import encode_mission
    >>> mission_text(torch.from_numpy(encode_mission("Go to the red ball, then stop").copy()))
    'go to the red ball, then <unknown>'
    """
    words = [VOCABULARY[token] for token in tokens.tolist() if token]
    return " ".join(words).replace(" ,", ",")
