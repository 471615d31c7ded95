"""Vector operations that only a selection needs, beside those of :mod:`rims.native.simd`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rims.native.vectors import Vec, broadcast, call, llvm_type


@intrinsic
def filled(typingctx: Any, like: Any, value: Any) -> Any:
    """A vector with the number ``value``, rounded to the type of ``like``, in every lane."""
    vec = Vec(like)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        number = context.cast(builder, args[1], types.float64, like)
        return broadcast(builder, llvm_type(vec), number)

    return vec(like, types.float64), codegen


@intrinsic
def smaller(typingctx: Any, a: Any, b: Any) -> Any:
    """The smaller of each pair of lanes; the second where one is NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return a(a, b), codegen


@intrinsic
def where_above(typingctx: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """``yes`` in the lanes in which a > b or one of them is NaN, else ``no``."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_unordered(">", args[0], args[1]), args[2], args[3])

    return a(a, a, a, a), codegen


@intrinsic
def where_equal(typingctx: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """``yes`` in the lanes in which a == b, else ``no``."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("==", args[0], args[1]), args[2], args[3])

    return a(a, a, a, a), codegen


@intrinsic
def expect(typingctx: Any, base: Any, index: Any) -> Any:
    """Fetch what lies at ``index`` into the second-level cache; it is needed soon.

    Rows of a map are too far apart for the processor to prefetch them itself.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        byte = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        shape = ir.FunctionType(ir.VoidType(), [byte.type, i32, i32, i32])
        call(builder, "prefetch.p0", shape, [byte, i32(0), i32(2), i32(1)])
        return context.get_dummy_value()

    return types.void(base, types.int64), codegen


@intrinsic
def doubled(typingctx: Any, x: Any) -> Any:
    """Every lane of the first half twice: a b c d -> a a b b."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return _shuffled(builder, args[0], [lane // 2 for lane in range(x.lanes)])

    return x(x), codegen


@intrinsic
def halved(typingctx: Any, x: Any) -> Any:
    """Sums of two lanes each in the first half: a b c d -> a+b c+d . . ."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        even = [2 * lane % x.lanes for lane in range(x.lanes)]
        first, second = even, [lane + 1 for lane in even]
        return builder.fadd(*(_shuffled(builder, args[0], which) for which in (first, second)))

    return x(x), codegen


def _shuffled(builder: ir.IRBuilder, x: Any, lanes: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(x, x, mask)
