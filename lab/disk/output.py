"""Output files: checked before the work that fills them, then written whole."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.disk.plain_files import is_plain_file, open_plain

if sys.platform != "win32":  # there nothing is ever taken for abandoned
    import fcntl

#: Endings of animations.
ANIMATION_ENDINGS = (".gif", ".mp4")


def check_output(path: Path, endings: Sequence[str], option: str = "--out") -> None:
    """Refuse a path to which no file can be written, before the work that fills it.

    Args:
        path: the file to write.
        endings: what its name may end in, such as ``".gif"``; case does not matter.
        option: the option that named it, for the message.

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
                f"{option}: {str(path)!r} is not a file and would be lost; give another."
            )
    except OSError as error:
        raise ValueError(
            f"{option}: {str(path)!r} cannot be written ({error.strerror}); give another."
        ) from None


#: Names of files that are being written; they do not grow with the name of what they become.
_UNFINISHED = re.compile(r"\.rims-\d+-[0-9a-f]{8}\.tmp")

#: Names in earlier versions: the file's name, a process and the ending.
_FORMER = re.compile(r"(.+)\.\d+\.tmp")


def is_unfinished(path: Path) -> bool:
    """Whether a file is one that :func:`whole_file` has begun and not finished."""
    named = _UNFINISHED.fullmatch(path.name) or _FORMER.fullmatch(path.name)
    return named is not None and is_plain_file(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to, which becomes ``path`` at the end and vanishes on any failure.

    What killed processes left in the same folder is removed first.

    Args:
        path: replaced at once when the block ends well. A link is replaced, not followed.
    """
    remove_abandoned(path.parent, path.name)
    temporary, handle = _begin(path.parent)
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
    finally:
        if handle is not None:
            os.close(handle)  # not before: as long as it is open, the file has an owner


def write_text(path: Path, text: str) -> None:
    """Replace a file's content at once, so that no reader and no crash sees half of it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content at once, as :func:`write_text` does."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have a new name in ``folder`` survive a failure of the machine; not possible on Windows."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_abandoned(folder: Path, former: str | None = None) -> None:
    """Remove unfinished files that no living process is writing.

    Args:
        folder: the folder to clean.
        former: of files named as by earlier versions, which say nothing of their owner, remove
            those that were to become this one. ``None``: all, where nobody else writes.
    """
    for path in _unfinished_in(folder):
        old = _FORMER.fullmatch(path.name)
        if old is None or former in (None, old[1]):
            with contextlib.suppress(OSError):  # it is gone by now, or another user's
                _remove_unless_owned(path)


def _unfinished_in(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in folder.iterdir() if is_unfinished(path)]
    return []


def _begin(folder: Path) -> tuple[Path, int | None]:
    """Make an unfinished file that belongs to this process as long as its descriptor is open."""
    while True:
        path = folder / f".rims-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if sys.platform == "win32":  # nor can an open file be renamed there
            os.close(handle)
            return path, None
        try:
            owned = _locked(handle)
        except OSError:  # a file system without locks: nobody can take it for abandoned
            owned = True
        if owned and _is_still(path, handle):
            return path, handle
        os.close(handle)  # another process took it for abandoned


def _remove_unless_owned(path: Path) -> None:
    handle = open_plain(path, os.O_RDWR)
    try:
        if _locked(handle) and _is_still(path, handle):
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Lock an open file until it is closed or its process ends; ``False`` if another one has it.

    Raises:
        OSError: where files cannot be locked.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, handle: int) -> bool:
    """Whether a name is that of the open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False
