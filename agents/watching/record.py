"""Recording an episode: observations, probabilities, values and active mechanisms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import rims
from agents.config import ActionMode
from agents.learning.rollout import Episode, Runner
from agents.model.policy import RecurrentActorCritic
from envs import VOCABULARY, Task, level_seeds, make_drawable_env, mission_varies
from lab.words import plural


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Data of one episode; row t is the moment before action t."""

    task: Task
    core: str
    mission: str  # as the policy gets it; empty if the task has the same one in every level
    frames: list[NDArray[np.uint8]]  # steps + 1, each (Y, X, 3)
    views: list[NDArray[np.uint8]]  # steps + 1, each (width, height, 3) category indices
    actions: list[int]  # places in action_names
    action_names: list[str]  # of those the agent chooses from
    probabilities: NDArray[np.float32]  # (steps, actions)
    values: list[float]
    active: NDArray[np.bool_] | None  # (steps, N), for cores with mechanisms
    episode: Episode | None  # None if cut by max_steps

    @property
    def outcome(self) -> str:
        """The end of the episode, in words."""
        if self.episode is None:
            return f"Stopped after {plural(len(self.actions), 'step')}"
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
    views: list[NDArray[np.uint8]] = []
    actions: list[int] = []
    probabilities: list[NDArray[np.float32]] = []
    values: list[float] = []
    episode: Episode | None = None
    with (
        make_drawable_env(task, level_seeds(seed, "eval", 1)[0], policy.view) as env,
        rims.trace(policy) as trace,
    ):
        runner = Runner(env, policy, generator)
        frames.append(env.frame())
        while episode is None and len(actions) < max_steps:
            step = runner.step()
            frames.append(env.frame())
            views.append(step.observation.image[0].numpy())
            actions.append(int(step.action[0]))
            probabilities.append(step.output.log_probs[0, 0].exp().numpy())
            values.append(float(step.output.values[0, 0]))
            episode = step.episodes[0] if step.episodes else None
    # A core from elsewhere may call a layer of mechanisms more than once a step: no raster then.
    steps = len(actions)
    active = [cell[:, 0].numpy() for cell in trace.active.values() if len(cell) == steps]
    return Recording(
        task=task,
        core=core,
        mission=mission_text(step.observation.mission[0]) if mission_varies(task) else "",
        frames=frames,
        views=[*views, step.result.observation.image[0]],
        actions=actions,
        action_names=[env.action_names[number] for number in policy.actions],
        probabilities=np.stack(probabilities),
        values=values,
        active=np.concatenate(active, axis=1) if active else None,
        episode=episode,
    )


def mission_text(tokens: Tensor) -> str:
    """The words of a mission (L,), read from its tokens: what a policy that reads it gets.

    >>> from envs import encode_mission
    >>> mission_text(torch.from_numpy(encode_mission("Go to the red ball, then stop").copy()))
    'go to the red ball, then <unknown>'
    """
    words = [VOCABULARY[token] for token in tokens.tolist() if token]
    return " ".join(words).replace(" ,", ",")
