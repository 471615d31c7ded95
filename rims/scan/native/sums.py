"""Kernels of the gradients of the loop's weights: products A^T B of the values of a few steps.

A group of blocks sums them up on its own, while the rows are still in the cache; the last group to
finish adds all groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rims.native.simd import kernel, lanes_of, load_up_to, shifted, store_up_to
from rims.native.vectors import (
    I64,
    VECTOR_BYTES,
    Vec,
    constant,
    first_lanes,
    masked_load,
    masked_store,
    vector_at,
)
from rims.scan.native.forward import zeros
from rims.scan.native.matmul import TILE_VECTORS, accumulated, vector_starts

#: Lines of a tile: for one vector of columns, and for two where there are registers enough.
_LINES = 8


@kernel
def clear(b: Any) -> None:
    """Set all sums to zero."""
    n, d, gates, values = b.n, b.d, b.g * b.d, b.m * b.dv
    zeros(b, b.own_hh, n * gates * d)
    zeros(b, b.own_qkv, n * d * (2 * b.m * b.dk + values))
    zeros(b, b.own_out, 2 * d * values)
    zeros(b, b.own_b_hh, n * gates)
    zeros(b, b.own_b_n, n * d)
    zeros(b, b.own_b_out, 2 * d)


@kernel
def add_rows(b: Any, rows: int) -> None:
    """Add the products of the rows held."""
    n, d, k, gates, values = b.n, b.d, b.k, b.g * b.d, b.m * b.dv
    width = 2 * b.m * b.dk + values
    for m in range(n):
        d_gates, h = shifted(b.d_state_gates, m * gates), shifted(b.h_prev, m * d)
        own = shifted(b.own_hh, m * gates * d)
        add_product(d_gates, n * gates, h, n * d, own, gates, d, rows)
        comm_input, d_qkv = shifted(b.comm_input, m * d), shifted(b.d_qkv, m * width)
        own = shifted(b.own_qkv, m * d * width)
        add_product(comm_input, n * d, d_qkv, n * width, own, d, width, rows)
    add_product(b.d_output_gate, 2 * d, b.read, values, b.own_out, 2 * d, values, rows * k)
    add_columns(b, b.d_output_gate, b.own_b_out, 2 * d, rows * k)
    add_columns(b, b.d_state_gates, b.own_b_hh, n * gates, rows)


@kernel
def add_groups(a: Any) -> None:
    """Write the sums of all groups, in the shapes of the weights."""
    n, d, gates, keys, values = a.n, a.d, a.g * a.d, a.m * a.dk, a.m * a.dv
    width = 2 * keys + values
    over_groups(a, a.own_hh, 0, n * gates * d, 1, a.sum_hh, 0)
    over_groups(a, a.own_qkv, width, keys, n * d, a.sum_query, keys)
    over_groups(a, shifted(a.own_qkv, keys), width, keys, n * d, a.sum_key, keys)
    over_groups(a, shifted(a.own_qkv, 2 * keys), width, values, n * d, a.sum_value, values)
    over_groups(a, a.own_out, 0, d * values, 1, a.sum_output, 0)
    over_groups(a, shifted(a.own_out, d * values), 0, d * values, 1, a.sum_gate, 0)
    # Both biases are added to a gate and so have the same gradient, except for n of a GRU.
    over_groups(a, a.own_b_hh, 0, n * gates, 1, a.sum_b_hh, 0)
    over_groups(a, a.own_b_hh, 0, n * gates, 1, a.sum_b_ih, 0)
    if not a.is_lstm:
        over_groups(a, a.own_b_n, d, d, n, shifted(a.sum_b_ih, 2 * d), gates)
    over_groups(a, a.own_b_out, 0, d, 1, a.sum_b_output, 0)
    over_groups(a, shifted(a.own_b_out, d), 0, d, 1, a.sum_b_gate, 0)


@kernel
def over_groups(
    a: Any, own: Any, step: int, columns: int, lines: int, out: Any, out_step: int
) -> None:
    """Over all groups the sum of ``lines`` lines of ``columns`` numbers, ``step`` apart."""
    to_next = a.held_bytes * a.lanes // VECTOR_BYTES
    for i in range(lines):
        for j in range(0, columns, a.lanes):
            left, sums = columns - j, a.zero
            for group in range(a.groups):
                sums = sums + load_up_to(own, group * to_next + i * step + j, left)
            store_up_to(out, i * out_step + j, left, sums)


@kernel
def add_product(
    a: Any, lda: int, b: Any, ldb: int, c: Any, lines: int, columns: int, depth: int
) -> None:
    """C += A^T B: A is (depth, lines), B (depth, columns)."""
    lanes = lanes_of(a[0])
    j = 0
    while j < columns:
        left, b_j, c_j = columns - j, shifted(b, j), shifted(c, j)
        if TILE_VECTORS > 2 and left >= 2 * lanes:
            _wide(a, lda, b_j, ldb, c_j, columns, lines, depth, left)
            j += 2 * lanes
        elif left >= lanes:
            _narrow(a, lda, b_j, ldb, c_j, columns, lines, depth, left)
            j += lanes
        else:
            _part(a, lda, b_j, ldb, c_j, columns, lines, depth, left)
            j += lanes


@kernel
def add_columns(b: Any, rows: Any, out: Any, columns: int, count: int) -> None:
    """Add the sum of ``count`` rows."""
    for j in range(0, columns, b.lanes):
        left, sums = columns - j, b.zero
        for i in range(count):
            sums = sums + load_up_to(rows, i * columns + j, left)
        store_up_to(out, j, left, load_up_to(out, j, left) + sums)


def _make_tile(lines: int, vectors: int, whole: bool) -> Any:
    @intrinsic
    def tile(
        typingctx: Any, a: Any, lda: Any, b: Any, ldb: Any, c: Any, ldc: Any,
        depth: Any, left: Any,
    ) -> Any:  # fmt: skip
        """``lines`` lines of C and ``vectors`` vectors of each, of which ``left`` numbers count."""
        vec = Vec(a.dtype)

        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            *matrices, left = args
            mask = None if whole else first_lanes(builder, vec, left)
            _tile_code(builder, vec, lines, vectors, mask, *matrices)
            return context.get_dummy_value()

        step = types.int64
        return types.void(a, step, b, step, c, step, step, step), codegen

    return tile


def _tile_code(
    builder: ir.IRBuilder, vec: Vec, lines: int, vectors: int, mask: Any,
    a: Any, lda: Any, b: Any, ldb: Any, c: Any, ldc: Any, depth: Any,
) -> None:  # fmt: skip
    def fetched(place: Any) -> Any:
        if mask is None:
            return builder.load(place, align=vec.bytes)
        return masked_load(builder, vec, place, mask)

    def columns(i: Any) -> list[Any]:
        starts = vector_starts(builder, vec, builder.mul(i, ldb), vectors)
        return [fetched(vector_at(builder, vec, b, at)) for at in starts]

    def factors(i: Any) -> Iterator[Any]:
        line = builder.mul(i, lda)
        for r in range(lines):
            yield builder.load(builder.gep(a, [builder.add(line, I64(r))]), align=vec.bytes)

    # From zero: adding small terms one by one to a large sum would lose them.
    zeros = [[constant(vec, 0.0)] * vectors for _ in range(lines)]
    sums = accumulated(builder, vec, zeros, depth, factors, columns)
    for r in range(lines):
        starts = vector_starts(builder, vec, builder.mul(I64(r), ldc), vectors)
        for at, value in zip(starts, sums[r], strict=True):
            place = vector_at(builder, vec, c, at)
            new = builder.fadd(fetched(place), value)
            if mask is None:
                builder.store(new, place, align=vec.bytes)
            else:
                masked_store(builder, vec, new, place, mask)


def _make_band(vectors: int, whole: bool = True) -> Any:
    tall, line = (_make_tile(lines, vectors, whole) for lines in (_LINES, 1))

    @kernel
    def band(
        a: Any, lda: int, b: Any, ldb: int, c: Any, ldc: int,
        lines: int, depth: int, left: int,
    ) -> None:  # fmt: skip
        """All lines of as many vectors of columns."""
        r = 0
        while r + _LINES <= lines:
            tall(shifted(a, r), lda, b, ldb, shifted(c, r * ldc), ldc, depth, left)
            r += _LINES
        while r < lines:
            line(shifted(a, r), lda, b, ldb, shifted(c, r * ldc), ldc, depth, left)
            r += 1

    return band


_part, _narrow, _wide = _make_band(1, whole=False), _make_band(1), _make_band(TILE_VECTORS // 2)
