"""A matrix product whose innermost part, a tile, keeps its sums in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from rims.native.simd import (
    FEATURES,
    I64,
    Vec,
    broadcast,
    call,
    constant,
    kernel,
    lanes_of,
    llvm_type,
    shifted,
    suffix,
    vector_at,
)

_ARM = binding.get_process_triple().startswith(("aarch64", "arm64"))
#: Vectors side by side in a tile: 4 rows of them and what feeds them must fit the registers.
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
            _tile_code(builder, vec, rows, vectors, *args)
            return context.get_dummy_value()

        step = types.int64
        return types.void(a, step, w, step, c, step, step), codegen

    return tile


def _tile_code(
    builder: ir.IRBuilder, vec: Vec, rows: int, vectors: int,
    a: Any, lda: Any, w: Any, ldw: Any, c: Any, ldc: Any, depth: Any,
) -> None:  # fmt: skip
    full = llvm_type(vec)
    align = vec.bytes
    entry, loop = builder.block, builder.append_basic_block("depth")
    done = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    i = builder.phi(I64)
    i.add_incoming(I64(0), entry)
    sums = [[builder.phi(full) for _ in range(vectors)] for _ in range(rows)]
    line = builder.mul(i, ldw)
    columns = [
        builder.load(vector_at(builder, vec, w, builder.add(line, I64(v * vec.lanes))), align=align)
        for v in range(vectors)
    ]
    fma = ir.FunctionType(full, [full] * 3)
    new = []
    for r in range(rows):
        place = builder.gep(a, [builder.add(builder.mul(I64(r), lda), i)])
        factor = broadcast(builder, full, builder.load(place, align=align))
        new.append(
            [
                call(builder, f"fma.{suffix(vec)}", fma, [factor, columns[v], sums[r][v]])
                for v in range(vectors)
            ]
        )
    following = builder.add(i, I64(1))
    i.add_incoming(following, loop)
    for r in range(rows):
        for v in range(vectors):
            sums[r][v].add_incoming(constant(vec, 0.0), entry)
            sums[r][v].add_incoming(new[r][v], loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
    builder.position_at_end(done)
    for r in range(rows):
        for v in range(vectors):
            place = builder.add(builder.mul(I64(r), ldc), I64(v * vec.lanes))
            builder.store(new[r][v], vector_at(builder, vec, c, place), align=align)


_wide_tile, _wide_row = _make_tile(TILE_ROWS, TILE_VECTORS), _make_tile(1, TILE_VECTORS)
_narrow_tile, _narrow_row = _make_tile(TILE_ROWS, 1), _make_tile(1, 1)


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
    wide = TILE_VECTORS * lanes
    j = 0
    while j < columns:
        is_wide = columns - j > wide - lanes
        w_j = shifted(w, j)
        r = 0
        while r < rows:
            a_r, c_r = shifted(a, r * lda), shifted(c, r * ldc + j)
            is_tall = r + TILE_ROWS <= rows
            if is_wide and is_tall:
                _wide_tile(a_r, lda, w_j, ldw, c_r, ldc, depth)
            elif is_wide:
                _wide_row(a_r, lda, w_j, ldw, c_r, ldc, depth)
            elif is_tall:
                _narrow_tile(a_r, lda, w_j, ldw, c_r, ldc, depth)
            else:
                _narrow_row(a_r, lda, w_j, ldw, c_r, ldc, depth)
            r += TILE_ROWS if is_tall else 1
        j += wide if is_wide else lanes
