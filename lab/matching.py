"""The size that gives one network as many parameters as another."""

from __future__ import annotations

from collections.abc import Callable

#: How far from each other, in relation, the two counts may be.
TOLERANCE = 0.02


def nearest_size(
    count: Callable[[int], int], target: int, unit: int, *, core: str, reference: str
) -> int:
    """The hidden size at which ``count`` comes nearest to a number of parameters.

    Args:
        count: parameters at a hidden size; more of it must mean more of them.
        target: parameters wanted.
        unit: hidden sizes are multiples of it.
        core: whose size it is, for the message.
        reference: what has ``target`` parameters, for the message.

    Returns:
        The hidden size, a multiple of ``unit``.

    Raises:
        ValueError: in one line, if the best is off by more than 2 %.

    Example:
        >>> nearest_size(lambda size: size * size, 10_000, 3, core="a", reference="b")
        99
    """
    low, high = 0, 1  # in units; a core of size 0 has too few
    while high <= target and count(high * unit) < target:  # that does not grow never has enough
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle * unit) < target else (low, middle)
    units = min((u for u in (low, high) if u), key=lambda u: abs(count(u * unit) - target))
    best = count(units * unit)
    if abs(best - target) > TOLERANCE * target:
        raise ValueError(
            f"core {core!r} cannot have about as many parameters as {reference!r}, "
            f"which has {target}: the nearest is {best}, with hidden size {units * unit}. "
            f"Name {core!r} first, or take another --hidden-size."
        )
    return units * unit
