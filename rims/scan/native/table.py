"""The table a kernel gets: numbers and addresses of arrays, read as ``b.rows`` or ``b.h[i]``.

Sizes use the letters of ``docs/notation.md``; R is the rows (samples) of a block, the share of a
batch that goes through the steps together. A thread takes a group of blocks at a time, one block
after the other. What these write for themselves alone, the group's scratch (``s_*``), has rows
padded to whole vectors: ``unit`` for d, ``gate`` for G d, ``key_row`` for M dk, ``heads`` for M dv,
``width`` for queries, keys and values side by side, ``pair`` for 2 d, ``lines`` for k M. What a
group holds for the gradients of the weights is not padded.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import models, register_default
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, lower_getattr_generic

from rims.native.simd import inlined
from rims.native.vectors import Vec, constant

# fmt: off
NUMBERS = [
    "next", "groups", "blocks", "block_rows", "batch", "first", "last", "row", "rows",
    "n", "k", "d", "g", "m", "dk", "dv", "is_lstm", "reads_state", "gates_input", "gate_learns",
    "has_reset", "has_valid", "has_fresh", "has_bias", "has_comm_bias",
    "packs", "so_far", "is_end", "done", "held_steps",
    "unit", "gate", "key_row", "heads", "width", "pair", "lines", "scratch_bytes", "held_bytes",
]
#: Flags of one byte, and numbers of 8 bytes; other arrays hold numbers of the compute type.
BYTES = ["reset", "valid", "active"]
INTEGERS = ["s_picked", "s_chosen"]
#: States and weights as the cell has them.
GIVEN = [
    "h0", "c0", "fresh_h", "fresh_c",
    "w_hh", "w_query", "w_key", "w_value", "w_output", "w_gate",
    "b_ih", "b_hh", "b_output", "b_gate",
]
#: Weights packed for the forward and the backward pass.
PACKED = [
    "p_hh", "p_query", "p_key", "p_value", "p_out", "p_b_ih", "p_b_hh", "p_b_out",
    "p_hh_back", "p_qkv_back", "p_out_back",
]
#: The sequence (T, B, .) from its first step.
SEQUENCE = ["reset", "valid", "h", "c", "active"]
#: The input side of the steps from ``first`` on.
INPUTS = ["query_side", "gate_side"]
#: Gradients: of the input side and the outputs of these steps, and those carried through time.
OF_STEPS = ["d_query_side", "d_gate_side", "grad_h"]
CARRIED = ["carry_h", "carry_c", "carry_fresh_h", "carry_fresh_c"]
#: Gradients of the weights, in their shapes.
SUMS = [
    "sum_hh", "sum_query", "sum_key", "sum_value", "sum_output", "sum_gate",
    "sum_b_ih", "sum_b_hh", "sum_b_output", "sum_b_gate",
]
#: Values a group keeps for the gradients of the weights: rows of up to ``held_steps`` steps, whose
#: products are then added to the group's sums.
HELD = [
    "d_state_gates", "d_qkv", "d_output_gate", "h_prev", "comm_input", "read",
    "own_hh", "own_qkv", "own_out", "own_b_hh", "own_b_n", "own_b_out",
]
SCRATCH = [
    *INTEGERS,
    # state, candidates and gates
    "s_h", "s_c", "s_share", "s_score", "s_pre", "s_aux", "s_cand_h", "s_cand_c",
    # communication
    "s_qkv", "s_alpha", "s_read", "s_out",
    # gradients
    "s_grad_h", "s_grad_c", "s_queries", "s_d_read", "s_d_comm_input", "s_d_alpha", "s_d_h",
]
# fmt: on

#: Arrays that the caller gives.
OTHERS = [*GIVEN, *SEQUENCE, *INPUTS, *OF_STEPS, *CARRIED]
NAMES = [*NUMBERS, "scale", *OTHERS, *PACKED, *SUMS, *HELD, *SCRATCH]
INDEX = {name: index for index, name in enumerate(NAMES)}
SIZE = len(NAMES)
_FIRST_HELD, _FIRST_SCRATCH = INDEX[HELD[0]], INDEX[SCRATCH[0]]
_NEXT, _DONE, _ROW, _ROWS = (INDEX[name] for name in ("next", "done", "row", "rows"))


class Table(types.Type):
    """A pointer to a table whose arrays hold numbers of type ``scalar``."""

    def __init__(self, scalar: types.Float) -> None:
        self.scalar = scalar
        super().__init__(name=f"Table({scalar})")


@register_default(Table)
class _TableModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Table) -> None:
        super().__init__(dmm, fe_type, ir.IntType(64).as_pointer())


@infer_getattr
class _Attributes(AttributeTemplate):
    key = Table

    def generic_resolve(self, table: Table, name: str) -> Any:
        if name in NUMBERS or name == "lanes":
            return types.int64
        if name == "scale":
            return table.scalar
        if name in ("zero", "one"):
            return Vec(table.scalar)
        if name in BYTES:
            return types.CPointer(types.uint8)
        return types.CPointer(types.int64 if name in INTEGERS else table.scalar)


@lower_getattr_generic(Table)
def _attribute(context: Any, builder: ir.IRBuilder, table: Table, value: Any, name: str) -> Any:
    vec = Vec(table.scalar)
    if name == "lanes":
        return ir.IntType(64)(vec.lanes)
    if name in ("zero", "one"):
        return constant(vec, float(name == "one"))
    entry = builder.load(builder.gep(value, [ir.IntType(64)(INDEX[name])]))
    if name in NUMBERS:
        return entry
    if name == "scale":
        number = builder.bitcast(entry, ir.DoubleType())
        return context.cast(builder, number, types.float64, table.scalar)
    shape = _Attributes(context.typing_context).generic_resolve(table, name)
    return builder.inttoptr(entry, context.get_value_type(shape))


@intrinsic
def as_table(typingctx: Any, address: Any, like: Any) -> Any:
    """A pointer to int64 as a table of arrays of numbers like ``like``."""
    return Table(like)(address, like), lambda context, builder, sig, args: args[0]


def _counter(index: int, ordering: str) -> Any:
    @intrinsic
    def count(typingctx: Any, table: Any) -> Any:
        """Return a number of the table and increment it there, atomically."""

        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            counter = builder.gep(args[0], [ir.IntType(64)(index)])
            return builder.atomic_rmw("add", counter, ir.IntType(64)(1), ordering)

        return types.int64(table), codegen

    return count


take_next = _counter(_NEXT, "monotonic")
#: How many groups were done before; whoever is last sees what the others wrote.
count_done = _counter(_DONE, "acq_rel")


@intrinsic
def _entries(typingctx: Any, table: Any, index: Any) -> Any:
    """The bare entries of the ``index``-th table in a row."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [builder.mul(args[1], ir.IntType(64)(SIZE))])

    return types.CPointer(types.int64)(table, types.int64), codegen


@inlined
def first_block(a: Any, group: int) -> Any:
    """First block of a group, or of the one that would follow the last."""
    return group * a.blocks // a.groups


@inlined
def own_block(a: Any, group: int, block: int) -> Any:
    """The group's table, behind the shared one, for a block: its rows and the group's memory."""
    shared, own = _entries(a, 0), _entries(a, group + 1)
    for i in range(SIZE):
        own[i] = shared[i]
        if i >= _FIRST_SCRATCH:
            own[i] += group * a.scratch_bytes
        elif i >= _FIRST_HELD:
            own[i] += group * a.held_bytes
    own[_ROW] = block * a.block_rows
    own[_ROWS] = min(a.block_rows, a.batch - own[_ROW])
    return as_table(own, a.scale)
