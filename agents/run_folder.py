"""A run's folder: configuration, progress table, TensorBoard events, checkpoint."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import platform
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from agents.guards import RunStopped
from agents.output import is_unfinished, whole_file

CONFIG_NAME = "config.toml"
PROGRESS_NAME = "progress.csv"
LOCK_NAME = ".lock"
#: Who holds the lock, in words; of no meaning while nobody does.
HOLDER_NAME = ".lock-holder"
#: Holds why a run's training ended before its time, in one line.
FAILURE_NAME = "failure.txt"

#: Bytes written to see whether a folder can take any.
_PROBE = 2**16

#: What says nothing about a run that has not begun.
_WITHOUT_MEANING = (LOCK_NAME, HOLDER_NAME, ".writable")

#: Part of the name of what an interrupted run left, once it has been trained again.
SET_ASIDE = ".interrupted-"


def require_run_folder(folder: Path) -> None:
    """See that there is a folder, before torch is imported to read what is in it.

    Raises:
        ValueError: in one line, if there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"run folder {str(folder)!r} does not exist; 'rims train' makes one.")


def require_encodable(folder: Path) -> None:
    """See that TensorBoard can write into a folder of this name.

    Raises:
        ValueError: if the name is no UTF-8.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"folder {str(folder)!r} cannot be used: TensorBoard needs a name in UTF-8; "
            "give another, or set LC_ALL=C.UTF-8."
        ) from None


def require_writable(folder: Path) -> None:
    """Make ``folder`` if need be and see that files can be written there.

    Raises:
        ValueError: if they cannot.
    """
    made: list[Path] = []
    try:
        made += [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(made):  # one by one: mkdir(parents=True) calls itself for each
            path.mkdir(exist_ok=True)
        probe = folder / ".writable"
        try:
            write_bytes(probe, bytes(_PROBE))  # an empty file fits a full disk
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        for path in made:  # those that there are now, the innermost first
            with contextlib.suppress(OSError):
                path.rmdir()
        raise ValueError(
            f"folder {str(folder)!r} cannot be written ({error.strerror}); give another."
        ) from None


def require_space(folder: Path, needed: int) -> None:
    """See that the disk has room, before the work that fills it.

    Args:
        folder: exists.
        needed: bytes.

    Raises:
        RunStopped: if it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunStopped(
            f"folder {str(folder)!r} has room for {free / 1e6:,.0f} MB, the run's checkpoints need "
            f"{needed / 1e6:,.0f} MB; make room, or give another."
        )


def lock_folder(folder: Path) -> FileLock:
    """Lock an existing folder against other writers, until released or this process ends.

    Args:
        folder: must exist and be writable.

    Returns:
        The lock, held; release it when done.

    Raises:
        ValueError: if another process holds it.
    """
    lock = FileLock(folder / LOCK_NAME)
    holder = folder / HOLDER_NAME
    try:
        # Whoever only looks whether somebody is writing holds it for a moment too.
        lock.acquire(timeout=1, poll_interval=0.02)
    except Timeout:
        raise ValueError(
            f"folder {str(folder)!r} is in use by {_read(holder) or 'another command'}; "
            "wait until that has ended, or give another."
        ) from None
    except OSError as error:
        raise ValueError(
            f"folder {str(folder)!r} cannot be locked ({error.strerror}); give another."
        ) from None
    with contextlib.suppress(OSError):
        holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    return lock


def _read(path: Path) -> str:
    """A text, or nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def is_empty(folder: Path) -> bool:
    """Whether ``folder`` is missing or holds nothing that says anything.

    Such as a lock, or what is left of a run that was killed before it had begun.
    """
    return not folder.is_dir() or all(
        path.name in _WITHOUT_MEANING or is_unfinished(path) for path in folder.iterdir()
    )


def set_aside(folder: Path) -> None:
    """Rename what an interrupted run left, so that the run can be trained anew in its place.

    Raises:
        ValueError: if something is still writing it.
    """
    if is_empty(folder):
        return
    lock_folder(folder).release()
    number = 1
    while (target := folder.with_name(f"{folder.name}{SET_ASIDE}{number}")).exists():
        number += 1
    os.replace(folder, target)


def claim_run_folder(folder: Path) -> FileLock:
    """Make ``folder`` for a new run and lock it, before any work starts.

    Args:
        folder: the run folder.

    Returns:
        The lock, held; release it when the run has ended.

    Raises:
        ValueError: if it already holds something, is in use, or cannot be written.
    """
    require_encodable(folder)
    _require_empty(folder)
    require_writable(folder)
    lock = lock_folder(folder)
    try:
        _require_empty(folder)  # a run may have begun and ended since the first look
        sweep_unfinished(folder)
    except ValueError:
        lock.release()
        raise
    return lock


def _require_empty(folder: Path) -> None:
    if not is_empty(folder):
        # A run that has just begun also looks like this: whether it is under way matters more.
        if (folder / LOCK_NAME).is_file():
            lock_folder(folder).release()
        go_on = f"'rims resume {folder}' goes on with it; else g" * (folder / CONFIG_NAME).is_file()
        raise ValueError(
            f"run folder {str(folder)!r} is not empty; nothing was changed. "
            f"{go_on or 'G'}ive another --run-dir, or remove it first."
        )


def claim_existing_run(folder: Path) -> FileLock:
    """Lock the existing folder of a run that is to go on, and clear away what a kill left there.

    Returns:
        The lock, held; release it when the run has ended.

    Raises:
        ValueError: if it is in use or cannot be written.
    """
    lock = lock_folder(folder)
    try:
        require_writable(folder)
        sweep_unfinished(folder)
    except BaseException:
        lock.release()
        raise
    return lock


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


def sweep_unfinished(folder: Path) -> None:
    """Remove what killed processes left half-written; only for who writes in ``folder``."""
    for path in folder.iterdir():
        if is_unfinished(path):
            path.unlink(missing_ok=True)


def note_failure(folder: Path, error: BaseException) -> None:
    """Leave in a run's folder why it failed, for a later report, which has nothing else."""
    with contextlib.suppress(OSError):
        write_text(folder / FAILURE_NAME, " ".join(str(error).split()) + "\n")


def noted_failure(folder: Path) -> str:
    """What :func:`note_failure` left, without its full stop; empty if there is nothing."""
    return " ".join(_read(folder / FAILURE_NAME).split()).removesuffix(".")


def read_progress(folder: Path) -> dict[str, list[float]]:
    """The columns of ``progress.csv``, which may be being written: a row cut short is left out.

    Args:
        folder: the run folder.

    Returns:
        Values by name of the column; nothing before the first row.

    Raises:
        ValueError: if there is no such file.
    """
    path = folder / PROGRESS_NAME
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} holds no {PROGRESS_NAME}.")
    text = path.read_bytes().decode("utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    rows = [
        row
        for row in csv.DictReader(io.StringIO(whole))
        if None not in row and None not in row.values()  # neither too many fields nor too few
    ]
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def newest_row(folder: Path) -> dict[str, float]:
    """The last row of a run's ``progress.csv``; empty before the first one."""
    columns = read_progress(folder) if (folder / PROGRESS_NAME).is_file() else {}
    return {name: values[-1] for name, values in columns.items()}
