"""Machine code of reading and of its gradient: every thread takes slabs until none is left."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from nfm.native import table as e
from nfm.native.back import back_slab
from nfm.native.forward import read_slab
from nfm.native.table import take
from rims.native.build import compiled


@functools.cache
def address(name: Literal["forward", "back"], double: bool) -> int:
    """Where the machine code begins, for double or single precision."""
    return int(_compiled(name, double).address)


@functools.cache
def _compiled(name: str, double: bool) -> Any:
    return compiled(_ENTRIES[name], double, Path(__file__).parent)


def _forward_entry(like: Any, sources: str) -> Callable[[Any], None]:
    def forward(table: Any) -> None:
        sources  # noqa: B018
        own = table[e.SCRATCH] + take(table, e.NEXT_SCRATCH) * table[e.SCRATCH_BYTES]
        slab = take(table, e.NEXT)
        while slab < table[e.SLABS]:
            read_slab(table, own, slab, like)
            slab = take(table, e.NEXT)

    return forward


def _back_entry(like: Any, sources: str) -> Callable[[Any], None]:
    def back(table: Any) -> None:
        sources  # noqa: B018
        own = table[e.SCRATCH] + take(table, e.NEXT_SCRATCH) * table[e.SCRATCH_BYTES]
        slab = take(table, e.NEXT)
        while slab < table[e.SLABS]:
            back_slab(table, own, slab, like)
            slab = take(table, e.NEXT)

    return back


_ENTRIES = {"forward": _forward_entry, "back": _back_entry}
