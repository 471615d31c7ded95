"""Machine code of reading and of its gradient: every thread takes slabs until none is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from nfm.native import table as e
from nfm.native.back import back_slab
from nfm.native.forward import read_slab
from nfm.native.table import take
from rims.native.build import Code, compiled
from rims.native.once import once


@once
def code(name: Literal["forward", "back"], double: bool) -> Code:
    """The machine code of reading or of its gradient, for double or single precision."""
    return compiled(_ENTRIES[name], double, Path(__file__).parent)


def _forward_entry(like: Any) -> Callable[[Any], None]:
    def forward(table: Any) -> None:
        own = table[e.SCRATCH] + take(table, e.NEXT_SCRATCH) * table[e.SCRATCH_BYTES]
        slab = take(table, e.NEXT)
        while slab < table[e.SLABS]:
            read_slab(table, own, slab, like)
            slab = take(table, e.NEXT)

    return forward


def _back_entry(like: Any) -> Callable[[Any], None]:
    def back(table: Any) -> None:
        own = table[e.SCRATCH] + take(table, e.NEXT_SCRATCH) * table[e.SCRATCH_BYTES]
        slab = take(table, e.NEXT)
        while slab < table[e.SLABS]:
            back_slab(table, own, slab, like)
            slab = take(table, e.NEXT)

    return back


_ENTRIES = {"forward": _forward_entry, "back": _back_entry}
