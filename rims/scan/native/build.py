"""Machine code of the kernels of a sequence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rims.native.build import compiled
from rims.scan.native import entry
from rims.scan.native.table import as_table


@functools.cache
def address(name: str, double: bool) -> int:
    """Where the machine code of ``entry.<name>`` begins, for double or single precision."""
    return int(_compiled(name, double).address)


@functools.cache
def _compiled(name: str, double: bool) -> Any:
    return compiled(_ENTRIES[name], double, Path(__file__).parent)


# Globals, not closed over: see :data:`rims.native.build.Maker`.
_forward, _back = entry.forward, entry.back


def _forward_entry(like: Any, sources: str) -> Callable[[Any], None]:
    def forward(table: Any) -> None:
        sources  # noqa: B018
        _forward(as_table(table, like))

    return forward


def _back_entry(like: Any, sources: str) -> Callable[[Any], None]:
    def back(table: Any) -> None:
        sources  # noqa: B018
        _back(as_table(table, like))

    return back


_ENTRIES = {"forward": _forward_entry, "back": _back_entry}
