"""Object files on disk: named by a hash of all they are made from, and checked when read.

A file holds a mark, a SHA-256 and the object; the hash is of the key and the object. So a file that
was cut, changed, renamed or written by something else is noticed, and its object is compiled again.
Files appear whole or not at all. Several processes and machines may share a folder; of processes
that need the same object at once, one compiles it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_MARK = b"rims kernel 1\n"
_SUFFIX, _UNFINISHED, _LOCK = ".kernel", ".unfinished", ".lock"
#: More bytes than any kernel has.
_LIMIT = 64 << 20
#: Seconds after which files that nothing has read, and unfinished ones, are removed.
_UNUSED, _ABANDONED = 180 * 86400, 86400
#: Seconds that a process waits for another one that compiles.
_PATIENCE = 60.0


def folder() -> Path:
    """Folder of the kernels.

    ``RIMS_CACHE_DIR`` names it; else it is ``rims`` in ``NUMBA_CACHE_DIR``, else in the user's
    folder for caches.
    """
    if own := os.environ.get("RIMS_CACHE_DIR"):
        return Path(own)
    return Path(os.environ.get("NUMBA_CACHE_DIR") or _of_user()) / "rims"


def _of_user() -> Path:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")


def path_of(name: str, key: str) -> Path:
    """The file of an object.

    Args:
        name: for people who look into the folder.
        key: everything the object depends on.
    """
    return folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}{_SUFFIX}"


def load(path: Path, key: str, *, warn: bool = True) -> bytes | None:
    """The object in a file; None if there is none, and with a warning if it is damaged."""
    say = _warn if warn else _silent
    try:
        content = _read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        say(f"{path}: cannot be read ({error.strerror}); the kernel is compiled again.")
        return None
    head = _MARK + _hash(key, content[_after_head() :])
    if content[: _after_head()] == head:
        return content[_after_head() :]
    say(f"{path}: this kernel file is damaged; it is compiled again and replaced.")
    return None


def _read(path: Path) -> bytes:
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    with open(descriptor, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LIMIT:
            return b""
        return file.read(_LIMIT)


@contextmanager
def compiling(path: Path) -> Iterator[None]:
    """Wait until no other process compiles the object of this file, and make others wait.

    Processes do not wait where files cannot be locked, or longer than a minute.
    """
    lock = FileLock(path.with_name(path.stem.rpartition("-")[2] + _LOCK))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire(timeout=_PATIENCE)
    except (OSError, Timeout, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def save(path: Path, key: str, code: bytes) -> None:
    """Keep an object; warn if that is impossible."""
    unfinished = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(_UNFINISHED, path.stem + "-", path.parent)
        with open(descriptor, "wb") as file:
            file.write(_MARK + _hash(key, code) + code)
        os.replace(unfinished, path)
    except OSError as error:
        if unfinished is not None:
            Path(unfinished).unlink(missing_ok=True)
        _warn(
            f"{path.parent}: compiled kernels cannot be kept there ({error.strerror}); every "
            "process will compile them again. Set RIMS_CACHE_DIR to a folder that can be written."
        )
        return
    _tidy(path.parent)


def _tidy(place: Path) -> None:
    """Remove files that killed processes left, and kernels that nothing has used for long."""
    now = time.time()
    for suffix, age in ((_UNFINISHED, _ABANDONED), (_LOCK, _ABANDONED), (_SUFFIX, _UNUSED)):
        for file in place.glob(f"*{suffix}"):
            try:
                about = file.lstat()
                if stat.S_ISREG(about.st_mode) and now - max(about.st_atime, about.st_mtime) > age:
                    file.unlink()
            except OSError:  # another process was faster, or may not
                continue


def _hash(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + code).digest()


def _after_head() -> int:
    return len(_MARK) + hashlib.sha256().digest_size


def _silent(_: str) -> None:
    pass


def _warn(message: str) -> None:
    warnings.warn(f"rims: {message}", RuntimeWarning, stacklevel=2)
