"""Settings of a run: one frozen dataclass is one TOML file and the options of one command."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_type_hints

import tomli_w

from lab.disk.named_files import read_text
from lab.words import did_you_mean

#: The largest whole number: larger ones fit no tensor and no file.
MOST = 2**40

#: The smallest number above 0.
TINY = math.ulp(0.0)


class ConfigError(ValueError):
    """A setting that cannot work: which field, and the rule it breaks."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} {rule}")
        self.field = field
        self.rule = rule


class Damaged(ValueError):
    """A file is not as it was written: no mistake of the user."""


def option(
    default: Any,
    group: str,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    metavar: str | None = None,
    has_effect: bool = True,
    first: bool = False,
    repeatable: bool = False,
) -> Any:
    """A field of settings, which is also an option of the command line.

    Args:
        default: its value unless given; its type is that of the field.
        group: the heading it stands under in the help.
        help: one sentence.
        low: smallest value of a number.
        high: largest value of a number.
        metavar: placeholder of the value in the help, instead of N, X or NAME.
        has_effect: whether it decides the numbers that come out of a run. Other settings change
            how long the run takes, or where it computes and reads.
        first: whether it stands before the other options of its heading.
        repeatable: whether the option may be given several times, which is the same as all its
            values in one, separated by commas.
    """
    metadata = {
        **{"group": group, "help": help, "low": low, "high": high, "metavar": metavar},
        **{"has_effect": has_effect, "first": first, "repeatable": repeatable},
    }
    return dataclasses.field(default=default, metadata=metadata)


def changed(base: type[Settings], name: str, default: Any, **metadata: Any) -> Any:
    """The field ``name`` of ``base`` with another default, and other ``metadata`` if given."""
    (found,) = (field for field in dataclasses.fields(base) if field.name == name)
    return dataclasses.field(default=default, metadata={**found.metadata, **metadata})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The base of all settings: fields made by :func:`option`, checked at construction.

    The type of a field is ``int``, ``float``, ``bool``, ``str`` or a ``Literal`` of words.

    Raises:
        ConfigError: at construction, for any value that cannot work; it names the field.
    """

    #: Headings under which the options stand in the help of the command line, in this order.
    groups: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            self._check_type(field.name, hints[field.name])
            self._check_value(field, get_args(hints[field.name]))

    def _check_type(self, name: str, hint: Any) -> None:
        value = getattr(self, name)
        kind: type = str if get_args(hint) else hint
        if kind is float and type(value) is int and abs(value) < 2**53:
            object.__setattr__(self, name, float(value))
        elif type(value) is not kind:
            raise ConfigError(name, f"must be of type {kind.__name__}; got {value!r}.")

    def _check_value(self, field: dataclasses.Field[Any], choices: tuple[str, ...]) -> None:
        name, value = field.name, getattr(self, field.name)
        if choices and value not in choices:
            hint = did_you_mean(value, choices)
            raise ConfigError(name, f"must be one of {', '.join(choices)}; got {value!r}{hint}")
        if isinstance(value, int | float):
            low, high = field.metadata["low"], field.metadata["high"]
            if type(value) is int:
                high = min(high, MOST)
            if not low <= value <= high or abs(value) == math.inf:  # the first is false for NaN
                raise ConfigError(name, f"must be {_range(low, high, value)}; got {value}.")

    @property
    def unused(self) -> Mapping[str, str]:
        """Settings that do nothing in this run because of others, with what they need.

        A reason that begins with "needs a " is a property of the core or model.
        """
        return {}

    @classmethod
    def names(cls) -> list[str]:
        """The names of all settings."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def fields_in_order(cls) -> list[dataclasses.Field[Any]]:
        """All fields in the order of the help: heading after heading."""

        def place(field: dataclasses.Field[Any]) -> tuple[int, bool]:
            return cls.groups.index(field.metadata["group"]), not field.metadata["first"]

        return sorted(dataclasses.fields(cls), key=place)

    @classmethod
    def without_effect(cls) -> tuple[str, ...]:
        """Settings that do not decide the numbers that come out of a run."""
        return tuple(f.name for f in dataclasses.fields(cls) if not f.metadata["has_effect"])

    def differences(self, other: Settings) -> dict[str, tuple[Any, Any]]:
        """Settings with an effect that differ: here and in ``other``, by name.

        What neither of the two uses makes no difference.
        """
        ignored = {*self.without_effect(), *(self.unused.keys() & other.unused.keys())}
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in self.names()}
        return {n: (a, b) for n, (a, b) in pairs.items() if n not in ignored and a != b}

    def to_toml(self) -> str:
        """All settings as TOML."""
        return tomli_w.dumps({f.name: getattr(self, f.name) for f in self.fields_in_order()})

    @classmethod
    def read_some(cls, path: Path) -> dict[str, Any]:
        """The settings in a TOML file such as a run's ``config.toml``; values are not checked yet.

        Raises:
            ValueError: in one line, if it cannot be read or holds a setting there is not.
        """
        values = cls._of_file(path, read_toml(path))
        known = cls.names()
        for name in values:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"{str(path)!r} holds an unknown setting {name!r}{hint}")
        return values

    @classmethod
    def _of_file(cls, path: Path, values: dict[str, Any]) -> dict[str, Any]:
        """The settings in a file's content; a subclass takes out what else it has written there."""
        return values

    @classmethod
    def read(cls, path: Path) -> Self:
        """The settings in a run's ``config.toml``; what is not in it has its default.

        Raises:
            ValueError: as :meth:`read_some`, and for a value that cannot be.
        """
        settings = cls.read_some(path)
        try:
            return cls(**settings)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} cannot be used: {error}") from None


def read_toml(path: Path, what: str = "a configuration") -> dict[str, Any]:
    """The content of a TOML file named by a user.

    Raises:
        ValueError: in one line, if it cannot be read as ``what``.
    """
    try:
        return tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as {what}: {error}.") from None


def _range(low: float, high: float, got: float) -> str:
    if low == TINY:
        return f"above 0 and at most {high:g}"
    if high in (MOST, math.inf):
        return "at most 2**40" if got > MOST else f"at least {low:g}"
    return f"in [{low:g}, {high:.10g}]"
