"""Vector instructions for Numba: what the kernels are written in.

Numba leaves vectorising to LLVM, which gives up on loops over as many arrays as a gate has, and
knows no fast vector ``exp``. So a vector is a type of its own here: ``load`` makes one from memory,
``+ - *`` work on all lanes, and ``tile`` is the innermost part of a matrix product, which keeps
its sums in registers. One width for the machine's largest vectors, in any precision.

Memory is addressed by a pointer and an index, unchecked as in C. The tables of addresses and sizes
that kernels get are described in :mod:`rims.scan.native.table`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

_FEATURES = binding.get_host_cpu_features()
_ARM = binding.get_process_triple().startswith(("aarch64", "arm64"))
#: Bytes of the largest vectors of this machine.
VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16
#: Vectors side by side in a tile: 4 rows of them and what feeds them must fit the registers.
TILE_VECTORS = 4 if _FEATURES.get("avx512f") or _ARM else 2
TILE_ROWS = 4

#: How a function becomes part of a kernel.
kernel = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
#: The same for a function of a few lines, written out wherever it is called.
inlined = njit(error_model="numpy", inline="always")

_I32, _I64 = ir.IntType(32), ir.IntType(64)
# A product and a sum may become one instruction; nothing else is reordered.
_FUSED = ("contract",)


class Vec(types.Type):
    """A register full of ``scalar``."""

    def __init__(self, scalar: types.Float) -> None:
        self.scalar = scalar
        self.lanes = VECTOR_BYTES * 8 // scalar.bitwidth
        self.bytes = scalar.bitwidth // 8  # of one number
        super().__init__(name=f"Vec({scalar}, {self.lanes})")


@register_default(Vec)
class _VecModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vec) -> None:
        super().__init__(dmm, fe_type, _llvm(fe_type))


def _llvm(vec: Vec) -> ir.VectorType:
    return ir.VectorType(_llvm_scalar(vec.scalar), vec.lanes)


def _llvm_scalar(scalar: types.Type) -> Any:
    return ir.FloatType() if scalar == types.float32 else ir.DoubleType()


def _operator(op: Callable[..., Any], build: Callable[[ir.IRBuilder, Any, Any], Any]) -> None:
    """Let ``op`` work between two vectors."""

    @infer_global(op)
    class _Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and all(isinstance(arg, Vec) for arg in args):
                return signature(args[0], *args)
            return None

    @lower_builtin(op, Vec, Vec)  # type: ignore[untyped-decorator]
    def _lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return build(builder, *args)


_operator(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=_FUSED))
_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=_FUSED))
_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=_FUSED))


# Memory


@intrinsic  # type: ignore[untyped-decorator]
def shifted(typingctx: Any, base: Any, index: Any) -> Any:
    """The pointer ``index`` entries after ``base``."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return base(base, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def lanes_of(typingctx: Any, like: Any) -> Any:
    """How many numbers like ``like`` a vector holds."""
    count = Vec(like).lanes
    return types.int64(like), lambda context, builder, sig, args: _I64(count)


@intrinsic  # type: ignore[untyped-decorator]
def load(typingctx: Any, base: Any, index: Any) -> Any:
    """The vector that begins at ``index``."""
    vec = Vec(base.dtype)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.load(_vector_at(builder, vec, *args), align=vec.bytes)

    return vec(base, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store(typingctx: Any, base: Any, index: Any, value: Any) -> Any:
    """Write ``value`` from ``index`` on."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        place = _vector_at(builder, value, args[0], args[1])
        builder.store(args[2], place, align=value.bytes)
        return context.get_dummy_value()

    return types.void(base, types.int64, value), codegen


@intrinsic  # type: ignore[untyped-decorator]
def load_up_to(typingctx: Any, base: Any, index: Any, left: Any) -> Any:
    """As ``load`` where only ``left`` entries may be read; the other lanes are zero."""
    vec = Vec(base.dtype)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        whole = builder.icmp_signed(">=", args[2], _I64(vec.lanes))
        with builder.if_else(whole) as (all_lanes, some_lanes):
            with all_lanes:
                place = _vector_at(builder, vec, args[0], args[1])
                full, full_block = builder.load(place, align=vec.bytes), builder.block
            with some_lanes:
                part, part_block = _masked(builder, vec, "load", *args), builder.block
        result = builder.phi(_llvm(vec))
        result.add_incoming(full, full_block)
        result.add_incoming(part, part_block)
        return result

    return vec(base, types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_up_to(typingctx: Any, base: Any, index: Any, left: Any, value: Any) -> Any:
    """As ``store`` where only ``left`` entries may be written."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        whole = builder.icmp_signed(">=", args[2], _I64(value.lanes))
        with builder.if_else(whole) as (all_lanes, some_lanes):
            with all_lanes:
                place = _vector_at(builder, value, args[0], args[1])
                builder.store(args[3], place, align=value.bytes)
            with some_lanes:
                _masked(builder, value, "store", *args)
        return context.get_dummy_value()

    return types.void(base, types.int64, types.int64, value), codegen


def _vector_at(builder: ir.IRBuilder, vec: Vec, base: Any, index: Any) -> Any:
    return builder.bitcast(builder.gep(base, [index]), _llvm(vec).as_pointer())


def _masked(
    builder: ir.IRBuilder, vec: Vec, kind: str, base: Any, index: Any, count: Any, *value: Any
) -> Any:
    """A load or store of the first ``count`` lanes; the others are zero, or left alone."""
    full = _llvm(vec)
    integers = ir.VectorType(_I64, vec.lanes)
    lane = ir.Constant(integers, list(range(vec.lanes)))
    mask = builder.icmp_signed("<", lane, _broadcast(builder, integers, count))
    place = _vector_at(builder, vec, base, index)
    align = _I32(vec.bytes)
    suffix = f"{kind}.{_suffix(vec)}.p0"
    masks = ir.VectorType(ir.IntType(1), vec.lanes)
    if kind == "load":
        shape = ir.FunctionType(full, [place.type, _I32, masks, full])
        zero = ir.Constant(full, [0.0] * vec.lanes)
        return _call(builder, f"masked.{suffix}", shape, [place, align, mask, zero])
    shape = ir.FunctionType(ir.VoidType(), [full, place.type, _I32, masks])
    return _call(builder, f"masked.{suffix}", shape, [*value, place, align, mask])


# Arithmetic


@intrinsic  # type: ignore[untyped-decorator]
def splat(typingctx: Any, value: Any) -> Any:
    """A vector with ``value`` in every lane."""
    vec = Vec(value)
    return vec(value), lambda context, builder, sig, args: _broadcast(builder, _llvm(vec), *args)


@intrinsic  # type: ignore[untyped-decorator]
def total(typingctx: Any, value: Any) -> Any:
    """The sum over the lanes."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        scalar = _llvm_scalar(value.scalar)
        shape = ir.FunctionType(scalar, [scalar, _llvm(value)])
        # "reassoc": a tree of additions instead of a chain of them
        name = f"vector.reduce.fadd.{_suffix(value)}"
        return _call(builder, name, shape, [scalar(0.0), *args], flags=("reassoc",))

    return value.scalar(value), codegen


@intrinsic  # type: ignore[untyped-decorator]
def first(typingctx: Any, value: Any) -> Any:
    """The first lane."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], _I32(0))

    return value.scalar(value), codegen


@intrinsic  # type: ignore[untyped-decorator]
def exp(typingctx: Any, x: Any) -> Any:
    """e to the power of every lane, within 2 units in the last place; tiny ones are not denormal."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        power, rest = _exp_parts(builder, x, args[0])
        return builder.fadd(builder.fmul(power, rest, flags=_FUSED), power, flags=_FUSED)

    return x(x), codegen


@intrinsic  # type: ignore[untyped-decorator]
def sigmoid(typingctx: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)) of every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        one = constant(x, 1.0)
        power, rest = _exp_parts(builder, x, builder.fneg(args[0]))
        exponential = builder.fadd(builder.fmul(power, rest, flags=_FUSED), power, flags=_FUSED)
        return builder.fdiv(one, builder.fadd(one, exponential))

    return x(x), codegen


@intrinsic  # type: ignore[untyped-decorator]
def tanh(typingctx: Any, x: Any) -> Any:
    """The hyperbolic tangent of every lane, exact to rounding near zero too.

    By exp(2x) - 1, not exp(2x), so that nothing cancels: tanh = e / (e + 2).
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        bound = constant(x, 40.0)  # beyond it tanh is 1 in every type, and e might overflow
        double = builder.fadd(args[0], args[0])
        double = builder.select(builder.fcmp_ordered(">", double, bound), bound, double)
        power, rest = _exp_parts(builder, x, double)
        less_one = builder.fsub(power, constant(x, 1.0))
        e = builder.fadd(builder.fmul(power, rest, flags=_FUSED), less_one, flags=_FUSED)
        return builder.fdiv(e, builder.fadd(e, constant(x, 2.0)))

    return x(x), codegen


def _exp_parts(builder: ir.IRBuilder, vec: Vec, x: Any) -> tuple[Any, Any]:
    r"""2^n and exp(r) - 1 for x = n ln 2 + r, |r| <= ln(2) / 2; NaN stays NaN in the second.

    n is rounded by adding a number so large that no fraction fits beside it, which leaves n in the
    low bits; a conversion to an integer would be undefined for NaN.
    """
    single = vec.scalar == types.float32
    mantissa, bias, terms = (23, 127, 8) if single else (52, 1023, 14)
    low, high = (-87.0, 88.0) if single else (-708.0, 709.0)
    # ln 2 in two parts, the first with so few digits that n times it is exact
    ln2_high, ln2_low = (
        (0.693359375, -2.12194440054690583e-4)
        if single
        else (6.93147180369123816490e-01, 1.90821492927058770002e-10)
    )
    for bound, side in ((low, "<"), (high, ">")):
        limit = constant(vec, bound)
        x = builder.select(builder.fcmp_ordered(side, x, limit), limit, x)
    magic = constant(vec, 1.5 * 2.0**mantissa)
    shifted_n = builder.fadd(builder.fmul(x, constant(vec, 1 / math.log(2))), magic)
    n = builder.fsub(shifted_n, magic)
    r = x
    for part in (ln2_high, ln2_low):
        step = builder.fmul(n, constant(vec, part), flags=_FUSED)
        r = builder.fsub(r, step, flags=_FUSED)
    integer = ir.IntType(vec.scalar.bitwidth)
    integers = ir.VectorType(integer, vec.lanes)
    bits = builder.shl(
        builder.bitcast(shifted_n, integers), ir.Constant(integers, [mantissa] * vec.lanes)
    )
    bits = builder.add(bits, ir.Constant(integers, [bias << mantissa] * vec.lanes))
    power = builder.bitcast(bits, _llvm(vec))
    series = constant(vec, 1 / math.factorial(terms - 1))  # Taylor: r + r^2 / 2! + ...
    for term in range(terms - 2, 1, -1):
        series = builder.fmul(series, r, flags=_FUSED)
        series = builder.fadd(series, constant(vec, 1 / math.factorial(term)), flags=_FUSED)
    squared = builder.fmul(builder.fmul(r, r, flags=_FUSED), series, flags=_FUSED)
    return power, builder.fadd(squared, r, flags=_FUSED)


# Matrix products


def _make_tile(rows: int, vectors: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
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
    full = _llvm(vec)
    align = vec.bytes
    entry, loop = builder.block, builder.append_basic_block("depth")
    done = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    i = builder.phi(_I64)
    i.add_incoming(_I64(0), entry)
    sums = [[builder.phi(full) for _ in range(vectors)] for _ in range(rows)]
    line = builder.mul(i, ldw)
    columns = [
        builder.load(
            _vector_at(builder, vec, w, builder.add(line, _I64(v * vec.lanes))), align=align
        )
        for v in range(vectors)
    ]
    fma = ir.FunctionType(full, [full] * 3)
    new = []
    for r in range(rows):
        place = builder.gep(a, [builder.add(builder.mul(_I64(r), lda), i)])
        factor = _broadcast(builder, full, builder.load(place, align=align))
        new.append(
            [
                _call(builder, f"fma.{_suffix(vec)}", fma, [factor, columns[v], sums[r][v]])
                for v in range(vectors)
            ]
        )
    following = builder.add(i, _I64(1))
    i.add_incoming(following, loop)
    for r in range(rows):
        for v in range(vectors):
            sums[r][v].add_incoming(constant(vec, 0.0), entry)
            sums[r][v].add_incoming(new[r][v], loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
    builder.position_at_end(done)
    for r in range(rows):
        for v in range(vectors):
            place = builder.add(builder.mul(_I64(r), ldc), _I64(v * vec.lanes))
            builder.store(new[r][v], _vector_at(builder, vec, c, place), align=align)


_wide_tile, _wide_row = _make_tile(TILE_ROWS, TILE_VECTORS), _make_tile(1, TILE_VECTORS)
_narrow_tile, _narrow_row = _make_tile(TILE_ROWS, 1), _make_tile(1, 1)


@kernel
def matmul(
    count: int, a: Any, step_a: int, lda: int, w: Any, step_w: int, ldw: int,
    c: Any, step_c: int, ldc: int, rows: int, depth: int, columns: int,
) -> None:  # fmt: skip
    """C = A W ``count`` times: (rows, depth) times (depth, columns).

    ``ld*`` is how many entries lie between lines, ``step_*`` between matrices. Columns are rounded
    up to whole vectors: lines of W and C must have room for them.
    """
    lanes = lanes_of(a[0])
    wide = TILE_VECTORS * lanes
    for m in range(count):
        j = 0
        while j < columns:
            is_wide = columns - j > wide - lanes
            w_j = shifted(w, m * step_w + j)
            r = 0
            while r < rows:
                a_r, c_r = shifted(a, m * step_a + r * lda), shifted(c, m * step_c + r * ldc + j)
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


def _broadcast(builder: ir.IRBuilder, full: ir.VectorType, scalar: Any) -> Any:
    nothing = ir.Constant(full, ir.Undefined)
    first = builder.insert_element(nothing, scalar, _I32(0))
    lanes = ir.Constant(ir.VectorType(_I32, full.count), [0] * full.count)
    return builder.shuffle_vector(first, nothing, lanes)


def constant(vec: Vec, value: float) -> ir.Constant:
    """``value`` in every lane."""
    return ir.Constant(_llvm(vec), [value] * vec.lanes)


def _suffix(vec: Vec) -> str:
    return f"v{vec.lanes}f{vec.scalar.bitwidth}"


def _call(
    builder: ir.IRBuilder, name: str, shape: ir.FunctionType, args: Any, flags: Any = ()
) -> Any:
    function = cgutils.get_or_insert_function(builder.module, shape, f"llvm.{name}")
    return builder.call(function, args, fastmath=flags)
