"""Wrappers of environments by name.

Gymnasium and minigrid are imported inside the functions: that takes 0.3 s.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final

from envs.ids import load_id
from lab.words import did_you_mean

__all__ = ["only_observations", "parse_wrappers", "wrapper_class"]

#: Where a wrapper is looked for that names no module, in this order.
_MODULES: Final = ("minigrid.wrappers", "gymnasium.wrappers")


def parse_wrappers(text: str) -> tuple[str, ...]:
    """The names in ``text``, separated by commas; none for "".

    Raises:
        ValueError: in one line, for a name that is no wrapper.

    Example:
        >>> parse_wrappers("RGBImgPartialObsWrapper, FlattenObservation")
        ('RGBImgPartialObsWrapper', 'FlattenObservation')
    """
    names = tuple(name.strip() for name in text.split(",")) if text.strip() else ()
    for name in names:
        wrapper_class(name)
    return names


def wrapper_class(name: str) -> type[Any]:
    """The class of a wrapper: of minigrid.wrappers or gymnasium.wrappers, or ``module:Class``.

    Raises:
        ValueError: in one line, if there is no such wrapper, or its module cannot be imported.

    Example:
        >>> wrapper_class("RGBImgPartialObsWrapper").__module__
        'minigrid.wrappers'
    """
    import gymnasium

    try:
        short = load_id(name)  # imports the module that it names
    except ValueError as error:
        raise ValueError(str(error).replace("environment", "wrapper", 1)) from None
    module = name.rpartition(":")[0]
    places = [importlib.import_module(place) for place in ((module,) if module else _MODULES)]
    known: dict[str, type[Any]] = {}
    for place in places:
        for label, found in vars(place).items():
            if isinstance(found, type) and issubclass(found, gymnasium.Wrapper):
                known.setdefault(label, found)
    if short not in known:
        hint = did_you_mean(
            short,
            known,
            f"; it is a class of {' or '.join(place.__name__ for place in places)}. One of a "
            "module of yours is module:Class.",
        )
        raise ValueError(f"unknown wrapper {name!r}{hint}")
    return known[short]


def only_observations(names: Sequence[str]) -> bool:
    """Whether wrappers change observations alone, so that rewards and ends stay as they are.

    >>> only_observations(["RGBImgObsWrapper"]), only_observations(["ActionBonus"])
    (True, False)
    """
    import gymnasium

    return all(issubclass(wrapper_class(name), gymnasium.ObservationWrapper) for name in names)
