"""As which of several processes torchrun has started this one."""

from __future__ import annotations

import os


def launched() -> tuple[int, int]:
    """Rank and number of processes that torchrun has started this one as; 0 and 1 without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def local_device(name: str) -> str:
    """The device of this process: of ``"cuda"``, each process on a machine gets its own.

    >>> local_device("cpu")
    'cpu'
    """
    return (
        f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" and launched()[1] > 1 else name
    )
