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
        ValueError: if the name ends otherwise or is too long, the folder is missing or not
            writable, or what is there is a folder, a pipe or a device.

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
    try:
        if path.exists() and not path.is_file():
            raise ValueError(
                f"{option}: {str(path)!r} is no file, and would be lost; give another."
            )
        probe = _temporary(path)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{option}: {str(path)!r} cannot be written ({error.strerror}); give another."
        ) from None


_UNFINISHED = ".tmp"
_LONGEST_NAME = 255  # bytes, on nearly every file system


def is_unfinished(path: Path) -> bool:
    """Whether a file is what a killed process left of one that :func:`whole_file` was to write."""
    return re.search(rf"\.\d+\{_UNFINISHED}$", path.name) is not None


def _temporary(path: Path) -> Path:
    """The name that a file has until it is whole: never longer than a name may be."""
    ending = f".{os.getpid()}{_UNFINISHED}"
    name = os.fsencode(path.name)[: _LONGEST_NAME - len(ending)]
    return path.with_name(name.decode(errors="ignore") + ending)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to, which becomes ``path`` at the end and vanishes on any failure.

    Args:
        path: what is replaced, at once, when the block ends well.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:  # a write tells no name
        temporary.unlink(missing_ok=True)
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise  # it says itself what it is about
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:  # Ctrl-C too leaves nothing
        temporary.unlink(missing_ok=True)
        raise
