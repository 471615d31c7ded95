"""Reading files named by a user: they are checked first, and never read beyond a limit."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Protocol

__all__ = ["Bounded", "read_file", "read_text"]

#: Bytes of a file of settings, at most: those that people write have a few thousand.
SETTINGS = 2**20

_OTHER_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def read_file(path: str | os.PathLike[str], most: int = SETTINGS) -> bytes:
    """The content of a regular file, or of the one that a link leads to.

    A pipe would be waited for, a device may never end, and a file can claim more bytes than any
    disk has. All of them are refused before a byte is read.

    Args:
        path: the file.
        most: bytes that are read at most.

    Raises:
        OSError: if it cannot be read, is no regular file or has more bytes.

    Example:
        >>> read_file("/dev/zero")
        Traceback (most recent call last):
        ...
        OSError: it is a device, not a file
    """
    _require_file(path, most)  # before it is opened: a pipe waits then, and a device may act
    with open(path, "rb", opener=_without_waiting) as file:
        bounded = Bounded(file, most)  # in pieces: room is taken for as much as is asked for
        return b"".join(iter(lambda: bounded.read(2**20), b""))


def read_text(path: str | os.PathLike[str], most: int = SETTINGS) -> str:
    """The same of a text in UTF-8; every kind of line break is ``"\\n"``.

    Raises:
        OSError: as :func:`read_file`.
        UnicodeDecodeError: if it is no UTF-8.
    """
    return io.TextIOWrapper(io.BytesIO(read_file(path, most)), encoding="utf-8").read()


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Bounded(io.BufferedIOBase):
    """A stream of which only so many bytes are read; more of them are an error.

    Args:
        file: the open file.
        most: bytes.

    Example:
        >>> Bounded(io.BytesIO(bytes(5)), 4).read()
        Traceback (most recent call last):
        ...
        OSError: it has more than 4 bytes
    """

    def __init__(self, file: _Readable, most: int) -> None:
        super().__init__()
        self._file = file
        self._most = most
        self._read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """The next ``size`` bytes, or all that there are.

        Raises:
            OSError: if there are more than may be read.
        """
        left = self._most - self._read + 1  # by one more than may be, it is told that there are
        content = self._file.read(left if size is None or size < 0 else min(size, left))
        self._read += len(content)
        if self._read > self._most:
            raise OSError(f"it has more than {self._most:,} bytes")
        return content


def _require_file(path: str | os.PathLike[str], most: int) -> None:
    there = Path(path).stat()
    for is_kind, kind in _OTHER_KINDS:
        if is_kind(there.st_mode):
            raise OSError(f"it is {kind}, not a file")
    if there.st_size > most:
        raise OSError(f"it has {there.st_size:,} bytes, more than {most:,}")


def _without_waiting(path: str, flags: int) -> int:
    """Open a file without waiting, in case it has become a pipe since it was checked."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
