"""Files that are not written through to the disk: no test takes the power away."""

from __future__ import annotations

import os
import sqlite3
from typing import Any

import pytest


def patch_disk(patch: pytest.MonkeyPatch) -> None:
    """Have neither our files nor the data bases of sweeps wait for the disk."""
    connect: Any = sqlite3.connect

    def unsynced(*given: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*given, **options)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    patch.setattr(sqlite3, "connect", unsynced)
    patch.setattr(os, "fsync", lambda _: None)
