"""What readers of a comparison have to know of its runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple


class Flag(NamedTuple):
    """Something about a run, or all runs of a core, that readers of the tables have to know."""

    kind: Literal["missing", "incomplete", "different", "failed"]
    of: str  # name of the run, or the core
    what: str  # one line

    def __str__(self) -> str:
        return f"{self.of}: {self.what}"


def grouped(flags: Iterable[Flag]) -> list[str]:
    """One line for flags that say the same of several runs.

    Example:
        >>> grouped([Flag("missing", "a", "no run."), Flag("missing", "b", "no run.")])
        ['a, b: no run.']
    """
    names: dict[str, list[str]] = {}
    for flag in flags:
        names.setdefault(flag.what, []).append(flag.of)
    return [f"{', '.join(of)}: {what}" for what, of in names.items()]
