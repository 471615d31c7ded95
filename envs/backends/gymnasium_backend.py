"""Vector environments on gymnasium and minigrid: pure Python, works everywhere."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from envs.actions import ActionSpace
from envs.backends.base import AnyObservation, BackendStep, Observation, VectorEnv
from envs.backends.foreign import SUCCESS, CheckedEnv, checked
from envs.backends.spaces import names_of
from envs.ids import is_builtin, load_id
from envs.layout import AnyView, Layout, MixedObservation
from envs.mission import encode_mission
from envs.suites import Task
from envs.view import minigrid_view
from envs.wrappers import wrapper_class
from lab.words import one_line

__all__ = ["GymnasiumVectorEnv", "make_env", "quiet"]


def quiet(task: Task) -> AbstractContextManager[object]:
    """Drop what BabyAI prints to stdout whenever it rejects a sampled level."""
    if task.id.rpartition(":")[2].startswith("BabyAI-"):
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.nullcontext()


def make_env(
    task: Task, render_mode: str | None = None, view: AnyView | None = None
) -> gymnasium.Env[Any, Any]:
    """One gymnasium environment of a task, with observations in a form that agents read.

    Args:
        task: the task to make.
        render_mode: ``"rgb_array"`` for an environment whose frames can be drawn.
        view: the agent's view; an environment that shows anything else is refused.

    Raises:
        ValueError: in one line, if an environment that is not minigrid's own cannot be made, or no
            agent can be trained in it.

    >>> make_env(Task(id="MiniGrid-Empty-5x5-v0")).action_space
    Discrete(7)
    """
    env = _made(task, load_id(task.id), render_mode)
    if is_builtin(task.id) and not task.wrappers:
        shown = minigrid_view(*env.observation_space["image"].shape[:2])  # type: ignore[index]
        if view is None or view.holds(shown):
            return env
    try:
        return checked(env, task.id, view)
    except ValueError as error:
        env.close()
        raise ValueError(f"no agent can be trained in {task.id!r}: {error}.") from None


def _made(task: Task, id: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    builtin = is_builtin(task.id)
    prints = quiet(task) if builtin else contextlib.redirect_stdout(sys.stderr)
    with prints, warnings.catch_warnings():
        # An old id was asked for by name; that a newer one exists is no news to the user.
        warnings.filterwarnings("ignore", ".* is out of date", DeprecationWarning)
        try:
            env = gymnasium.make(
                id, disable_env_checker=True, render_mode=render_mode, **task.gym_kwargs
            )
            for wrapper in task.wrappers:
                env = wrapper_class(wrapper)(env)
            return env
        except Exception as error:  # it is the user's code: anything can happen in it
            if builtin and not task.wrappers:
                raise
            drawn = " to be drawn" if render_mode else ""
            raise ValueError(
                f"environment {task.id!r} cannot be made{drawn}: {one_line(error)}."
            ) from error


class GymnasiumVectorEnv(VectorEnv):
    """E gymnasium environments stepped one after the other; see :class:`envs.VectorEnv`.

    Args:
        task: the task to run.
        seeds: one seed per environment.
        drawable: whether :meth:`frame` can be called.
        view: the agent's view; an environment that shows anything else is refused.
    """

    def __init__(
        self,
        task: Task,
        seeds: Sequence[int],
        *,
        drawable: bool = False,
        view: AnyView | None = None,
    ) -> None:
        self._envs = SyncVectorEnv(
            [partial(make_env, task, "rgb_array" if drawable else None, view)] * len(seeds),
            copy=False,  # _observe copies what it keeps
            autoreset_mode=AutoresetMode.NEXT_STEP,
        )
        self._seeds: list[int | None] | None = list(seeds)
        first = self._envs.envs[0]
        view, actions, missing = _spaces_of(first)
        super().__init__(
            task=task,
            backend="gymnasium",
            num_envs=len(seeds),
            actions=actions,
            view=view,
            names=names_of(first, actions.length),
            missing=missing,
        )

    def frame(self, env: int = 0) -> NDArray[np.uint8]:
        """Draw one environment as it is now, the agent's view highlighted: (Y, X, 3).

        Raises:
            ValueError: in one line, if it cannot be drawn.
        """
        try:
            frame = np.asarray(self._envs.envs[env].render())
        except Exception as error:  # it is the user's code: anything can happen in it
            raise ValueError(f"{self.task.id!r} cannot be drawn: {one_line(error)}.") from error
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(
                f"{self.task.id!r} cannot be drawn: with render_mode='rgb_array' its render() "
                f"gives {frame.dtype} {frame.shape}, not bytes (height, width, 3)."
            )
        return frame

    def _reset(self) -> AnyObservation:
        with quiet(self.task):
            observation, _ = self._envs.reset(seed=self._seeds)
        self._seeds = None  # a later reset continues each environment's own stream of levels
        return self._observe(observation)

    def _step(self, actions: NDArray[Any], episode_start: NDArray[np.bool_]) -> BackendStep:
        with quiet(self.task):
            observation, reward, terminated, truncated, info = self._envs.step(actions)
        told = None
        if SUCCESS in info:  # of some environments; where it says nothing stands a 0
            told = np.where(info[f"_{SUCCESS}"], info[SUCCESS], np.nan).astype(np.float32)
        return BackendStep(
            observation=self._observe(observation),
            reward=reward.astype(np.float32),
            terminated=terminated.copy(),
            truncated=truncated.copy(),
            told=told,
        )

    def _close(self) -> None:
        self._envs.close()

    def _observe(self, observation: dict[str, Any]) -> AnyObservation:
        if isinstance(self.view, Layout):
            return self._mixed(observation)
        return Observation(
            image=observation["image"].copy(),  # (E, width, height, 3)
            direction=observation["direction"].astype(np.int64),  # (E,)
            mission=np.stack([encode_mission(text) for text in observation["mission"]]),  # (E, L)
        )

    def _mixed(self, observation: dict[str, Any]) -> MixedObservation:
        def part(name: str, dtype: type[Any]) -> NDArray[Any]:
            if name in observation:
                return np.array(observation[name])  # a copy
            return np.zeros((self.num_envs, 0), dtype=dtype)

        texts = observation.get("mission")
        return MixedObservation(
            vector=part("vector", np.float32),  # (E, V)
            pixels=part("pixels", np.uint8),  # (E, P)
            mission=np.zeros((self.num_envs, 0), dtype=np.int64)
            if texts is None
            else np.stack([encode_mission(text) for text in texts]),  # (E, L)
        )


def _spaces_of(
    env: gymnasium.Env[Any, Any],
) -> tuple[AnyView, ActionSpace, tuple[str, ...]]:
    """What an environment shows, its actions, and the parts of an observation it does not give."""
    if isinstance(env, CheckedEnv):
        return env.view, env.actions, env.missing
    assert isinstance(env.action_space, gymnasium.spaces.Discrete)
    view = minigrid_view(*env.observation_space["image"].shape[:2])  # type: ignore[index]
    return view, ActionSpace.discrete(int(env.action_space.n)), ()
