"""Attention over slots as one autograd function, computed by the native kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nfm.attention import MemoryEntry, SlotRead
from nfm.native import build, plan
from nfm.native import table as e
from nfm.rescale import Rescale
from rims.functional import TopKRule
from rims.native import threads
from rims.native.eager import needs_autograd
from rims.native.memory import address

#: Fewer products than this are computed by the calling thread: waking others takes longer.
_MIN_PRODUCTS = 200_000


class Rules(NamedTuple):
    """Settings of an attention, see :func:`nfm.attention.attend_plainly`."""

    num_heads: int
    top_k: int | None
    topk_rule: TopKRule
    rescale: Rescale
    null_slot: bool


#: The same in differentiable PyTorch, rules as named arguments.
InPyTorch = Callable[..., SlotRead]


#: Why a kernel, ``"forward"`` or ``"back"``, cannot be used in double or single precision, or None.
Fault = Callable[[Literal["forward", "back"], bool], str | None]


def attend(
    query: Tensor,
    memory: Sequence[MemoryEntry],
    rules: Rules,
    in_pytorch: InPyTorch,
    fault: Fault,
) -> SlotRead:
    """Read ``memory``, whose numbers are all float32 or all float64, on the CPU.

    ``in_pytorch`` computes the same; higher derivatives are left to it, and gradients where the
    kernel for them has a fault.
    """
    tensors = [t.contiguous() for entry in memory for t in entry]
    if torch.is_grad_enabled():
        found = _Attend.apply(rules, in_pytorch, fault, query.contiguous(), *tensors)  # type: ignore[no-untyped-call]
        return SlotRead(*found)
    return SlotRead(*forward(rules, query.contiguous(), tensors))


class _Attend(torch.autograd.Function):
    """Read values and weights; nothing else is kept of the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, rules: Rules, in_pytorch: InPyTorch, fault: Fault, query: Tensor, *memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read, and keep what the gradient needs."""
        ctx.rules, ctx.in_pytorch, ctx.fault = rules, in_pytorch, fault
        ctx.set_materialize_grads(False)
        read, weights = forward(rules, query, memory)
        ctx.save_for_backward(query, *memory, weights)
        return read, weights

    @staticmethod
    def backward(
        ctx: Any, d_read: Tensor | None, d_weights: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of query, keys and values."""
        if d_read is None and d_weights is None:
            return (None,) * len(ctx.needs_input_grad)
        query, *memory, weights = ctx.saved_tensors
        double = query.dtype == torch.float64
        if needs_autograd(d_read, d_weights) or ctx.fault("back", double):
            found = _in_pytorch(ctx, d_read, d_weights, query, memory)
        else:
            found = backward(ctx.rules, d_read, d_weights, query, memory, weights)
        return (None, None, None, *found)


def _in_pytorch(
    ctx: Any,
    d_read: Tensor | None,
    d_weights: Tensor | None,
    query: Tensor,
    memory: Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients that can be differentiated again."""
    # Aliases: one argument may come of another, and what flows on from one to the other is for
    # autograd to follow, not for this function.
    with torch.enable_grad():
        arguments = [tensor.view_as(tensor) for tensor in (query, *memory)]
        outputs = ctx.in_pytorch(arguments[0], entries(arguments[1:]), **ctx.rules._asdict())
        pairs = [(o, d) for o, d in zip(outputs, (d_read, d_weights), strict=True) if d is not None]
        sources = [a for a in arguments if a.requires_grad]
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            sources,
            [d for _, d in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    by_source = dict(zip(map(id, sources), found, strict=True))
    return [by_source.get(id(a)) for a in arguments]


def entries(tensors: Sequence[Tensor]) -> list[MemoryEntry]:
    """Keys and values, one after the other, as entries."""
    return [MemoryEntry(k, v) for k, v in zip(tensors[::2], tensors[1::2], strict=True)]


def forward(rules: Rules, query: Tensor, memory: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Read values and weights; ``memory`` is keys and values in turn."""
    layout = _plan(rules, query, memory)
    batch, heads, size = query.shape[0], rules.num_heads, query.shape[2:]
    read = query.new_empty(batch, memory[1].shape[1], *size)
    weights = query.new_empty(batch, heads, layout.num_slots, *size)
    arrays = {e.QUERY: query, e.READ: read, e.WEIGHTS: weights}
    for i, tensor in enumerate(memory):
        arrays[_field(i, e.KEY, e.VALUE)] = tensor
    _run("forward", layout, arrays)
    return read, weights


def backward(
    rules: Rules,
    d_read: Tensor | None,
    d_weights: Tensor | None,
    query: Tensor,
    memory: Sequence[Tensor],
    weights: Tensor,
) -> list[Tensor | None]:
    """Gradients of query, keys and values."""
    layout = _plan(rules, query, memory)
    if d_read is None:
        d_read = query.new_zeros(query.shape[0], memory[1].shape[1], *query.shape[2:])
    gradients = [torch.empty_like(tensor) for tensor in (query, *memory)]
    arrays = {
        e.QUERY: query, e.WEIGHTS: weights, e.D_READ: d_read.contiguous(), e.D_QUERY: gradients[0]
    }  # fmt: skip
    if d_weights is not None:
        arrays[e.D_WEIGHTS] = d_weights.contiguous()
    for i, (tensor, gradient) in enumerate(zip(memory, gradients[1:], strict=True)):
        arrays[_field(i, e.KEY, e.VALUE)] = tensor
        arrays[_field(i, e.D_KEY, e.D_VALUE)] = gradient
    _run("back", layout, arrays)
    return [*gradients]


def _field(i: int, of_key: int, of_value: int) -> int:
    """Index in a table for the ``i``-th tensor of a memory: key, value, key, ..."""
    return e.HEAD + (i // 2) * e.ENTRY + (of_value if i % 2 else of_key)


def _plan(rules: Rules, query: Tensor, memory: Sequence[Tensor]) -> plan.Plan:
    slabs = query.shape[0] * rules.num_heads
    return plan.make(
        plan.Sizes(
            size=tuple(query.shape[2:]),
            sources=tuple(tuple(key.shape[2:]) for key in memory[::2]),
            slabs=slabs,
            key_size=query.shape[1] // rules.num_heads,
            value_size=memory[1].shape[1] // rules.num_heads,
            top_k=rules.top_k,
            rule=rules.topk_rule,
            rescale=rules.rescale,
            null_slot=rules.null_slot,
            item=query.element_size(),
            num_threads=torch.get_num_threads(),
        )
    )


def _run(name: Literal["forward", "back"], layout: plan.Plan, arrays: dict[int, Tensor]) -> None:
    query = arrays[e.QUERY]
    table = layout.table.copy()
    for place, tensor in arrays.items():
        table[place] = address(tensor, query.dtype, layout.arrays[place])
    # zeros: what lies there might be denormal, and computing with that is slow
    scratch = np.zeros(layout.scratch_bytes + 64, dtype=np.uint8)
    table[e.SCRATCH] = -(-scratch.ctypes.data // 64) * 64
    products = query.numel() * layout.num_slots
    count = layout.num_threads if products >= _MIN_PRODUCTS else 1
    code = build.code(name, query.dtype == torch.float64).address
    threads.run(code, table.ctypes.data, count)
