"""MiniGrid's actions by name, and choosing some of them."""

from __future__ import annotations

from collections.abc import Iterable

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
