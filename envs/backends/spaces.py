"""Reads an environment's spaces; refuses in one line those that agents cannot use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from gymnasium import spaces
from minigrid.core.mission import MissionSpace

from envs.actions import MOST_ACTIONS, ActionSpace
from envs.backends.leaves import Leaf, layout_of, short
from envs.layout import AnyView
from envs.view import CHANNELS, View, minigrid_view

__all__ = ["Understood", "flat_space", "names_of", "understand"]

_PARTS: Final = ("image", "direction", "mission")
_NUM_DIRECTIONS: Final = 4
_LARGEST: Final = float(np.finfo(np.float32).max)

#: Three whole numbers in each place of fewer than so many rows are a symbolic view, and an image
#: from there on, unless the environment says otherwise.
_SMALLEST_IMAGE: Final = 16


class Understood(NamedTuple):
    """The spaces of an environment, read."""

    view: AnyView
    missing: tuple[str, ...]  # of direction and mission
    actions: ActionSpace
    act: Callable[[Any], Any]  # an action of ``actions`` as the environment takes it
    leaves: tuple[Leaf, ...] = ()  # of an observation that is no symbolic view


def understand(
    observation: spaces.Space[Any],
    action: spaces.Space[Any],
    sides: tuple[tuple[int, int], ...] = (),
) -> Understood:
    """Read the spaces of an environment.

    Observations are MiniGrid's: a dictionary of ``image``, a symbolic view (width, height, 3) of
    any size, and optionally ``direction`` and ``mission``; or the view alone. Any others are made
    of numbers, categories and images, see :func:`envs.backends.leaves.layout_of`.

    Args:
        observation: the space of observations.
        action: the space of actions.
        sides: sizes that symbolic views of this environment have. An image of whole numbers
            (width, height, 3) is a symbolic view if it has one of them, is smaller than 16, or its
            numbers end below 255.

    Raises:
        ValueError: in one line, for spaces that agents cannot use.

    >>> understand(spaces.Box(0, 255, (9, 9, 3), np.uint8), spaces.Discrete(3)).view
    View(width=9, height=9, categories=(11, 6, 4))
    >>> understand(spaces.Box(-1, 1, (4,)), spaces.Discrete(2)).view.numbers
    4
    """
    actions, act = _actions_of(action)
    parts = dict(observation.spaces) if isinstance(observation, spaces.Dict) else {}
    if isinstance(observation, spaces.Box):
        parts = {"image": observation}
    if not _is_symbolic(parts.get("image"), sides):
        layout, leaves = layout_of(observation)
        given = {"mission"} if layout.mission else set()
        missing = tuple(name for name in _PARTS[1:] if name not in given)
        return Understood(layout, missing, actions, act, leaves)
    for name in parts:
        if name not in _PARTS:
            raise ValueError(
                f"observations hold {name!r}, which agents do not read beside a symbolic view; "
                "leave it out, such as by gymnasium.wrappers.FilterObservation"
            )
    view = _view_of(parts["image"])
    _check_direction(parts.get("direction"))
    _check_mission(parts.get("mission"))
    missing = tuple(name for name in _PARTS[1:] if name not in parts)
    return Understood(view, missing, actions, act)


def _is_symbolic(image: spaces.Space[Any] | None, sides: tuple[tuple[int, int], ...]) -> bool:
    if (
        not isinstance(image, spaces.Box)
        or image.dtype is None
        or not np.issubdtype(image.dtype, np.integer)
        or len(image.shape) != 3
        or image.shape[2] != len(CHANNELS)
    ):
        return False
    small = max(image.shape[:2]) < _SMALLEST_IMAGE
    return small or image.shape[:2] in sides or int(image.high.max()) < 255


def _view_of(image: spaces.Space[Any]) -> View:
    assert isinstance(image, spaces.Box)
    if 0 in image.shape:
        raise ValueError(f"the view must hold something; it is {short(image)}")
    if image.low.min() < 0:
        raise ValueError(f"the view must hold no numbers below 0; it is {short(image)}")
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
        raise ValueError(f"the direction must be Discrete({_NUM_DIRECTIONS}); it is {short(space)}")


def _check_mission(space: spaces.Space[Any] | None) -> None:
    if space is not None and not isinstance(space, spaces.Text | MissionSpace):
        raise ValueError(f"the mission must be text; it is {short(space)}")


def _actions_of(space: spaces.Space[Any]) -> tuple[ActionSpace, Callable[[Any], Any]]:
    if isinstance(space, spaces.Discrete) and space.n <= MOST_ACTIONS:
        start = int(space.start)
        # A Python number: arithmetic with numpy's smallest ones wraps around.
        return ActionSpace.discrete(int(space.n)), lambda action: int(action) + start
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.max() <= MOST_ACTIONS:
        sizes = tuple(int(n) for n in space.nvec.flat)

        def numbers(action: Any) -> Any:
            return np.asarray(action, dtype=space.dtype).reshape(space.shape) + space.start

        return ActionSpace("multi_discrete", sizes), numbers
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and space.shape:
        low, high = (
            tuple(float(x) for x in np.clip(bound, -_LARGEST, _LARGEST).flat)
            for bound in (space.low, space.high)
        )
        if low:

            def vector(action: Any) -> Any:
                given = np.asarray(action, dtype=space.dtype).reshape(space.shape)
                return np.clip(given, space.low, space.high)

            return ActionSpace("continuous", (), low, high), vector
    raise ValueError(
        f"actions must be Discrete or MultiDiscrete with at most {MOST_ACTIONS} values, or a Box "
        f"of floats; they are {short(space)}"
    )


def flat_space(actions: ActionSpace) -> spaces.Space[Any]:
    """The space in which a vector environment is told its actions."""
    if actions.kind == "discrete":
        return spaces.Discrete(actions.length)
    if actions.kind == "multi_discrete":
        return spaces.MultiDiscrete(list(actions.sizes))
    low, high = (np.array(bound, dtype=np.float32) for bound in (actions.low, actions.high))
    return spaces.Box(low, high, dtype=np.float32)


def names_of(env: Any, count: int) -> tuple[str, ...]:
    """Names of an environment's actions: MiniGrid's names if it has them, else numbers."""
    own = getattr(env.unwrapped, "actions", None)
    names = tuple(getattr(own, "__members__", ()))  # of an enumeration
    return names[:count] if len(names) >= count else tuple(map(str, range(count)))
