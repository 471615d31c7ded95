"""What is wrong with a setting or a file, said so that a command can name it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting that cannot work: which field, and the rule it breaks."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} {rule}")
        self.field = field
        self.rule = rule


class Damaged(ValueError):
    """A file is not as it was written: no mistake of the user."""


def did_you_mean(word: str, known: Iterable[str], otherwise: str = ".") -> str:
    """The end of a complaint: the closest of what there is, or else a full stop.

    Args:
        word: what was given.
        known: what there is.
        otherwise: the end where nothing is close.

    Example:
        >>> did_you_mean("lsmt", ["lstm", "gru"]), did_you_mean("x", ["lstm", "gru"])
        ("; did you mean 'lstm'?", '.')
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else otherwise
