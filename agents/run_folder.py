"""A run's folder: configuration, progress table, TensorBoard events, checkpoint."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from filelock import FileLock, Timeout

from agents.output import whole_file

CONFIG_NAME = "config.toml"
PROGRESS_NAME = "progress.csv"
LOCK_NAME = ".lock"
#: Holds why a run's training ended before its time, in one line.
FAILURE_NAME = "failure.txt"

#: Part of the name of what an interrupted run left, once it has been trained again.
SET_ASIDE = ".interrupted-"


def require_writable(folder: Path) -> None:
    """Make ``folder`` if need be and see that files can be written there.

    Raises:
        ValueError: if they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"folder {str(folder)!r} cannot be written ({error.strerror}); give another."
        ) from None


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
    try:
        # Whoever only looks whether somebody is writing holds it for a moment too.
        lock.acquire(timeout=1, poll_interval=0.02)
    except Timeout:
        raise ValueError(
            f"folder {str(folder)!r} is in use by another command; "
            "wait until that has ended, or give another."
        ) from None
    except OSError as error:
        raise ValueError(
            f"folder {str(folder)!r} cannot be locked ({error.strerror}); give another."
        ) from None
    return lock


def is_empty(folder: Path) -> bool:
    """Whether ``folder`` is missing or holds nothing but a lock, which counts for nothing."""
    return not folder.is_dir() or all(path.name == LOCK_NAME for path in folder.iterdir())


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
    _require_empty(folder)
    require_writable(folder)
    lock = lock_folder(folder)
    try:
        _require_empty(folder)  # a run may have begun and ended since the first look
    except ValueError:
        lock.release()
        raise
    return lock


def _require_empty(folder: Path) -> None:
    if not is_empty(folder):
        # A run that has just begun also looks like this: whether it is under way matters more.
        if (folder / LOCK_NAME).is_file():
            lock_folder(folder).release()
        raise ValueError(
            f"run folder {str(folder)!r} is not empty; nothing was changed. "
            "Give another --run-dir, or remove it first."
        )


def write_text(path: Path, text: str) -> None:
    """Replace a file's content at once, so that no reader and no crash sees half of it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content at once, as :func:`write_text` does."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def note_failure(folder: Path, error: BaseException) -> None:
    """Leave in a run's folder why it failed, for a later report, which has nothing else."""
    with contextlib.suppress(OSError):
        write_text(folder / FAILURE_NAME, " ".join(str(error).split()) + "\n")


def noted_failure(folder: Path) -> str:
    """What :func:`note_failure` left, without its full stop; empty if there is nothing."""
    try:
        text = (folder / FAILURE_NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return " ".join(text.split()).removesuffix(".")


class Settings(Protocol):
    """A configuration that can be saved with its run."""

    def to_toml(self) -> str:
        """All settings as TOML."""
        ...


class RunLog:
    """Writes rows to ``progress.csv`` and to TensorBoard.

    Use as a context manager. Columns are fixed by the first row.

    Args:
        folder: the run folder.
        config: saved as ``config.toml``.
        x: the column that TensorBoard's curves are drawn over.
        keep: rows of an interrupted run that this one continues; later ones are dropped, and what
            TensorBoard saw of them is marked as superseded.
    """

    def __init__(
        self, folder: Path, config: Settings, *, x: str = "env_steps", keep: int = 0
    ) -> None:
        self._x = x
        path = folder / PROGRESS_NAME
        columns, last_x = _keep_rows(path, keep, x)
        # First of all: by it a run that is stopped right now is known again.
        write_text(folder / CONFIG_NAME, config.to_toml())
        # TensorBoard's import warns about its own dependencies.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter

            purge = None if last_x is None else last_x + 1
            self._events = SummaryWriter(str(folder), purge_step=purge)
        self._file = path.open("a" if keep else "w", newline="", encoding="utf-8")
        self._table = csv.DictWriter(self._file, columns) if columns else None

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row; it is on disk when this returns."""
        if self._table is None:
            self._table = csv.DictWriter(self._file, list(row))
            self._table.writeheader()
        self._table.writerow({name: _short(value) for name, value in row.items()})
        self._file.flush()
        for name, value in row.items():
            if math.isfinite(value):
                self._events.add_scalar(name, value, int(row[self._x]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._events.close()


def _keep_rows(path: Path, keep: int, x: str) -> tuple[list[str], int | None]:
    """Cut a table to its first ``keep`` rows; its columns, and ``x`` in the last one kept."""
    if not keep:
        return [], None
    with path.open(newline="", encoding="utf-8") as file:
        lines = file.readlines()[: keep + 1]
    if len(lines) <= keep:
        raise ValueError(f"{str(path)!r} has lost rows; remove its run folder to start again.")
    write_text(path, "".join(lines))
    rows = list(csv.DictReader(lines))
    return list(rows[-1]), int(float(rows[-1][x]))


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


def newest_progress(folder: Path) -> tuple[int, float]:
    """Environment steps and success rate of a run; 0 and NaN before its first row."""
    row = newest_row(folder)
    return (int(row["env_steps"]), row["success_rate"]) if row else (0, math.nan)


def newest_row(folder: Path) -> dict[str, float]:
    """The last row of a run's ``progress.csv``; empty before the first one."""
    columns = read_progress(folder) if (folder / PROGRESS_NAME).is_file() else {}
    return {name: values[-1] for name, values in columns.items()}


def _short(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
