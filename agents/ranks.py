"""As which of several processes torchrun has started this one."""

from __future__ import annotations

import os


def launched() -> tuple[int, int]:
    """Rank and number of processes that torchrun has started this one as; 0 and 1 without it."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return (int(rank), int(size)) if rank.isdecimal() and size.isdecimal() else (0, 1)


def speaks() -> bool:
    """Whether this process is the first on its machine, which tells what all there find wrong."""
    return launched()[1] == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def processes_here(size: int) -> int:
    """How many of the ``size`` processes of a run are on this machine."""
    return min(size, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def local_device(name: str) -> str:
    """The device of this process: of ``"cuda"``, each process on a machine gets its own.

    >>> local_device("cpu")
    'cpu'
    """
    return (
        f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" and launched()[1] > 1 else name
    )
