"""Environments that are not minigrid's own: every step is checked.

Their spaces decide whether an agent fits. What they give is checked at every step, and passed on in
the form in which minigrid's own environments give it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium import spaces
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.minigrid_env import MiniGridEnv
from numpy.typing import NDArray

from envs.backends.base import EnvironmentFailed
from envs.backends.leaves import read_leaves
from envs.backends.spaces import Understood, flat_space, understand
from envs.layout import AnyView, Layout
from envs.view import CHANNELS, View
from lab.words import one_line

__all__ = ["SUCCESS", "CheckedEnv", "ForeignEnv", "MixedEnv", "checked", "told_success"]

#: The key under which :class:`ForeignEnv` passes on the environment's word on success.
SUCCESS: Final = "success"
_WORDS: Final = ("is_success", "success")
_LARGEST: Final = float(np.finfo(np.float32).max)


class _Nowhere(io.TextIOBase):
    """A stream that keeps nothing."""

    def write(self, text: str, /) -> int:
        """Drop it."""
        return len(text)


def told_success(info: Mapping[str, Any]) -> float | None:
    """The success that an environment reports: 1 or 0; None if it reports neither.

    >>> told_success({"is_success": True}), told_success({"success": 0.0}), told_success({})
    (1.0, 0.0, None)
    """
    last = info.get("final_info", info)  # of one that resets by itself
    for key in _WORDS:
        word = last.get(key) if isinstance(last, Mapping) else None
        if isinstance(word, bool | int | float | np.bool_ | np.number) and word in (0, 1):
            return float(word)
    return None


class CheckedEnv(gymnasium.Wrapper[Any, Any, Any, Any], ABC):
    """An environment of anybody's, whose steps are checked; made by :func:`checked`.

    Args:
        env: the environment to wrap.
        id: its name in messages.
        understood: its spaces.

    Attributes:
        view: what it shows an agent.
        missing: parts of an observation that it does not give.
        actions: the actions that it is told.
    """

    view: AnyView

    def __init__(self, env: gymnasium.Env[Any, Any], id: str, understood: Understood) -> None:
        super().__init__(env)
        self.missing, self.actions = understood.missing, understood.actions
        self.action_space = flat_space(understood.actions)
        self._act = understood.act
        self._id = id
        self._steps = 0
        # Levels of BabyAI print whenever a sampled one is rejected. What others print somebody may
        # want to read, but standard output belongs to results.
        self._nowhere = _Nowhere() if isinstance(env.unwrapped, RoomGridLevel) else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode."""
        try:
            with contextlib.redirect_stdout(self._nowhere or sys.stderr):
                observation, _ = self.env.reset(seed=seed, options=options)
            return self._observation(observation), {}
        except EnvironmentFailed:
            raise
        except Exception as error:  # it is the user's code: anything can happen in it
            raise self._failed(_what(error), "its reset") from error

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Go on in it."""
        self._steps += 1
        try:
            with contextlib.redirect_stdout(self._nowhere or sys.stderr):
                observation, reward, terminated, truncated, info = self.env.step(self._act(action))
            told = told_success(info)
            return (
                self._observation(observation),
                self._reward(reward),
                bool(terminated),
                bool(truncated),
                {} if told is None else {SUCCESS: told},
            )
        except EnvironmentFailed:
            raise
        except Exception as error:  # as above
            raise self._failed(_what(error), f"step {self._steps}") from error

    def _reward(self, reward: Any) -> float:
        value = float(np.asarray(reward).item())
        if not abs(value) <= _LARGEST:  # also of NaN
            raise self._failed(f"the reward {value} is not finite", f"step {self._steps}")
        return value

    @abstractmethod
    def _observation(self, given: Any) -> dict[str, Any]:
        """An observation, checked, in the form of ``observation_space``."""

    def _when(self) -> str:
        return f"step {self._steps}" if self._steps else "its reset"

    def _failed(self, what: str, when: str) -> EnvironmentFailed:
        return EnvironmentFailed(f"environment {self._id!r} failed in {when}: {what}.")


class ForeignEnv(CheckedEnv):
    """An environment with minigrid's observations, whoever wrote it.

    Args:
        env: see :class:`CheckedEnv`.
        id: see there.
        understood: see there; its view is symbolic.
        view: the agent's view; default: the view in the environment's space.
    """

    view: View

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        id: str,
        understood: Understood,
        view: View | None = None,
    ) -> None:
        super().__init__(env, id, understood)
        assert isinstance(understood.view, View)
        self.view = understood.view
        limit = view or self.view
        self._categories = limit.categories
        self._sizes = np.broadcast_to(np.array(limit.categories), self.view.shape).copy()
        self.observation_space = spaces.Dict({
            "image": spaces.Box(0, 255, self.view.shape, np.uint8),
            "direction": spaces.Discrete(4),
            "mission": spaces.Text(1),  # of any length: nobody checks
        })  # fmt: skip

    def _observation(self, given: Any) -> dict[str, Any]:
        parts = given if isinstance(given, Mapping) else {"image": given}
        direction = 0 if "direction" in self.missing else int(parts["direction"])
        mission = "" if "mission" in self.missing else parts["mission"]
        if not 0 <= direction < 4:
            raise self._failed(f"the direction is {direction}, not 0 to 3", self._when())
        if not isinstance(mission, str):
            raise self._failed(f"the mission is {mission!r}, not text", self._when())
        image = self._image(np.asarray(parts["image"]))
        return {"image": image, "direction": direction, "mission": mission}

    def _image(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        if image.shape != self.view.shape or image.dtype.kind not in "iu":
            got = f"{image.dtype} {image.shape}"
            if image.dtype.kind == "f" and not np.isfinite(image).all():
                got += ", not all finite"
            want = f"whole numbers {self.view.shape}"
            raise self._failed(f"the view is {got}, where its space says {want}", self._when())
        if (image >= self._sizes).any() or (image.dtype.kind == "i" and image.min() < 0):
            raise self._failed(self._beyond(image), self._when())
        return image.astype(np.uint8)

    def _beyond(self, image: NDArray[Any]) -> str:
        bad = ((image >= self._sizes) | (image < 0)).reshape(-1, len(CHANNELS))
        row, channel = np.argwhere(bad)[0]
        value = int(image.reshape(-1, len(CHANNELS))[row, channel])
        return (
            f"the view holds {CHANNELS[channel]} {value}, and the agent knows 0 to "
            f"{self._categories[channel] - 1} (it cannot be an RGB image; objects and colours of "
            "your own stand in minigrid.core.constants, or as the high of the observation space, "
            "before the agent is made)"
        )


class MixedEnv(CheckedEnv):
    """An environment whose observations are numbers, categories and images.

    Args:
        env: see :class:`CheckedEnv`.
        id: see there.
        understood: see there; its view is a layout.
    """

    view: Layout

    def __init__(self, env: gymnasium.Env[Any, Any], id: str, understood: Understood) -> None:
        super().__init__(env, id, understood)
        assert isinstance(understood.view, Layout)
        self.view, self._leaves = understood.view, understood.leaves
        parts: dict[str, spaces.Space[Any]] = {}
        if self.view.vector_size:
            parts["vector"] = spaces.Box(-_LARGEST, _LARGEST, (self.view.vector_size,), np.float32)
        if self.view.images:
            parts["pixels"] = spaces.Box(0, 255, (self.view.pixels,), np.uint8)
        if self.view.mission:
            parts["mission"] = spaces.Text(1)  # of any length: nobody checks
        self.observation_space = spaces.Dict(parts)

    def _observation(self, given: Any) -> dict[str, Any]:
        try:
            return read_leaves(self._leaves, given)
        except ValueError as error:
            raise self._failed(str(error), self._when()) from error


def checked(env: gymnasium.Env[Any, Any], id: str, view: AnyView | None = None) -> CheckedEnv:
    """The environment with its steps checked and its observations in a form that agents read.

    Args:
        env: the environment.
        id: its name in messages.
        view: what the agent can read, if there is one.

    Raises:
        ValueError: in one line, if its spaces are not such as an agent can read and act in.
    """
    inner: Any = env.unwrapped
    size = getattr(inner, "agent_view_size", 0)
    own = isinstance(inner, MiniGridEnv)
    sides = ((size, size), (inner.width, inner.height)) if own else ()
    understood = understand(env.observation_space, env.action_space, sides)
    if isinstance(understood.view, Layout):
        return MixedEnv(env, id, understood)
    return ForeignEnv(env, id, understood, view if isinstance(view, View) else None)


def _what(error: Exception) -> str:
    """An exception, and where it was raised: nobody sees the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f" ({os.path.basename(frame.filename)}, line {frame.lineno})" for frame in frames]
    return "".join([one_line(error), *places[-1:]])
