"""Parts of messages: spelling help, errors in one line, plurals."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], otherwise: str = ".") -> str:
    """The end of an error message: the closest known word, or else a full stop.

    Args:
        word: the word that was given.
        known: the words that exist.
        otherwise: the end where nothing is close.

    Example:
        >>> did_you_mean("lsmt", ["lstm", "gru"]), did_you_mean("x", ["lstm", "gru"])
        ("; did you mean 'lstm'?", '.')
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else otherwise


def message_of(error: BaseException) -> str:
    """An exception's message in one line, without a full stop; its type where it has none.

    Example:
        >>> message_of(ValueError("not a\\n  number.")), message_of(EOFError())
        ('not a number', 'EOFError')
    """
    return " ".join(str(error).split()).removesuffix(".") or type(error).__name__


def one_line(error: BaseException) -> str:
    """An exception's type, and its message as :func:`message_of` gives it.

    Example:
        >>> one_line(ValueError("not a\\n  number.")), one_line(EOFError())
        ('ValueError: not a number', 'EOFError')
    """
    message, name = message_of(error), type(error).__name__
    return name if message == name else f"{name}: {message}"


def plural(count: int | str, noun: str) -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "seed"), plural(2, "seed"), plural("1 or 2", "thread")
        ('1 seed', '2 seeds', '1 or 2 threads')
    """
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}s"
