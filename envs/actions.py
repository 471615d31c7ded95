"""Spaces of actions; MiniGrid's actions by name, and choosing some of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np

ActionKind = Literal["discrete", "multi_discrete", "continuous"]

#: Values of one number of an action, at most: each is kept in a byte.
MOST_ACTIONS = 256

#: Actions of every MiniGrid and BabyAI task, in the order of their numbers.
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")

#: The name for all actions that a task has.
ALL_ACTIONS = "all"


def parse_actions(text: str) -> tuple[int, ...] | None:
    """The numbers of the actions named in ``text``, in MiniGrid's order; None for ``"all"``.

    Args:
        text: ``"all"``, or names of :data:`ACTIONS` separated by commas.

    Raises:
        ValueError: if it names none, one twice, or one there is not.

    Example:
        >>> parse_actions("forward, left"), parse_actions("all")
        ((0, 2), None)
    """
    names = [name.strip() for name in text.split(",")]
    if names == [ALL_ACTIONS]:
        return None
    if not set(names) <= set(ACTIONS) or len(set(names)) < len(names):
        rule = f"must be {ALL_ACTIONS} or different names of {', '.join(ACTIONS)}"
        raise ValueError(f"{rule}, separated by commas; got {text!r}.")
    return tuple(sorted(ACTIONS.index(name) for name in names))


def action_names(numbers: Iterable[int]) -> list[str]:
    """Names of actions; an action that MiniGrid does not know is named by its number.

    Example:
        >>> action_names((0, 2, 7))
        ['left', 'forward', '7']
    """
    return [ACTIONS[n] if n < len(ACTIONS) else str(n) for n in numbers]


class ActionSpace(NamedTuple):
    """The actions of an environment: one number, several numbers, or a vector in a box.

    Args:
        kind: which of them.
        sizes: of numbers, how many values each has, from 0.
        low: of a box, the smallest value of each component.
        high: of a box, the largest.
    """

    kind: ActionKind
    sizes: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @classmethod
    def discrete(cls, count: int) -> Self:
        """One number in ``[0, count)``."""
        return cls("discrete", (count,))

    @property
    def length(self) -> int:
        """Actions to choose from if they are single numbers; else components of an action."""
        return self.sizes[0] if self.kind == "discrete" else len(self.sizes or self.low)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one action: () or (components,)."""
        return () if self.kind == "discrete" else (self.length,)

    @property
    def dtype(self) -> type[np.uint8] | type[np.float32]:
        """The type in which actions are kept."""
        return np.float32 if self.kind == "continuous" else np.uint8

    def __str__(self) -> str:
        """The space in words.

        >>> str(ActionSpace.discrete(3)), str(ActionSpace("continuous", (), (-2.0,), (2.0,)))
        ('3 actions', 'continuous actions of 1 in [-2, 2]')
        """
        if self.kind == "discrete":
            return f"{self.length} actions"
        if self.kind == "multi_discrete":
            return f"actions of {', '.join(map(str, self.sizes))} values"
        return f"continuous actions of {self.length} in [{min(self.low):g}, {max(self.high):g}]"

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read a space from JSON, which somebody may have edited.

        Raises:
            TypeError: if it is none.

        >>> ActionSpace.parse({"kind": "multi_discrete", "sizes": [2, 3], "low": [], "high": []})
        ActionSpace(kind='multi_discrete', sizes=(2, 3), low=(), high=())
        """
        wrong = TypeError(f"action_space must be a kind with sizes or bounds; got {value!r}")
        if not isinstance(value, dict) or value.keys() != set(cls._fields):
            raise wrong
        lists = [value[name] for name in ("sizes", "low", "high")]
        if value["kind"] not in get_args(ActionKind) or not all(isinstance(x, list) for x in lists):
            raise wrong
        sizes, low, high = lists
        if not all(type(n) is int and 1 <= n <= MOST_ACTIONS for n in sizes):
            raise wrong
        if not all(type(x) is float and math.isfinite(x) for x in (*low, *high)):
            raise wrong
        continuous = value["kind"] == "continuous"
        few = len(sizes) != 1 if value["kind"] == "discrete" else not sizes
        if len(low) != len(high) or (bool(sizes) or not low if continuous else bool(low) or few):
            raise wrong
        return cls(value["kind"], tuple(sizes), tuple(low), tuple(high))
