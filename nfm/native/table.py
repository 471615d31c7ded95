"""The table a kernel gets: numbers and addresses, and where in it each of them is.

A slab is one head of one sample: its ``size`` channels by all points of a map lie in a row. The
kernels go through the points of a slab by tiles of ``TILE`` points, ``WIDTH`` after rounding up to
pairs of vectors. What a thread writes for itself alone is at ``S_*`` bytes of its own scratch.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# What threads take: the next slab, the next part of the scratch.
NEXT, NEXT_SCRATCH = 0, 1
# Sizes. Slots are those of all entries and, last, the null slot if there is one.
SLABS, POINTS, TILE, WIDTH, KEY_SIZE, VALUE_SIZE, SLOTS, ENTRIES = range(2, 10)
# How weights come of scores, see nfm.native.softmax.
RULE, DEPTH = 10, 11
# Arrays: (slabs, size, points), weights (slabs, slots, points). D_WEIGHTS may be 0: none.
QUERY, READ, WEIGHTS, D_QUERY, D_READ, D_WEIGHTS = range(12, 18)
SCRATCH, SCRATCH_BYTES = 18, 19
S_QUERY, S_READ, S_WEIGHTS, S_BEST, S_D_QUERY, S_D_WEIGHTS, S_DENSE = range(20, 27)
HEAD = 27

# Fields of an entry, counted from where it begins in the table.
KEY, VALUE, D_KEY, D_VALUE = range(4)  # (slabs, size, source points)
SOURCE, COUNT = 4, 5  # points of its maps, slots it has
# Where points are read that are not simply the reader's own, else 0: (count, points) places in the
# source, and per tile whether they are those of the tile before.
INDEX, SAME = 6, 7
S_KEY, S_VALUE, S_D_KEY, S_D_VALUE = range(8, 12)  # a tile of each, brought together by INDEX
# Where tiles are whole vectors whose points, each so many times, lie in a row; else 0.
REPEAT = 12
# Whether every point of the source is one slot of one point, as with windows that do not overlap.
PARTED = 13
ENTRY = 14

_WORDS = types.CPointer(types.int64)


@intrinsic
def words(typingctx: Any, address: Any) -> Any:
    """The integers at an address."""
    return _WORDS(types.int64), lambda context, builder, sig, args: builder.inttoptr(
        args[0], context.get_value_type(_WORDS)
    )


@intrinsic
def numbers(typingctx: Any, address: Any, like: Any) -> Any:
    """The numbers of the type of ``like`` at an address."""
    pointer = types.CPointer(like)
    return pointer(types.int64, like), lambda context, builder, sig, args: builder.inttoptr(
        args[0], context.get_value_type(pointer)
    )


@intrinsic
def take(typingctx: Any, table: Any, place: Any) -> Any:
    """The number at ``place``, leaving one more there; safe between threads."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        counter = builder.gep(args[0], [args[1]])
        return builder.atomic_rmw("add", counter, ir.IntType(64)(1), "monotonic")

    return types.int64(_WORDS, types.int64), codegen
