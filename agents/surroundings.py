"""What a command finds around it, brought in order before a library stumbles over it."""

from __future__ import annotations

import contextlib
import os
import sys

#: What is asked of matplotlib for windows and dates: figures of these commands have neither.
_UNUSED = ("MPLBACKEND", "SOURCE_DATE_EPOCH")


def prepare() -> None:
    """Open what is closed of the three standard streams, and leave out variables without a use.

    Where a stream is closed, the next file that is opened takes its number, and would receive what
    is printed.
    """
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
    """See that there is one: a path is relative to it, and libraries of torch end without it.

    Raises:
        ValueError: in one line, if it was removed.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise ValueError(
            f"the working directory cannot be used ({error.strerror}); change into another one."
        ) from None
