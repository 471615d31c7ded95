"""Importing modules of a user's own."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType


def import_from_here(module: str) -> ModuleType:
    """Import a module, looked for in the current directory first."""
    with _looking_in_current_directory():
        return importlib.import_module(module)


@contextlib.contextmanager
def _looking_in_current_directory() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the module may have taken it out
            sys.path.remove(here)
