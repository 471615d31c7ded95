"""Vector environments on gymnasium and minigrid: pure Python, works everywhere."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import gymnasium
import minigrid  # noqa: F401  (registers its environments)
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from envs.base import BackendStep, Observation, VectorEnv
from envs.mission import encode_mission
from envs.suites import Task

__all__ = ["GymnasiumVectorEnv", "make_env", "quiet"]


def quiet(task: Task) -> AbstractContextManager[object]:
    """Drop what BabyAI prints to stdout whenever it rejects a sampled level."""
    if task.id.startswith("BabyAI-"):
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.nullcontext()


def make_env(task: Task, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """One gymnasium environment of a task.

    Args:
        task: what to make.
        render_mode: ``"rgb_array"`` for an environment whose frames can be drawn.

    >>> make_env(Task(id="MiniGrid-Empty-5x5-v0")).action_space
    Discrete(7)
    """
    with quiet(task), warnings.catch_warnings():
        # An old id was asked for by name; that a newer one exists is no news to the user.
        warnings.filterwarnings("ignore", ".* is out of date", DeprecationWarning)
        return gymnasium.make(
            task.id, disable_env_checker=True, render_mode=render_mode, **task.gym_kwargs
        )


class GymnasiumVectorEnv(VectorEnv):
    """E gymnasium environments stepped one after the other; see :class:`envs.VectorEnv`.

    Args:
        task: what to run.
        seeds: one seed per environment.
        drawable: whether :meth:`frame` can be called.
    """

    def __init__(self, task: Task, seeds: Sequence[int], *, drawable: bool = False) -> None:
        self._envs = SyncVectorEnv(
            [partial(make_env, task, "rgb_array" if drawable else None)] * len(seeds),
            copy=False,  # _observe copies what it keeps
            autoreset_mode=AutoresetMode.NEXT_STEP,
        )
        self._seeds: list[int | None] | None = list(seeds)
        space = self._envs.single_action_space
        assert isinstance(space, gymnasium.spaces.Discrete)
        super().__init__(
            task=task, backend="gymnasium", num_envs=len(seeds), num_actions=int(space.n)
        )

    def frame(self, env: int = 0) -> NDArray[np.uint8]:
        """Draw one environment as it is now, the agent's view highlighted: (Y, X, 3)."""
        frame: NDArray[np.uint8] = self._envs.envs[env].render()  # type: ignore[assignment]
        return frame

    def _reset(self) -> Observation:
        with quiet(self.task):
            observation, _ = self._envs.reset(seed=self._seeds)
        self._seeds = None  # a later reset continues each environment's own stream of levels
        return self._observe(observation)

    def _step(
        self, actions: NDArray[np.integer[Any]], episode_start: NDArray[np.bool_]
    ) -> BackendStep:
        with quiet(self.task):
            observation, reward, terminated, truncated, _ = self._envs.step(actions)
        return BackendStep(
            observation=self._observe(observation),
            reward=reward.astype(np.float32),
            terminated=terminated.copy(),
            truncated=truncated.copy(),
        )

    def _close(self) -> None:
        self._envs.close()

    @staticmethod
    def _observe(observation: dict[str, Any]) -> Observation:
        return Observation(
            image=observation["image"].copy(),  # (E, 7, 7, 3)
            direction=observation["direction"].astype(np.int64),  # (E,)
            mission=np.stack([encode_mission(text) for text in observation["mission"]]),  # (E, L)
        )
