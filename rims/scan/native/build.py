"""Machine code of the kernels of a sequence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rims.native.build import Code, compiled
from rims.native.once import once
from rims.scan.native import entry
from rims.scan.native.table import as_table


@once
def code(name: str, double: bool) -> Code:
    """The machine code of ``entry.<name>``, for double or single precision."""
    return compiled(_ENTRIES[name], double, Path(__file__).parent)


def _forward_entry(like: Any) -> Callable[[Any], None]:
    def forward(table: Any) -> None:
        entry.forward(as_table(table, like))

    return forward


def _back_entry(like: Any) -> Callable[[Any], None]:
    def back(table: Any) -> None:
        entry.back(as_table(table, like))

    return back


_ENTRIES = {"forward": _forward_entry, "back": _back_entry}
