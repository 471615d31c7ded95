"""Kernels as threads enter them: every thread takes groups of blocks until none is left."""

from __future__ import annotations

from typing import Any

import numpy as np

from rims.native.simd import kernel
from rims.scan.native.back import carry, retreat
from rims.scan.native.forward import advance, begin, keep_or_change, restore
from rims.scan.native.pack import pack, pack_back
from rims.scan.native.sums import add_groups, add_rows, clear
from rims.scan.native.table import count_done, first_block, own_block, take_next


@kernel
def forward(a: Any) -> None:
    """Take blocks through their steps, from the first to the last; or pack weights, if told to."""
    if a.packs:
        pack(a)
        return
    while True:
        group = take_next(a)
        if group >= a.groups:
            return
        for block in range(first_block(a, group), first_block(a, group + 1)):
            b = own_block(a, group, block)
            restore(b, b.first)
            for t in range(b.first, b.last):
                begin(b, t)
                advance(b, t)
                keep_or_change(b, t)


@kernel
def back(a: Any) -> None:
    """The same for gradients of blocks, from the last step to the first, and of the weights."""
    if a.packs:
        pack_back(a)
        return
    while True:
        group = take_next(a)
        if group >= a.groups:
            return
        begins = first_block(a, group)
        for block in range(begins, first_block(a, group + 1)):
            b = own_block(a, group, block)
            if block == begins and not b.so_far:
                clear(b)
            carry(b, False)
            # Numba takes a plain 0 for a type of its own, and would compile all that gets it twice.
            count = np.int64(0)
            for t in range(b.last - 1, b.first - 1, -1):
                restore(b, t)
                begin(b, t)
                advance(b, t)
                retreat(b, t, count)
                count += b.rows
                if t == b.first or count + b.rows > b.held_steps * b.block_rows:
                    add_rows(b, count)
                    count = np.int64(0)
            carry(b, True)
        if count_done(a) == a.groups - 1 and a.is_end:
            add_groups(a)
