"""The rank of this process among those that torchrun started."""

from __future__ import annotations

import os


def launched() -> tuple[int, int]:
    """Rank and number of processes that torchrun has started this one as; 0 and 1 without it."""
    rank, size = _number("RANK", -1), _number("WORLD_SIZE", 0)
    return (rank, size) if 0 <= rank < size else (0, 1)


def _number(name: str, otherwise: int) -> int:
    """The value of an environment variable, if it is a whole number."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else otherwise


def speaks() -> bool:
    """Whether this process is the first on its machine; it reports the errors that all find."""
    return launched()[1] == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def processes_here(size: int) -> int:
    """The number of processes of a run, ``size`` in all, that are on this machine."""
    return max(1, min(size, _number("LOCAL_WORLD_SIZE", 1)))


def local_device(name: str) -> str:
    """The device of this process: of ``"cuda"``, each process on a machine gets its own.

    >>> local_device("cpu")
    'cpu'
    """
    return f"cuda:{_number('LOCAL_RANK', 0)}" if name == "cuda" and launched()[1] > 1 else name
