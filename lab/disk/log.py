"""The log of a run while it is written: its progress table, and events for TensorBoard."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

from lab.disk.folder import CONFIG_NAME, MOST_PROGRESS, PROGRESS_NAME
from lab.disk.output import write_bytes, write_text
from lab.disk.plain_files import kind_of, open_plain, read_plain
from lab.running.guards import RunStopped


class Settings(Protocol):
    """A configuration that can be saved with its run."""

    def to_toml(self) -> str:
        """All settings as TOML."""
        ...


class RunLog:
    """Writes rows to ``progress.csv`` and to TensorBoard.

    Use as a context manager. Columns are fixed by the first row. Trouble with writing rows, such as
    a full disk, is told once and ends nothing: rows wait until they can be written.

    Args:
        folder: the run folder.
        config: saved as ``config.toml``.
        x: the column that TensorBoard's curves are drawn over.
        keep_until: of an interrupted run that this one continues, rows up to this ``x`` are kept;
            later ones are dropped, and what TensorBoard saw of them is marked as superseded.
            ``None``: a new run.

    Raises:
        RunStopped: if its files cannot be made.
    """

    def __init__(
        self, folder: Path, config: Settings, *, x: str = "env_steps", keep_until: int | None = None
    ) -> None:
        self._x = x
        # TensorBoard's import warns about its own dependencies.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
        try:
            # First of all: by it a run that is stopped right now is known again.
            write_text(folder / CONFIG_NAME, config.to_toml())
            purge = None if keep_until is None else keep_until + 1
            self._events: SummaryWriter | None = SummaryWriter(str(folder), purge_step=purge)
            self._table = _Table(folder / PROGRESS_NAME, x, keep_until)
        except OSError as error:
            raise RunStopped(f"{str(folder)!r} cannot be written ({error.strerror}).") from None

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row; whoever reads the file finds it there, if it can be written."""
        self._table.append(row)
        if self._events is None:
            return
        try:
            for name, value in row.items():
                if math.isfinite(value):
                    self._events.add_scalar(name, value, int(row[self._x]))
        except Exception as error:  # of its writing thread; any
            _warn(f"no more events are written for TensorBoard ({error})")
            self._events = None

    def sync(self) -> None:
        """Have all rows survive a failure of the machine; before a checkpoint counts on them."""
        self._table.sync()

    def _note_thread(self, failure: threading.ExceptHookArgs) -> None:
        """Tell of TensorBoard's writing thread in a line; Python would print where it failed."""
        if type(failure.thread).__name__ != "_AsyncWriterThread":
            self._hook(failure)
        elif self._events is not None:
            _warn(f"no more events are written for TensorBoard ({failure.exc_value})")

    def __enter__(self) -> Self:
        self._hook, threading.excepthook = threading.excepthook, self._note_thread
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()
        if self._events is not None:
            try:
                self._events.close()
            except Exception as trouble:
                _warn(f"the last events for TensorBoard are not written ({trouble})")
        threading.excepthook = self._hook


class _Table:
    """A CSV file that grows by whole rows only."""

    def __init__(self, path: Path, x: str, keep_until: int | None) -> None:
        self.path = path
        self._columns: list[str] = []
        kept = b""
        if keep_until is not None and kind_of(path):
            self._columns, text = _rows_until(path, x, keep_until)
            kept = text.encode()
        # A new file: what was there may have other names, or be a link to something else.
        write_bytes(path, kept)
        self._file = os.fdopen(open_plain(path, os.O_RDWR), "r+b", buffering=0)
        self._file.seek(len(kept))
        self._end = len(kept)  # of the last whole row
        self._waiting = b""
        self._complained = False

    def append(self, row: Mapping[str, float]) -> None:
        """Write a row, and those before it that could not be written."""
        text = io.StringIO(newline="")
        # A run that an earlier version began keeps its columns.
        columns = self._columns or list(row)
        writer = csv.DictWriter(text, columns, restval="nan", extrasaction="ignore")
        if not self._columns:
            self._columns = list(row)
            writer.writeheader()
        writer.writerow({name: _short(value) for name, value in row.items()})
        self._waiting += text.getvalue().encode()
        self._write()

    def _write(self) -> None:
        try:
            left = memoryview(self._waiting)
            while left:
                left = left[self._file.write(left) :]
            self._end += len(self._waiting)
            self._waiting = b""
        except OSError as error:
            if not self._complained:
                _warn(f"{self.path}: rows wait until they can be written ({error.strerror})")
                self._complained = True
            with suppress(OSError):
                self._file.seek(self._end)
                self._file.truncate()  # half a row

    def close(self) -> None:
        if self._waiting:
            self._write()
        try:
            self._file.close()
        except OSError as error:  # some file systems tell only now
            _warn(f"{self.path}: rows may be missing ({error.strerror})")

    def sync(self) -> None:
        """Have all rows survive a failure of the machine, as far as they could be written."""
        with suppress(OSError):
            os.fsync(self._file.fileno())


def _rows_until(path: Path, x: str, last: int) -> tuple[list[str], str]:
    """The columns of a table, and the text of its rows up to ``x == last``."""
    lines = read_plain(path, MOST_PROGRESS).decode(errors="replace").splitlines(keepends=True)
    columns = next(csv.reader(lines[:1]), [])
    if x not in columns:
        return [], ""
    kept = lines[:1]
    for line in lines[1:]:
        values = next(csv.reader([line]), [])
        whole = line.endswith("\n") and len(values) == len(columns)
        if not whole or not _is_until(values[columns.index(x)], last):
            break  # cut off by a crash, damaged, or made after the checkpoint
        kept.append(line)
    return columns, "".join(kept)


def _is_until(value: str, last: int) -> bool:
    try:
        return float(value) <= last
    except ValueError:
        return False


def _warn(text: str) -> None:
    with suppress(OSError):  # nobody may be there to read it
        print(f"Warning: {text}.", file=sys.stderr)


def _short(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
