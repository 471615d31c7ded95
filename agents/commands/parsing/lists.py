"""Options that take a list with commas; empty and repeated entries are mistakes."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import click

from lab.settings import ConfigError

if TYPE_CHECKING:
    from click import ParamType as ParamType
else:

    class ParamType(click.ParamType):
        """click's, which can be subscripted since 8.4 only: types are for checkers alone."""

        def __class_getitem__(cls, _: Any) -> type[ParamType]:
            return cls


COUNT = click.IntRange(1, 10**6)

MOST_SEEDS = 10**6


def entries(text: str) -> list[str]:
    """The entries between commas.

    Raises:
        ValueError: if one is empty, or there twice.

    Example:
        >>> entries("lstm, gru")
        ['lstm', 'gru']
        >>> entries("lstm,,gru")
        Traceback (most recent call last):
        ...
        ValueError: 'lstm,,gru' has an empty entry; name something before and after every comma.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        rule = "name something before and after every comma"
        raise ValueError(f"{text!r} has an empty entry; {rule}.")
    return _each_once(words, text)


def _each_once(found: list[Any], text: str) -> list[Any]:
    seen: set[Hashable] = set()
    for one in found:
        if one in seen:
            raise ValueError(f"{text!r} names {str(one)!r} twice; name each once.")
        seen.add(one)
    return found


class CommaList(ParamType[tuple[Any, ...]]):
    """An option with a list as its value."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Split and check; what is a tuple already was checked before."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.read(str(value)))
        except ConfigError as error:
            self.fail(error.rule, param, ctx)
        except click.BadParameter as error:
            self.fail(error.message, param, ctx)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    @abstractmethod
    def read(self, text: str) -> Sequence[Any]:
        """The values.

        Raises:
            ValueError: in one line, for one that cannot be.
        """


class CommaSeparated(CommaList):
    """One or more words, from ``choices`` if given.

    ``check`` raises ConfigError for a word that cannot be.
    """

    name = "names"

    def __init__(
        self, choices: Sequence[str] = (), check: Callable[[str], None] | None = None
    ) -> None:
        self.choices = choices
        self.check = check

    def read(self, text: str) -> list[str]:
        """The words."""
        words = entries(text)
        for word in words:
            if self.choices and word not in self.choices:
                raise ValueError(f"{word!r} is not one of {', '.join(self.choices)}.")
            if self.check is not None:
                self.check(word)
        return words


class Numbers(CommaList):
    """Positive integers: those of ``names``, else one or more different ones, up to ``most``."""

    name = "numbers"

    def __init__(self, names: Sequence[str] = (), most: int = 10**6) -> None:
        self.names = names
        self.of_each = click.IntRange(1, most)

    def read(self, text: str) -> list[int]:
        """The numbers."""
        words = [word.strip() for word in text.split(",")] if self.names else entries(text)
        if self.names and len(words) != len(self.names):
            raise ValueError(f"{text!r} is not {len(self.names)} numbers, {','.join(self.names)}.")
        numbers = [self.of_each(word) for word in words]
        return numbers if self.names else _each_once(numbers, text)


class Seeds(CommaList):
    """Seeds: a number of them, counted from 0, or a list: ``3,7``, ``0-4``."""

    name = "seeds"

    def read(self, text: str) -> list[int]:
        """All seeds, written out."""
        parts = entries(text)
        if not all(re.fullmatch(r"[0-9]{1,10}( *- *[0-9]{1,10})?", part) for part in parts):
            raise ValueError(f"must be a count or a list such as 3,7 or 0-4; got {text!r}.")
        halves = [part.partition("-") for part in parts]
        ends = [(int(first), int(last or first)) for first, _, last in halves]
        if parts[0].isdigit() and len(parts) == 1:
            ends = [(0, int(parts[0]) - 1)]
        if any(last < first or last >= 2**31 for first, last in ends):
            raise ValueError(f"{text!r}: at least one seed is needed, and none above 2**31 - 1.")
        if sum(last - first + 1 for first, last in ends) > MOST_SEEDS:
            raise ValueError(f"{text!r} are more than {MOST_SEEDS} seeds.")
        return _each_once([n for first, last in ends for n in range(first, last + 1)], text)
