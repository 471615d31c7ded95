"""Files that a command is asked to write: seen to be possible first, then written whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: What animations are written as.
ANIMATION_ENDINGS = (".gif", ".mp4")


def check_output(path: Path, endings: Sequence[str], option: str = "--out") -> None:
    """See that a file can be written to ``path``, before the work that fills it.

    Args:
        path: where it is to be.
        endings: what its name may end in, such as ``".gif"``; case does not matter.
        option: that gave it, for the message.

    Raises:
        ValueError: if the name ends otherwise, or the folder is missing or not writable.

    >>> check_output(Path("curves.jpg"), (".png", ".svg"))
    Traceback (most recent call last):
        ...
    ValueError: --out must end in .png or .svg; got 'curves.jpg'.
    """
    if path.suffix.lower() not in endings:
        names = " or ".join(filter(None, [", ".join(endings[:-1]), endings[-1]]))
        raise ValueError(f"{option} must end in {names}; got {str(path)!r}.")
    if not path.parent.is_dir():
        raise ValueError(f"{option}: folder {str(path.parent)!r} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{option}: folder {str(path.parent)!r} cannot be written.")


_UNFINISHED = ".tmp"


def is_unfinished(path: Path) -> bool:
    """Whether a file is what a killed process left of one that :func:`whole_file` was to write."""
    return re.search(rf"\.\d+\{_UNFINISHED}$", path.name) is not None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to, which becomes ``path`` at the end and vanishes on any failure.

    Args:
        path: what is replaced, at once, when the block ends well.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:  # Ctrl-C too leaves nothing
        temporary.unlink(missing_ok=True)
        raise
