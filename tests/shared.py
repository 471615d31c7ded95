"""What is made once for all workers that run tests at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder filled by the worker that needs it first; the others wait. Only to be read."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # above those of single workers
    folder, finished = base / f"shared-{name}", base / f"shared-{name}.finished"
    with FileLock(f"{folder}.lock"):
        if not finished.exists():
            folder.mkdir()
            make(folder)
            finished.touch()
    return folder
