"""A whole sequence as one operator, ``torch.ops.rims.scan``, for compiled and exported graphs.

``torch.compile`` and ``torch.export`` see a single node with a gradient of its own; what computes
it is chosen before, by name. Eager code takes the shorter way of :mod:`rims.scan.function`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rims.scan import hoisted, paths, unrolled
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Hoisted, Sequence, new_carry

#: What the operator takes.
_SCHEMA = (
    "(Tensor input, Tensor h, Tensor? c, Tensor? fresh_h, Tensor? fresh_c, Tensor[] weights, "
    "Tensor? reset, Tensor? valid, int k, int num_heads, bool reads_state, str path, bool save)"
)
# The last four are for the gradient: empty unless asked for.
_RESULTS = " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
_GRADIENTS = " -> Tensor[]"


@torch.library.custom_op("rims::scan", mutates_args=(), schema=_SCHEMA + _RESULTS)
def scan_op(
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    fresh_h: Tensor | None,
    fresh_c: Tensor | None,
    weights: list[Tensor],
    reset: Tensor | None,
    valid: Tensor | None,
    k: int,
    num_heads: int,
    reads_state: bool,
    path: str,
    save: bool,
) -> tuple[Tensor, ...]:
    """h of every step, the last h, the last c, active; c of every step, x W, U, G."""
    recurrence = paths.recurrence(path, input, "forward")(
        Weights(*weights),
        Rules(k, num_heads, reads_state),
        States(h, c, fresh_h, fresh_c),
        Flags(reset, valid),
    )
    # The choice would depend on sizes that a graph may leave open.
    out, saved = hoisted.forward(recurrence, input, save=save, join=False)
    last_c = None if out.c is None else out.c[-1].clone()
    kept = (None,) * 4 if saved is None else (out.c, saved.key_value, *saved.inputs)
    return tuple(_present(input, (out.h, out.h[-1].clone(), last_c, out.active, *kept)))


@scan_op.register_fake
def _scan_shapes(
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    fresh_h: Tensor | None,
    fresh_c: Tensor | None,
    weights: list[Tensor],
    reset: Tensor | None,
    valid: Tensor | None,
    k: int,
    num_heads: int,
    reads_state: bool,
    path: str,
    save: bool,
) -> tuple[Tensor, ...]:
    w = Weights(*weights)
    steps, batch, _ = input.shape
    size = w.num_rims * w.unit_size
    empty = input.new_empty
    kept: tuple[Tensor | None, ...] = (None,) * 4
    if save:
        kept = (
            None if c is None else empty(steps, batch, size),
            empty(steps, batch, w.input_key.shape[1] + w.input_value.shape[1]),
            empty(steps, batch, size),
            empty(steps, batch, w.num_rims * w.hh.shape[1]),
        )
    shapes = (
        empty(steps, batch, size),
        empty(batch, size),
        None if c is None else empty(batch, size),
        empty(steps, batch, w.num_rims, dtype=torch.bool),
        *kept,
    )
    return tuple(_present(input, shapes))


def _present(input: Tensor, parts: Iterable[Tensor | None]) -> list[Tensor]:
    """An empty tensor for each that is absent: an operator returns tensors only."""
    return [input.new_empty(0) if part is None else part for part in parts]


@torch.library.custom_op(
    "rims::scan_backward",
    mutates_args=(),
    schema="(Tensor grad_output, Tensor grad_h, Tensor grad_c, Tensor output, Tensor active, "
    "Tensor all_c, Tensor key_value, Tensor query_side, Tensor gate_side, bool input_needs_grad, "
    + _SCHEMA[1:]
    + _GRADIENTS,
)
def scan_backward_op(
    grad_output: Tensor,
    grad_h: Tensor,
    grad_c: Tensor,
    output: Tensor,
    active: Tensor,
    all_c: Tensor,
    key_value: Tensor,
    query_side: Tensor,
    gate_side: Tensor,
    input_needs_grad: bool,
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    fresh_h: Tensor | None,
    fresh_c: Tensor | None,
    weights: list[Tensor],
    reset: Tensor | None,
    valid: Tensor | None,
    k: int,
    num_heads: int,
    reads_state: bool,
    path: str,
    save: bool,
) -> list[Tensor]:
    """Gradients of input (empty if not needed), h, c, fresh h and c (GRU: empty), and weights."""
    sequence = Sequence(output, None if c is None else all_c, active)
    carry = new_carry(grad_h, None if c is None else grad_c)
    recurrence = paths.recurrence(path, input, "back")(
        Weights(*weights),
        Rules(k, num_heads, reads_state),
        States(h, c, fresh_h, fresh_c),
        Flags(reset, valid),
    )
    gradients = hoisted.backward(
        recurrence,
        grad_output,
        carry,
        input,
        hoisted.Saved(sequence, key_value, Hoisted(query_side, gate_side)),
        input_needs_grad=input_needs_grad,
    )
    parts = (gradients.input, carry.h, carry.c, carry.fresh_h, carry.fresh_c)
    return _present(input, parts) + gradients.w.given()


@scan_backward_op.register_fake
def _scan_backward_shapes(
    grad_output: Tensor,
    grad_h: Tensor,
    grad_c: Tensor,
    output: Tensor,
    active: Tensor,
    all_c: Tensor,
    key_value: Tensor,
    query_side: Tensor,
    gate_side: Tensor,
    input_needs_grad: bool,
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    fresh_h: Tensor | None,
    fresh_c: Tensor | None,
    weights: list[Tensor],
    *rules: Any,
) -> list[Tensor]:
    parts = (input if input_needs_grad else None, h, c, h, c, *weights)
    shapes = (None if p is None else p.new_empty(p.shape) for p in parts)
    return _present(input, shapes)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *states, weights, reset, valid, k, num_heads, reads_state, path, save = inputs
    h, _, _, active, *kept = output
    ctx.save_for_backward(*states, reset, valid, h, active, *kept, *weights)
    ctx.rules = (k, num_heads, reads_state, path, save)
    ctx.mark_non_differentiable(active, *kept)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    input, h, c, fresh_h, fresh_c, reset, valid, output, active, *rest = ctx.saved_tensors
    kept, weights = rest[:4], rest[4:]
    states = (input, h, c, fresh_h, fresh_c)
    nothing = (None,) * 7
    k, num_heads, reads_state, _, save = ctx.rules
    if (
        unrolled.is_needed(*grads[:3]) or not save
    ):  # a program exported under no_grad has kept nothing
        gradients = unrolled.gradients(
            grads[:3],
            input,
            States(h, c, fresh_h, fresh_c),
            Flags(reset, valid),
            Weights(*weights),
            Rules(k, num_heads, reads_state),
        )
        return (*gradients[:5], gradients[5 : 5 + len(weights)], *nothing)
    needs = ctx.needs_input_grad[0]
    given = (*grads[:3], output, active, *kept, needs, *states, weights, reset, valid, *ctx.rules)
    d_input, *d_states = torch.ops.rims.scan_backward(*given)
    parts = [d_input if needs else None]
    parts += [
        None if state is None else grad
        for state, grad in zip(states[1:], d_states[:4], strict=True)
    ]
    return (*parts, d_states[4:], *nothing)


torch.library.register_autograd("rims::scan", _backward, setup_context=_setup)
