"""Reads an environment's spaces; refuses in one line those that agents cannot use."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from gymnasium import spaces
from minigrid.core.mission import MissionSpace

from envs.view import CHANNELS, View, minigrid_view

__all__ = ["Understood", "names_of", "understand"]

_PARTS: Final = ("image", "direction", "mission")
_NUM_DIRECTIONS: Final = 4
_MOST_ACTIONS: Final = 256  # a checkpoint keeps each in a byte


class Understood(NamedTuple):
    """The spaces of an environment, read."""

    view: View
    missing: tuple[str, ...]  # of direction and mission
    num_actions: int


def understand(observation: spaces.Space[Any], action: spaces.Space[Any]) -> Understood:
    """Read the spaces of an environment.

    Observations are MiniGrid's: a dictionary of ``image``, a symbolic view (width, height, 3) of
    any size, and optionally ``direction`` and ``mission``; or the view alone. Actions are numbers
    from 0.

    Raises:
        ValueError: in one line, for anything else.

    >>> understand(spaces.Box(0, 255, (9, 9, 3), np.uint8), spaces.Discrete(3)).view
    View(width=9, height=9, categories=(11, 6, 4))
    """
    parts = dict(observation.spaces) if isinstance(observation, spaces.Dict) else {}
    if isinstance(observation, spaces.Box):
        parts = {"image": observation}
    if "image" not in parts:
        raise ValueError(f"observations must be {_WANTED}; they are {_short(observation)}")
    for name in parts:
        if name not in _PARTS:
            raise ValueError(
                f"observations hold {name!r}, which agents do not read; leave it out, such as by "
                "gymnasium.wrappers.FilterObservation"
            )
    view = _view_of(parts["image"])
    _check_direction(parts.get("direction"))
    _check_mission(parts.get("mission"))
    if not isinstance(action, spaces.Discrete) or action.start != 0 or action.n > _MOST_ACTIONS:
        raise ValueError(
            f"actions must be Discrete numbers from 0, at most {_MOST_ACTIONS}; they are "
            f"{_short(action)}"
        )
    missing = tuple(name for name in _PARTS[1:] if name not in parts)
    return Understood(view, missing, int(action.n))


_WANTED: Final = (
    "MiniGrid's symbolic view, whole numbers (width, height, 3), with or without direction and "
    "mission"
)


def _view_of(image: spaces.Space[Any]) -> View:
    symbolic = (
        isinstance(image, spaces.Box)
        and image.dtype is not None
        and np.issubdtype(image.dtype, np.integer)
        and len(image.shape) == 3
        and image.shape[2] == len(CHANNELS)
        and 0 not in image.shape
    )
    if not symbolic:
        raise ValueError(f"observations must be {_WANTED}; the image is {_short(image)}")
    assert isinstance(image, spaces.Box)
    if image.low.min() < 0:
        raise ValueError(f"the view must hold no numbers below 0; it is {_short(image)}")
    known = minigrid_view(*image.shape[:2])
    # 255 is only the end of the type; what is lower was said on purpose.
    highest = image.high.reshape(-1, len(CHANNELS)).max(axis=0).tolist()
    objects, colours, states = (
        int(high) + 1 if high < 255 else count
        for high, count in zip(highest, known.categories, strict=True)
    )
    return known._replace(categories=(objects, colours, states))


def _check_direction(space: spaces.Space[Any] | None) -> None:
    discrete = isinstance(space, spaces.Discrete) and (space.n, space.start) == (_NUM_DIRECTIONS, 0)
    if space is not None and not discrete:
        raise ValueError(
            f"the direction must be Discrete({_NUM_DIRECTIONS}); it is {_short(space)}"
        )


def _check_mission(space: spaces.Space[Any] | None) -> None:
    if space is not None and not isinstance(space, spaces.Text | MissionSpace):
        raise ValueError(f"the mission must be text; it is {_short(space)}")


def _short(space: spaces.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def names_of(env: Any, count: int) -> tuple[str, ...]:
    """Names of an environment's actions: MiniGrid's names if it has them, else numbers."""
    own = getattr(env.unwrapped, "actions", None)
    names = tuple(getattr(own, "__members__", ()))  # of an enumeration
    return names[:count] if len(names) >= count else tuple(map(str, range(count)))
