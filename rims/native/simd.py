"""Vector instructions for Numba: what the kernels are written in.

Numba leaves vectorising to LLVM, which gives up on loops over as many arrays as a gate has, and
knows no fast vector ``exp``. So a vector is a type of its own here: ``load`` makes one from memory,
and ``+ - * /`` work on all lanes. Its width is that of the machine's largest vectors.

Memory is addressed by a pointer and an index, unchecked as in C.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from rims.native.vectors import (
    FUSED,
    I32,
    I64,
    Vec,
    broadcast,
    call,
    constant,
    first_lanes,
    llvm_scalar,
    llvm_type,
    masked_load,
    masked_store,
    suffix,
    vector_at,
)

#: How a function becomes part of a kernel.
kernel = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
#: The same for a function of a few lines, written out wherever it is called.
inlined = njit(error_model="numpy", inline="always")


def _operator(op: Callable[..., Any], build: Callable[[ir.IRBuilder, Any, Any], Any]) -> None:
    """Define ``op`` for two vectors."""

    @infer_global(op)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and all(isinstance(arg, Vec) for arg in args):
                return signature(args[0], *args)
            return None

    @lower_builtin(op, Vec, Vec)
    def _lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return build(builder, *args)


_operator(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=FUSED))
_operator(operator.iadd, lambda builder, a, b: builder.fadd(a, b, flags=FUSED))
_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=FUSED))
_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=FUSED))
_operator(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))


# Memory


@intrinsic
def shifted(typingctx: Any, base: Any, index: Any) -> Any:
    """The pointer ``index`` entries after ``base``."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return base(base, types.int64), codegen


@intrinsic
def lanes_of(typingctx: Any, like: Any) -> Any:
    """Number of lanes of a vector of numbers like ``like``."""
    count = Vec(like).lanes
    return types.int64(like), lambda context, builder, sig, args: I64(count)


@intrinsic
def load(typingctx: Any, base: Any, index: Any) -> Any:
    """The vector that begins at ``index``."""
    vec = Vec(base.dtype)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.load(vector_at(builder, vec, *args), align=vec.bytes)

    return vec(base, types.int64), codegen


@intrinsic
def store(typingctx: Any, base: Any, index: Any, value: Any) -> Any:
    """Write ``value`` from ``index`` on."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        place = vector_at(builder, value, args[0], args[1])
        builder.store(args[2], place, align=value.bytes)
        return context.get_dummy_value()

    return types.void(base, types.int64, value), codegen


@intrinsic
def load_up_to(typingctx: Any, base: Any, index: Any, left: Any) -> Any:
    """As ``load`` where only ``left`` entries may be read; the other lanes are zero."""
    vec = Vec(base.dtype)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        whole = builder.icmp_signed(">=", args[2], I64(vec.lanes))
        place = vector_at(builder, vec, args[0], args[1])
        with builder.if_else(whole) as (all_lanes, some_lanes):
            with all_lanes:
                full, full_block = builder.load(place, align=vec.bytes), builder.block
            with some_lanes:
                mask = first_lanes(builder, vec, args[2])
                part, part_block = masked_load(builder, vec, place, mask), builder.block
        result = builder.phi(llvm_type(vec))
        result.add_incoming(full, full_block)
        result.add_incoming(part, part_block)
        return result

    return vec(base, types.int64, types.int64), codegen


@intrinsic
def store_up_to(typingctx: Any, base: Any, index: Any, left: Any, value: Any) -> Any:
    """As ``store`` where only ``left`` entries may be written."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        whole = builder.icmp_signed(">=", args[2], I64(value.lanes))
        place = vector_at(builder, value, args[0], args[1])
        with builder.if_else(whole) as (all_lanes, some_lanes):
            with all_lanes:
                builder.store(args[3], place, align=value.bytes)
            with some_lanes:
                mask = first_lanes(builder, value, args[2])
                masked_store(builder, value, args[3], place, mask)
        return context.get_dummy_value()

    return types.void(base, types.int64, types.int64, value), codegen


# Arithmetic


@intrinsic
def splat(typingctx: Any, value: Any) -> Any:
    """A vector with ``value`` in every lane."""
    vec = Vec(value)
    return vec(value), lambda context, builder, sig, args: broadcast(builder, llvm_type(vec), *args)


@intrinsic
def total(typingctx: Any, value: Any) -> Any:
    """The sum over the lanes."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        scalar = llvm_scalar(value.scalar)
        shape = ir.FunctionType(scalar, [scalar, llvm_type(value)])
        # "reassoc": a tree of additions instead of a chain of them
        name = f"vector.reduce.fadd.{suffix(value)}"
        return call(builder, name, shape, [scalar(0.0), *args], flags=("reassoc",))

    return value.scalar(value), codegen


@intrinsic
def store_totals(typingctx: Any, base: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Write the sums over the lanes of four vectors side by side, from ``index`` on."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        pointer, place, *vectors = args
        four = _four_totals(builder, a.lanes, vectors)
        target = builder.gep(pointer, [place])
        builder.store(four, builder.bitcast(target, four.type.as_pointer()), align=a.bytes)
        return context.get_dummy_value()

    return types.void(base, types.int64, a, a, a, a), codegen


def _four_totals(builder: ir.IRBuilder, lanes: int, vectors: list[Any]) -> Any:
    """A vector of four sums, which share what additions they can.

    A sum is spread over a group of lanes. Two vectors of groups become one with groups half as
    wide, until all four share one vector.
    """

    def picked(one: Any, other: Any, places: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(I32, len(places)), places)
        return builder.shuffle_vector(one, other, mask)

    def halved(one: Any, other: Any, width: int) -> Any:
        starts = [*range(0, lanes, width), *range(lanes, 2 * lanes, width)]
        low = [start + i for start in starts for i in range(width // 2)]
        high = [place + width // 2 for place in low]
        return builder.fadd(picked(one, other, low), picked(one, other, high))

    width = lanes
    while len(vectors) > 1 and width > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors, width = [halved(one, other, width) for one, other in pairs], width // 2
    sums = vectors[0]
    if len(vectors) > 1:  # two lanes: a vector of two sums each
        return picked(sums, vectors[1], list(range(4)))
    while width > 1:
        turned = [i - i % width + (i + width // 2) % width for i in range(lanes)]
        sums, width = builder.fadd(sums, picked(sums, sums, turned)), width // 2
    return picked(sums, sums, list(range(0, lanes, lanes // 4)))


@intrinsic
def larger(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger of each pair of lanes; the second where one is NaN."""
    return a(a, b), lambda context, builder, sig, args: _larger(builder, *args)


def _larger(builder: ir.IRBuilder, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def exp(typingctx: Any, x: Any) -> Any:
    """e to the power of every lane, within 2 units in the last place.

    Below -80 (double: -690) the power is that of the bound: small enough to vanish in any sum, but
    not so small that a quotient of it becomes denormal, which costs a hundred times as much.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        power, rest = _exp_parts(builder, x, args[0])
        return builder.fadd(builder.fmul(power, rest, flags=FUSED), power, flags=FUSED)

    return x(x), codegen


@intrinsic
def sigmoid(typingctx: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)) of every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        one = constant(x, 1.0)
        power, rest = _exp_parts(builder, x, builder.fneg(args[0]))
        exponential = builder.fadd(builder.fmul(power, rest, flags=FUSED), power, flags=FUSED)
        return builder.fdiv(one, builder.fadd(one, exponential))

    return x(x), codegen


@intrinsic
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
        e = builder.fadd(builder.fmul(power, rest, flags=FUSED), less_one, flags=FUSED)
        return builder.fdiv(e, builder.fadd(e, constant(x, 2.0)))

    return x(x), codegen


def _exp_parts(builder: ir.IRBuilder, vec: Vec, x: Any) -> tuple[Any, Any]:
    r"""2^n and exp(r) - 1 for x = n ln 2 + r, |r| <= ln(2) / 2; NaN stays NaN in the second.

    n is rounded by adding a number so large that no fraction fits beside it, which leaves n in the
    low bits; a conversion to an integer would be undefined for NaN.
    """
    single = vec.scalar == types.float32
    mantissa, bias, terms = (23, 127, 8) if single else (52, 1023, 14)
    low, high = (-80.0, 88.0) if single else (-690.0, 709.0)
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
        step = builder.fmul(n, constant(vec, part), flags=FUSED)
        r = builder.fsub(r, step, flags=FUSED)
    integer = ir.IntType(vec.scalar.bitwidth)
    integers = ir.VectorType(integer, vec.lanes)
    bits = builder.shl(
        builder.bitcast(shifted_n, integers), ir.Constant(integers, [mantissa] * vec.lanes)
    )
    bits = builder.add(bits, ir.Constant(integers, [bias << mantissa] * vec.lanes))
    power = builder.bitcast(bits, llvm_type(vec))
    series = constant(vec, 1 / math.factorial(terms - 1))  # Taylor: r + r^2 / 2! + ...
    for term in range(terms - 2, 1, -1):
        series = builder.fmul(series, r, flags=FUSED)
        series = builder.fadd(series, constant(vec, 1 / math.factorial(term)), flags=FUSED)
    squared = builder.fmul(builder.fmul(r, r, flags=FUSED), series, flags=FUSED)
    return power, builder.fadd(squared, r, flags=FUSED)
