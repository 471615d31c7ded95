"""Files in a folder that somebody else may have made: none is reached through a link."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

#: Bytes that a file of a run has at most, unless a caller knows better.
MOST_BYTES = 2**26

#: Not on Windows; a pipe or device that took the place of a file is not waited for.
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISREG, "a file"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class NotPlain(OSError):
    """A name leads elsewhere than to a regular file of its own; ``strerror`` says where."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.EINVAL, why, str(path))

    def __str__(self) -> str:
        return f"{self.filename!r}: {self.strerror}"


class TooLarge(NotPlain):
    """A file has more bytes than it may have."""


def kind_of(path: Path) -> str:
    """The kind of a path, links not followed: "a file", "a symbolic link"; "" if it is missing."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "a device")


def is_plain_file(path: Path) -> bool:
    """Whether there is a regular file under this very name."""
    return kind_of(path) == "a file"


def require_plain_file(path: Path) -> None:
    """Refuse what is neither missing nor a regular file.

    Raises:
        NotPlain: if it is a link, a folder, a pipe or a device.
    """
    if (kind := kind_of(path)) not in ("", "a file"):
        raise NotPlain(path, f"it is {kind}, not a file of its own")


def require_plain_folder(path: Path) -> None:
    """Refuse what is neither missing nor a folder that stands in this very place.

    Raises:
        ValueError: in one line, if it is a link or a file.
    """
    if (kind := kind_of(path)) not in ("", "a folder"):
        cure = "move the folder itself there" if "link" in kind else "remove it"
        raise ValueError(f"{str(path)!r} is {kind}, not a folder of its own; {cure}.")


def require_no_link(path: Path) -> None:
    """Refuse a link; what else is under the name is somebody else's to judge.

    Raises:
        ValueError: in one line, if it is one.
    """
    if path.is_symlink():
        require_plain_folder(path)


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file, without following a link.

    Returns:
        Its descriptor, to be closed.

    Raises:
        NotPlain: if it is none.
        OSError: if it is missing or cannot be opened.
    """
    require_plain_file(path)
    handle = os.open(path, flags | _FLAGS)
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # it was exchanged just now
        os.close(handle)
        raise NotPlain(path, "it is not a regular file")
    return handle


def read_plain(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        most: bytes it may have.

    Raises:
        NotPlain: if it is no regular file; :class:`TooLarge` if it is larger.
        OSError: if it is missing or cannot be read.
    """
    with os.fdopen(open_plain(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise TooLarge(path, f"it has {size:,} bytes, more than {most:,}")
        return file.read(size)


def read_plain_text(path: Path, most: int = MOST_BYTES) -> str:
    """The content of a regular file, as :func:`read_plain` reads it, decoded from UTF-8.

    Raises:
        UnicodeDecodeError: if it is no text.
    """
    return read_plain(path, most).decode("utf-8")
