"""Checks and repairs of a command's environment, made before a library fails because of it."""

from __future__ import annotations

import contextlib
import os
import sys

from lab.running.memory import left_to_process

#: Variables that matplotlib reads for windows and dates: these figures have neither.
_UNUSED = ("MPLBACKEND", "SOURCE_DATE_EPOCH")

#: Variables by which a user says how threads of OpenMP wait for work.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

#: Bytes of address space that no process does with less which imports torch: its libraries abort.
_TORCH = 600e6


def prepare() -> None:
    """Open what is closed of the three standard streams, and set variables that libraries read.

    Where a stream is closed, the next file that is opened takes its number, and would receive what
    is printed. Threads of torch that have nothing to do sleep: by default they spin, and two runs
    with two threads each on two processors would take many times as long.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"  # read when torch is imported
    for name in _UNUSED:
        os.environ.pop(name, None)
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, stream) is not None:
            continue
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue  # it is in use by something else
        handle = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        setattr(sys, stream, os.fdopen(handle, "r" if stream == "stdin" else "w"))


def require_working_directory() -> None:
    """Refuse a missing working directory: torch's libraries crash without it.

    Raises:
        ValueError: in one line, if it was removed.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise ValueError(
            f"the working directory cannot be used ({error.strerror}); change into another one."
        ) from None


def require_room_for_torch() -> None:
    """Refuse a memory limit too low for torch's libraries, which would abort without a message.

    Raises:
        ValueError: in one line.
    """
    left = left_to_process()
    if left < _TORCH:
        raise ValueError(
            f"the limit on memory ('ulimit -v') leaves {max(0.0, left) / 1e9:.1f} GB, and torch "
            f"alone needs more than {_TORCH / 1e9:.1f} GB; raise the limit."
        )
