"""A run's folder: settings, progress table, TensorBoard events, checkpoints."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

from filelock import FileLock

from lab.disk.lock import (
    HOLDER_NAME,
    LOCK_NAME,
    acquire_lock,
    note_holder,
    require_unlocked,
)
from lab.disk.output import is_unfinished, remove_abandoned, write_bytes, write_text
from lab.disk.plain_files import (
    NotPlain,
    is_plain_file,
    kind_of,
    read_plain,
    read_plain_text,
    require_plain_file,
    require_plain_folder,
)
from lab.running.guards import RunStopped
from lab.words import message_of

CONFIG_NAME = "config.toml"
PROGRESS_NAME = "progress.csv"
#: Holds why a run's training ended before its time, in one line.
FAILURE_NAME = "failure.txt"
#: The folder of the checkpoints.
CHECKPOINTS_NAME = "checkpoints"
#: Prefix of TensorBoard's files.
EVENTS_PREFIX = "events.out.tfevents."

#: Bytes written to see whether a folder can take any.
_PROBE = 2**16
_PROBE_NAME = ".writable"

#: Files that say nothing about a run: they may be there before it begins.
_WITHOUT_MEANING = (LOCK_NAME, HOLDER_NAME, _PROBE_NAME)

#: Names that only files of a run itself may have.
_OWN = (CONFIG_NAME, PROGRESS_NAME, FAILURE_NAME, *_WITHOUT_MEANING)

#: Bytes that a progress table has at most: a row is some 200.
MOST_PROGRESS = 2**30

#: Part of the name of what an interrupted run left, once it has been trained again.
SET_ASIDE = ".interrupted-"


def require_run_folder(folder: Path) -> None:
    """Refuse a missing run folder, before torch is imported to read it.

    Raises:
        ValueError: in one line, if there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"run folder {str(folder)!r} does not exist; 'rims train' makes one.")


def require_encodable(folder: Path) -> None:
    """Refuse a folder name that TensorBoard cannot write into.

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
        probe = folder / _PROBE_NAME
        require_plain_file(probe)
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
    """Refuse work for which the disk has no room.

    Args:
        folder: exists.
        needed: bytes.

    Raises:
        RunStopped: in one line.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunStopped(
            f"folder {str(folder)!r} has room for {free / 1e6:,.0f} MB, the run's checkpoints need "
            f"{needed / 1e6:,.0f} MB; make room, or give another."
        )


def require_plain_run(folder: Path) -> None:
    """Refuse a run folder in which a name of a run's own leads to something else.

    The folder itself may be reached through a link; nothing in it may: what is written, replaced
    or removed in it would be somewhere else.

    Raises:
        ValueError: in one line, if one is a link, a pipe or a device.
    """
    require_plain_folder(folder / CHECKPOINTS_NAME)
    if not folder.is_dir():
        return
    try:
        for path in sorted(folder.iterdir()):
            if path.name in _OWN or path.name.startswith(EVENTS_PREFIX):
                require_plain_file(path)
    except NotPlain as error:
        raise ValueError(f"{error.filename!r}: {error.strerror}; remove it.") from None


def is_empty(folder: Path) -> bool:
    """Whether ``folder`` is missing or holds nothing that says anything.

    Such as a lock, or what is left of a run that was killed before it had begun.
    """
    return not folder.is_dir() or all(
        (path.name in _WITHOUT_MEANING and is_plain_file(path)) or is_unfinished(path)
        for path in folder.iterdir()
    )


def set_aside(folder: Path) -> None:
    """Rename what an interrupted run left, so that the run can be trained anew in its place.

    Raises:
        ValueError: if something is still writing it.
    """
    if is_empty(folder):
        return
    require_unlocked(folder)
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
    lock = _claim(folder)
    try:
        _require_empty(folder)  # a run may have begun and ended since the first look
    except ValueError:
        lock.release()
        raise
    remove_abandoned(folder)
    note_holder(folder)
    return lock


def claim_folder(folder: Path) -> FileLock:
    """Make a folder that a command writes results to, lock it, and clear away what a kill left.

    Returns:
        The lock, held; release it when done.

    Raises:
        ValueError: if it is in use or cannot be written.
    """
    lock = _claim(folder)
    remove_abandoned(folder)
    note_holder(folder)
    return lock


def _claim(folder: Path) -> FileLock:
    require_unlocked(folder)  # first: what follows writes
    require_writable(folder)
    return acquire_lock(folder)


def _require_empty(folder: Path) -> None:
    if not is_empty(folder):
        # A run that has just begun also looks like this: whether it is under way matters more.
        require_unlocked(folder)
        cure = "Give another --run-dir, or remove it first."
        if (folder / CONFIG_NAME).is_file():
            cure = f"'rims resume {folder}' goes on with it; else g{cure[1:]}"
        raise ValueError(f"run folder {str(folder)!r} is not empty; nothing was changed. {cure}")


def claim_existing_run(folder: Path) -> FileLock:
    """Lock the folder of a run to resume; call :func:`begin_writing` before the first change.

    Returns:
        The lock, held; release it when the run has ended.

    Raises:
        ValueError: if it is in use.
    """
    require_plain_run(folder)
    return acquire_lock(folder)


def begin_writing(folder: Path) -> None:
    """Make the first changes in a locked run folder: clear away what a kill left, say who writes.

    Raises:
        ValueError: if nothing can be written there.
    """
    require_writable(folder)
    remove_abandoned(folder)
    note_holder(folder)


def remove_own_files(folder: Path) -> None:
    """Remove the files that a run that has just begun makes beside its lock, and no other."""
    for path in folder.iterdir():
        own = path.name in _OWN or path.name.startswith(EVENTS_PREFIX)
        if own and path.name != LOCK_NAME and is_plain_file(path):
            path.unlink()
    remove_abandoned(folder)


def _read(path: Path) -> str:
    """A text, or nothing where there is none."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return read_plain_text(path, 2**16)
    return ""


def note_failure(folder: Path, error: BaseException) -> None:
    """Leave in a run's folder why it failed, for a later report, which has nothing else."""
    with contextlib.suppress(OSError):
        write_text(folder / FAILURE_NAME, message_of(error) + "\n")


def noted_failure(folder: Path) -> str:
    """The reason that :func:`note_failure` left, without its full stop; empty if there is none."""
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
    if not kind_of(path):
        raise ValueError(f"{str(folder)!r} holds no {PROGRESS_NAME}.")
    text = read_plain(path, MOST_PROGRESS).decode("utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    rows = [
        row
        for row in csv.DictReader(io.StringIO(whole))
        if None not in row and None not in row.values()  # neither too many fields nor too few
    ]
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def newest_row(folder: Path) -> dict[str, float]:
    """The last row of a run's ``progress.csv``; empty before the first one, or if it is damaged."""
    with contextlib.suppress(ValueError, OSError):
        row = {name: values[-1] for name, values in read_progress(folder).items()}
        if math.isfinite(row.get("env_steps", 0.0)):
            return row
    return {}


def read_config(folder: Path) -> dict[str, Any]:
    """The settings in ``config.toml``, unchecked: another version's serve as well; {} if none.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / CONFIG_NAME
    try:
        return tomllib.loads(read_plain_text(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a configuration: {error}.") from None
