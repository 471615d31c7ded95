"""The size that gives one network as many parameters as another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from lab.cores import CoreSettings

Config = TypeVar("Config", bound=CoreSettings)

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
        core: the core of this size, for the message.
        reference: the core with ``target`` parameters, for the message.

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


def matched(config: Config, reference: Config, parameters: Callable[[Config], int]) -> Config:
    """The settings with the hidden size that gives one core as many parameters as another.

    The counts are as near to each other as whole sizes allow (for cores with mechanisms, multiples
    of ``num_rims``). The core "none" has no recurrent parameters and keeps its size. A class with
    an import path is tried at sizes of all kinds; more of them must mean more parameters.

    Args:
        config: the core whose size is sought; its own does not count.
        reference: the core to be equal to.
        parameters: counts those of a core.

    Raises:
        ValueError: in one line, if the best is off by more than 2 %, if the reference has no
            recurrent parameters, or for an import path whose class cannot be used.
    """
    if config.core == "none":
        return config
    if reference.core == "none":
        raise ValueError("core 'none' has no recurrent parameters that another could match.")

    def count(hidden_size: int) -> int:
        return parameters(replace(config, hidden_size=hidden_size))

    target, unit = parameters(reference), config.size_unit
    size = nearest_size(count, target, unit, core=config.core, reference=reference.core)
    return replace(config, hidden_size=size)
