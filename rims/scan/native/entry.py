"""Kernels as threads enter them: every thread takes blocks until none is left."""

from __future__ import annotations

from typing import Any

from rims.native.simd import kernel
from rims.scan.native.back import carry, retreat
from rims.scan.native.forward import advance, begin, commit, restore
from rims.scan.native.pack import pack, pack_back
from rims.scan.native.sums import add_blocks, add_rows, clear
from rims.scan.native.table import count_done, own_block, take_next


@kernel
def forward(a: Any) -> None:
    """Take blocks through their steps, from the first to the last; or pack weights, if told to."""
    if a.packs:
        pack(a)
        return
    while True:
        block = take_next(a)
        if block >= a.blocks:
            return
        b = own_block(a, block)
        restore(b, b.first)
        for t in range(b.first, b.last):
            begin(b, t)
            advance(b, t)
            commit(b, t)


@kernel
def back(a: Any) -> None:
    """The same for gradients of blocks, from the last step to the first."""
    if a.packs:
        pack_back(a)
        return
    while True:
        block = take_next(a)
        if block >= a.blocks:
            return
        b = own_block(a, block)
        if not b.so_far:
            clear(b)
        carry(b, False)
        count = 0
        for t in range(b.last - 1, b.first - 1, -1):
            restore(b, t)
            begin(b, t)
            advance(b, t)
            retreat(b, t, count)
            count += b.rows
            if t == b.first or count >= b.held * b.rows:
                add_rows(b, count)
                count = 0
        carry(b, True)
        if count_done(a) == a.blocks - 1 and a.reduces:
            add_blocks(a)
