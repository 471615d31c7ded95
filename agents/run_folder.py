"""A run's folder: configuration, progress table, TensorBoard events, checkpoint."""

from __future__ import annotations

import csv
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from agents.config import PPOConfig

CONFIG_NAME = "config.toml"
PROGRESS_NAME = "progress.csv"


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


def claim_run_folder(folder: Path) -> None:
    """Make ``folder`` for a new run, before any work starts.

    Raises:
        ValueError: if it already holds something, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"run folder {str(folder)!r} is not empty; nothing was changed. "
            "Give another --run-dir, or remove it first."
        )
    require_writable(folder)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content at once, so that no reader and no crash sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class RunLog:
    """Writes one row per update to ``progress.csv`` and to TensorBoard.

    Use as a context manager. Columns are fixed by the first row.
    """

    def __init__(self, folder: Path, config: PPOConfig) -> None:
        # TensorBoard's import warns about its own dependencies.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder))
        write_text(folder / CONFIG_NAME, config.to_toml())
        self._file = (folder / PROGRESS_NAME).open("w", newline="", encoding="utf-8")
        self._table: csv.DictWriter[str] | None = None

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row; it is on disk when this returns."""
        if self._table is None:
            self._table = csv.DictWriter(self._file, list(row))
            self._table.writeheader()
        self._table.writerow({name: _short(value) for name, value in row.items()})
        self._file.flush()
        for name, value in row.items():
            if math.isfinite(value):
                self._events.add_scalar(name, value, int(row["env_steps"]))

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


def read_progress(folder: Path) -> dict[str, list[float]]:
    """The columns of ``progress.csv``.

    Raises:
        ValueError: if there is no such file.
    """
    path = folder / PROGRESS_NAME
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} holds no {PROGRESS_NAME}.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def _short(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
