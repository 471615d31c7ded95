"""The vector type of Numba kernels and LLVM code for it; :mod:`rims.native.simd` builds on it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.core.registry import cpu_target


def _features() -> dict[str, bool]:
    """Features of the target processor: this one, or the one in NUMBA_CPU_FEATURES."""
    written = cpu_target.target_context.codegen().magic_tuple()[2]
    return {name[1:]: name[0] == "+" for name in written.split(",") if name}


#: What the processor can do that is compiled for.
FEATURES = _features()
#: Bytes of its largest vectors.
VECTOR_BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx2") else 16

I32, I64 = ir.IntType(32), ir.IntType(64)
#: LLVM flags: a product and a sum may become one instruction; nothing else is reordered.
FUSED = ("contract",)


class Vec(types.Type):
    """A register full of ``scalar``."""

    def __init__(self, scalar: types.Float) -> None:
        self.scalar = scalar
        self.lanes = VECTOR_BYTES * 8 // scalar.bitwidth
        self.bytes = scalar.bitwidth // 8  # of one number
        super().__init__(name=f"Vec({scalar}, {self.lanes})")


@register_default(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vec) -> None:
        super().__init__(dmm, fe_type, llvm_type(fe_type))


def llvm_type(vec: Vec) -> ir.VectorType:
    """The vector as LLVM knows it."""
    return ir.VectorType(llvm_scalar(vec.scalar), vec.lanes)


def llvm_scalar(scalar: types.Type) -> Any:
    """A number of the vector as LLVM knows it."""
    return ir.FloatType() if scalar == types.float32 else ir.DoubleType()


def broadcast(builder: ir.IRBuilder, full: ir.VectorType, scalar: Any) -> Any:
    """A vector of type ``full`` with ``scalar`` in every lane."""
    nothing = ir.Constant(full, ir.Undefined)
    first = builder.insert_element(nothing, scalar, I32(0))
    lanes = ir.Constant(ir.VectorType(I32, full.count), [0] * full.count)
    return builder.shuffle_vector(first, nothing, lanes)


def constant(vec: Vec, value: float) -> ir.Constant:
    """``value`` in every lane."""
    return ir.Constant(llvm_type(vec), [value] * vec.lanes)


def suffix(vec: Vec) -> str:
    """Suffix of LLVM's functions for such vectors."""
    return f"v{vec.lanes}f{vec.scalar.bitwidth}"


def call(
    builder: ir.IRBuilder, name: str, shape: ir.FunctionType, args: Any, flags: Any = ()
) -> Any:
    """Call one of LLVM's own functions."""
    function = cgutils.get_or_insert_function(builder.module, shape, f"llvm.{name}")
    return builder.call(function, args, fastmath=flags)


def vector_at(builder: ir.IRBuilder, vec: Vec, base: Any, index: Any) -> Any:
    """Pointer to the vector that begins ``index`` entries after ``base``."""
    return builder.bitcast(builder.gep(base, [index]), llvm_type(vec).as_pointer())


def first_lanes(builder: ir.IRBuilder, vec: Vec, count: Any) -> Any:
    """A mask that is true for the first ``count`` lanes."""
    integers = ir.VectorType(I64, vec.lanes)
    lane = ir.Constant(integers, list(range(vec.lanes)))
    return builder.icmp_signed("<", lane, broadcast(builder, integers, count))


def masked_load(builder: ir.IRBuilder, vec: Vec, place: Any, mask: Any) -> Any:
    """The lanes that ``mask`` has of the vector at ``place``; the others are zero."""
    full = llvm_type(vec)
    shape = ir.FunctionType(full, [place.type, I32, mask.type, full])
    zero = ir.Constant(full, [0.0] * vec.lanes)
    name = f"masked.load.{suffix(vec)}.p0"
    return call(builder, name, shape, [place, I32(vec.bytes), mask, zero])


def masked_store(builder: ir.IRBuilder, vec: Vec, value: Any, place: Any, mask: Any) -> Any:
    """Write the lanes that ``mask`` has; the others are left alone."""
    shape = ir.FunctionType(ir.VoidType(), [llvm_type(vec), place.type, I32, mask.type])
    name = f"masked.store.{suffix(vec)}.p0"
    return call(builder, name, shape, [value, place, I32(vec.bytes), mask])
