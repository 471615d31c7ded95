"""A text file as numbers: characters or words, cut into columns or into lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.data.common import check_at_least, check_choice
from lab.disk.named_files import read_text
from lab.running.memory import require_memory
from lab.words import message_of

Unit = Literal["char", "word"]
UNITS: tuple[Unit, ...] = ("char", "word")

#: Tokens with a meaning of their own: what training never showed, and the end of a line of words,
#: which is also what stands before the first token of a line that is a sequence of its own.
UNKNOWN, END = 0, 1
_LINE_END = ""  # among words

#: Bytes of a text at most; as tokens it takes twenty times as many in memory.
LARGEST = 2**32

#: How the text is split: the first part is trained on, the next validates, the last tests.
SHARES = (0.8, 0.1, 0.1)


class Corpus(NamedTuple):
    """A text in three parts, as tokens."""

    vocabulary: tuple[str, ...]  # what token i + 2 stands for
    line_end: int  # the token that ends a line
    train: NDArray[np.int64]  # (tokens,)
    validation: NDArray[np.int64]
    test: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Different tokens, those with a meaning of their own among them."""
        return 2 + len(self.vocabulary)


def read_corpus(path: str | Path, unit: Unit, *, vocabulary: int = 10_000) -> Corpus:
    """Read a text file in UTF-8 and turn it into tokens.

    The tokens are split 80 : 10 : 10 in their order. The vocabulary is what occurs in the training
    part, the most frequent first; all else is one unknown token. Line breaks are characters among
    others; between words they are the token :data:`END`.

    Args:
        path: the file.
        unit: the token: ``char``, or ``word``, which white space separates.
        vocabulary: most tokens that are told apart. Default 10 000.

    Returns:
        The three parts.

    Raises:
        ValueError: in one line, if the file cannot be read or is too short to be split.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_text("a b\\n" * 6 + "a c\\n")
        >>> corpus = read_corpus(path, "word")
        >>> corpus.vocabulary, corpus.train[:4].tolist(), corpus.test.tolist()
        (('a', 'b'), [2, 3, 1, 2], [0, 1])
    """
    check_choice("read_corpus", "unit", unit, UNITS)
    check_at_least("read_corpus", "vocabulary", vocabulary)
    try:
        text = read_text(path, LARGEST)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"read_corpus: {path} cannot be read as UTF-8: {message_of(error)}."
        ) from None
    # A character is an entry of a list, of the part it is in, and a token; a word is longer.
    needed = 24.0 * len(text) if unit == "char" else 0.0
    require_memory(needed, f"read_corpus: {path}", "take a shorter text")
    units = list(text) if unit == "char" else _words(text)
    ends = [round(len(units) * share) for share in np.cumsum(SHARES)]
    parts = [units[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    if min(map(len, parts)) < 2:
        raise ValueError(
            f"read_corpus: {path} must have at least 20 tokens, 80 % to train on, 10 % to validate "
            f"and 10 % to test; it has {len(units)}. Take a longer text."
        )
    counts = Counter(token for token in parts[0] if token)
    known = tuple(token for token, _ in counts.most_common(vocabulary))
    number = {_LINE_END: END, **{token: 2 + i for i, token in enumerate(known)}}
    line_end = number.get("\n", UNKNOWN) if unit == "char" else END
    return Corpus(known, line_end, *(_numbers(part, number) for part in parts))


def _words(text: str) -> list[str]:
    return [word for line in text.splitlines() for word in (*line.split(), _LINE_END)]


def _numbers(units: Sequence[str], number: dict[str, int]) -> NDArray[np.int64]:
    return np.array([number.get(token, UNKNOWN) for token in units], np.int64)


def to_lines(text: NDArray[np.int64], line_end: int) -> list[NDArray[np.int64]]:
    """The text cut behind every end of a line.

    Args:
        text: tokens.
        line_end: the token that ends a line.

    Returns:
        The lines, each with its end; the last one may have none.

    Example:
        >>> [line.tolist() for line in to_lines(np.array([5, 6, 1, 1, 7]), 1)]
        [[5, 6, 1], [1], [7]]
    """
    behind = np.flatnonzero(text == line_end) + 1
    return [line for line in np.split(text, behind) if len(line)]


def to_columns(text: NDArray[np.int64], columns: int) -> NDArray[np.int64]:
    """The text as that many contiguous parts of equal length, side by side; the rest is left out.

    A model that reads the columns from top to bottom reads each part in its order, and its state
    at the end of one piece is that at the beginning of the next one.

    Args:
        text: tokens.
        columns: B.

    Returns:
        ``(L, B)``.

    Raises:
        ValueError: if a column would have fewer than two tokens.

    Example:
        >>> to_columns(np.array([1, 2, 3, 4, 5, 6, 7]), 3)
        array([[1, 3, 5],
               [2, 4, 6]])
    """
    check_at_least("to_columns", "columns", columns)
    length = len(text) // columns
    if length < 2:
        raise ValueError(
            f"to_columns: {len(text)} tokens must fill {columns} columns with two or more each. "
            "Take fewer columns or a longer text."
        )
    return np.ascontiguousarray(text[: length * columns].reshape(columns, length).T)


def pieces(length: int, steps: int) -> list[tuple[int, int]]:
    """Begin and end of the pieces of a column; each token but the first is predicted once.

    Args:
        length: tokens of a column.
        steps: predictions per piece at most.

    Returns:
        Pairs; a piece's inputs are ``column[begin:end]``, its targets one token later.

    Example:
        >>> pieces(8, 3)
        [(0, 3), (3, 6), (6, 7)]
    """
    check_at_least("pieces", "steps", steps)
    return [(begin, min(begin + steps, length - 1)) for begin in range(0, length - 1, steps)]
