"""The lock of a folder: one command writes in it at a time."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from filelock import FileLock, Timeout

from lab.disk.output import whole_file
from lab.disk.plain_files import NotPlain, kind_of, read_plain_text, require_plain_file

LOCK_NAME = ".lock"
#: Names the holder of the lock; meaningless while the lock is free.
HOLDER_NAME = ".lock-holder"

_UNKNOWN = "another command"


def lock_folder(folder: Path) -> FileLock:
    """Lock an existing folder against other writers, until released or this process ends.

    Args:
        folder: must exist and be writable.

    Returns:
        The lock, held; release it when done.

    Raises:
        ValueError: if another process holds it.
    """
    lock = acquire_lock(folder)
    note_holder(folder)
    return lock


def acquire_lock(folder: Path) -> FileLock:
    """Lock a folder as :func:`lock_folder` does, but do not note the holder yet."""
    path = folder / LOCK_NAME
    try:
        _require_plain_lock(path)
        lock = FileLock(path)
        # A command that only checks for a writer holds the lock for a moment, too.
        lock.acquire(timeout=1, poll_interval=0.02)
    except Timeout:
        holder = _holder(folder)
        raise ValueError(
            f"folder {str(folder)!r} is in use by {holder}; "
            "wait until that has ended, or give another."
        ) from None
    except OSError as error:
        raise ValueError(
            f"folder {str(folder)!r} cannot be locked ({error.strerror}); give another."
        ) from None
    return lock


def note_holder(folder: Path) -> None:
    """Say in a locked folder who holds the lock, for those that are refused."""
    with (
        contextlib.suppress(OSError),
        whole_file(folder / HOLDER_NAME) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        file.write(f"process {os.getpid()} on {platform.node()}")


def require_unlocked(folder: Path) -> None:
    """Refuse a folder in which another command writes; nothing in it is changed.

    Raises:
        ValueError: if one does.
    """
    if kind_of(folder / LOCK_NAME):
        acquire_lock(folder).release()


def has_writer(folder: Path) -> bool | None:
    """Whether a command holds the lock of ``folder``; None if that cannot be found out."""
    path = folder / LOCK_NAME
    if not kind_of(path):
        return False
    try:
        _require_plain_lock(path)
        lock = FileLock(path)
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return None
    lock.release()
    return False


def _require_plain_lock(path: Path) -> None:
    """Refuse a lock that is no plain file: some versions of filelock empty it, and follow links.

    Raises:
        OSError: if the file is a link, or not empty.
    """
    require_plain_file(path)
    if kind_of(path) and path.stat().st_size:
        raise NotPlain(path, f"{LOCK_NAME} is not empty: no lock of a run")


def _holder(folder: Path) -> str:
    """Who noted last that they hold the lock."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return read_plain_text(folder / HOLDER_NAME, 2**10) or _UNKNOWN
    return _UNKNOWN
