"""Results that are computed once in a process, whichever threads need them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

_Given = TypeVarTuple("_Given")
_Made = TypeVar("_Made")

#: One thread at a time makes something, which may take other things to be made.
_lock = threading.RLock()


def once(make: Callable[[*_Given], _Made]) -> Callable[[*_Given], _Made]:
    """``make``, called once for the same arguments; of two threads the second waits.

    Where :func:`functools.cache` would let both make it, and keep one.
    """
    made: dict[tuple[*_Given], _Made] = {}

    @functools.wraps(make)
    def found(*given: *_Given) -> _Made:
        if given not in made:  # else nobody has to wait for what another thread makes
            with _lock:
                if given not in made:
                    made[given] = make(*given)
        return made[given]

    return found
