"""A matrix product whose innermost part, a tile, keeps its sums in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from rims.native.simd import kernel, lanes_of, shifted
from rims.native.vectors import (
    FEATURES,
    I64,
    Vec,
    broadcast,
    call,
    constant,
    llvm_type,
    suffix,
    vector_at,
)

_ARM = binding.get_process_triple().startswith(("aarch64", "arm64"))
#: Most vectors side by side in a tile: 4 rows of them, or 8 of half as many, and their operands
#: must fit the registers.
TILE_VECTORS = 4 if FEATURES.get("avx512f") or _ARM else 2
TILE_ROWS = 4


def _make_tile(rows: int, vectors: int) -> Any:
    @intrinsic
    def tile(
        typingctx: Any, a: Any, lda: Any, w: Any, ldw: Any, c: Any, ldc: Any, depth: Any
    ) -> Any:
        """C = A W for ``rows`` rows and ``vectors`` vectors of columns."""
        vec = Vec(a.dtype)

        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            a, lda, w, ldw, c, ldc, depth = args
            zeros = [[constant(vec, 0.0)] * vectors for _ in range(rows)]

            def factors(i: Any) -> Iterator[Any]:
                for r in range(rows):
                    place = builder.gep(a, [builder.add(builder.mul(I64(r), lda), i)])
                    yield builder.load(place, align=vec.bytes)

            def columns(i: Any) -> list[Any]:
                line = builder.mul(i, ldw)
                return [
                    builder.load(vector_at(builder, vec, w, place), align=vec.bytes)
                    for place in vector_starts(builder, vec, line, vectors)
                ]

            sums = accumulated(builder, vec, zeros, depth, factors, columns)
            for r in range(rows):
                line = builder.mul(I64(r), ldc)
                for v, place in enumerate(vector_starts(builder, vec, line, vectors)):
                    target = vector_at(builder, vec, c, place)
                    builder.store(sums[r][v], target, align=vec.bytes)
            return context.get_dummy_value()

        step = types.int64
        return types.void(a, step, w, step, c, step, step), codegen

    return tile


def vector_starts(builder: ir.IRBuilder, vec: Vec, line: Any, vectors: int) -> list[Any]:
    """Starts of the vectors of a line."""
    return [builder.add(line, I64(v * vec.lanes)) for v in range(vectors)]


def accumulated(
    builder: ir.IRBuilder,
    vec: Vec,
    start: list[list[Any]],
    depth: Any,
    factors: Callable[[Any], Iterator[Any]],
    columns: Callable[[Any], list[Any]],
) -> list[list[Any]]:
    """``start`` and the sum over i < depth of ``factors(i)`` times ``columns(i)``, rows of vectors.

    Both callables emit what fetches them; the sums stay in registers.
    """
    full = llvm_type(vec)
    entry, loop = builder.block, builder.append_basic_block("depth")
    done = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    i = builder.phi(I64)
    i.add_incoming(I64(0), entry)
    sums = [[builder.phi(full) for _ in row] for row in start]
    vectors = columns(i)
    fma = ir.FunctionType(full, [full] * 3)
    new = []
    for factor, row in zip(factors(i), sums, strict=True):
        whole = broadcast(builder, full, factor)
        pairs = zip(vectors, row, strict=True)
        new.append(
            [call(builder, f"fma.{suffix(vec)}", fma, [whole, column, s]) for column, s in pairs]
        )
    following = builder.add(i, I64(1))
    here = builder.block
    i.add_incoming(following, here)
    for row, first, then in zip(sums, start, new, strict=True):
        for phi, at_first, afterwards in zip(row, first, then, strict=True):
            phi.add_incoming(at_first, entry)
            phi.add_incoming(afterwards, here)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
    builder.position_at_end(done)
    return new


def _make_band(vectors: int) -> Any:
    # Enough sums to hide the latency of an addition; 4 rows of few vectors are too few.
    tall = 8 if vectors <= TILE_VECTORS // 2 else TILE_ROWS
    tallest, middle, row = (_make_tile(rows, vectors) for rows in (tall, TILE_ROWS, 1))

    @kernel
    def band(a: Any, lda: int, w: Any, ldw: int, c: Any, ldc: int, rows: int, depth: int) -> None:
        """All rows of as many vectors of columns."""
        r = 0
        while r + tall <= rows:
            tallest(shifted(a, r * lda), lda, w, ldw, shifted(c, r * ldc), ldc, depth)
            r += tall
        while r + TILE_ROWS <= rows:
            middle(shifted(a, r * lda), lda, w, ldw, shifted(c, r * ldc), ldc, depth)
            r += TILE_ROWS
        while r < rows:
            row(shifted(a, r * lda), lda, w, ldw, shifted(c, r * ldc), ldc, depth)
            r += 1

    return band


_bands = [_make_band(vectors) for vectors in range(1, TILE_VECTORS + 1)]
# If a tile has two vectors the last two are never called, but Numba needs their types.
_one_wide, _two_wide, _three_wide, _four_wide = (_bands * 2)[:4]


@kernel
def matmuls(
    count: int, a: Any, step_a: int, lda: int, w: Any, step_w: int, ldw: int,
    c: Any, step_c: int, ldc: int, rows: int, depth: int, columns: int,
) -> None:  # fmt: skip
    """``count`` products, with ``step_*`` entries from one matrix to the next."""
    for m in range(count):
        a_m, w_m, c_m = shifted(a, m * step_a), shifted(w, m * step_w), shifted(c, m * step_c)
        matmul(a_m, lda, w_m, ldw, c_m, ldc, rows, depth, columns)


@kernel
def matmul(
    a: Any, lda: int, w: Any, ldw: int, c: Any, ldc: int, rows: int, depth: int, columns: int
) -> None:
    """C = A W: (rows, depth) times (depth, columns).

    ``ld*`` is how many entries lie between lines. Columns are rounded up to whole vectors: lines of
    W and C must have room for them.
    """
    lanes = lanes_of(a[0])
    j = 0
    while j < columns:
        left, w_j, c_j = columns - j, shifted(w, j), shifted(c, j)
        if TILE_VECTORS > 2 and left > 3 * lanes:
            _four_wide(a, lda, w_j, ldw, c_j, ldc, rows, depth)
            j += 4 * lanes
        elif TILE_VECTORS > 2 and left > 2 * lanes:
            _three_wide(a, lda, w_j, ldw, c_j, ldc, rows, depth)
            j += 3 * lanes
        elif left > lanes:
            _two_wide(a, lda, w_j, ldw, c_j, ldc, rows, depth)
            j += 2 * lanes
        else:
            _one_wide(a, lda, w_j, ldw, c_j, ldc, rows, depth)
            j += lanes
