"""A whole sequence as one operator, ``torch.ops.rims.scan``, for compiled and exported graphs.

``torch.compile`` and ``torch.export`` see a single node with a gradient of its own. The path that
computes it is chosen before, by name. Eager code uses :mod:`rims.scan.graph.function`, which has
less overhead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rims.native.eager import needs_autograd
from rims.scan import hoisted, paths
from rims.scan.graph import unrolled
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Hoisted, Recurrence, Sequence, new_carry

#: Arguments of the operator.
_SCHEMA = (
    "(Tensor input, Tensor h, Tensor? c, Tensor? fresh_h, Tensor? fresh_c, Tensor[] weights, "
    "Tensor? reset, Tensor? valid, int k, int num_heads, bool reads_state, str path, bool save, "
    'str input_gate="null", str competition="null")'
)
# The last four are for the gradient; empty unless ``save``.
_RESULTS = " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
#: Arguments of its gradient before those of the operator.
_GIVEN_BACK = (
    "(Tensor grad_output, Tensor grad_h, Tensor grad_c, Tensor output, Tensor active, "
    "Tensor all_c, Tensor key_value, Tensor query_side, Tensor gate_side, bool input_needs_grad, "
)


class Problem(NamedTuple):
    """The arguments of the operator."""

    input: Tensor
    states: States
    w: Weights
    flags: Flags
    rules: Rules
    path: str
    save: bool

    def recurrence(self, name: Literal["forward", "back"]) -> Recurrence:
        """What computes the recurrent part, or its gradient."""
        kind = paths.recurrence(self.path, self.input, name)
        return kind(self.w, self.rules, self.states, self.flags)


def unpack(given: tuple[Any, ...]) -> Problem:
    """The arguments in the order of the schema, grouped."""
    input, *states, weights, reset, valid = given[:8]
    k, num_heads, reads_state, path, save, *words = given[8:]
    rules = Rules(k, num_heads, reads_state, *words)
    flags = Flags(reset, valid)
    return Problem(input, States(*states), Weights(*weights), flags, rules, path, save)


@torch.library.custom_op("rims::scan", mutates_args=(), schema=_SCHEMA + _RESULTS)
def scan_op(*given: Any) -> tuple[Tensor, ...]:
    """h of every step, the last h, the last c, active; c of every step, x W, U, G."""
    problem = unpack(given)
    # Joining would depend on sizes that a graph may leave open.
    out, saved = hoisted.forward(
        problem.recurrence("forward"), problem.input, save=problem.save, join=False
    )
    last_c = None if out.c is None else out.c[-1].clone()
    kept = (None,) * 4 if saved is None else (out.c, saved.key_value, *saved.inputs)
    return tuple(_present(problem.input, (out.h, out.h[-1].clone(), last_c, out.active, *kept)))


@scan_op.register_fake
def _scan_shapes(*given: Any) -> tuple[Tensor, ...]:
    problem = unpack(given)
    input, w, c = problem.input, problem.w, problem.states.c
    steps, batch, _ = input.shape
    size = w.num_rims * w.unit_size
    empty = input.new_empty
    kept: tuple[Tensor | None, ...] = (None,) * 4
    if problem.save:
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
    """``parts``, each absent one as an empty tensor: an operator returns tensors only."""
    return [input.new_empty(0) if part is None else part for part in parts]


@torch.library.custom_op(
    "rims::scan_backward", mutates_args=(), schema=_GIVEN_BACK + _SCHEMA[1:] + " -> Tensor[]"
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
    *given: Any,
) -> list[Tensor]:
    """Gradients of input (empty if not needed), h, c, fresh h and c (GRU: empty), and weights."""
    problem = unpack(given)
    is_gru = problem.states.c is None
    sequence = Sequence(output, None if is_gru else all_c, active)
    carry = new_carry(grad_h, None if is_gru else grad_c)
    gradients = hoisted.backward(
        problem.recurrence("back"),
        grad_output,
        carry,
        problem.input,
        hoisted.Saved(sequence, key_value, Hoisted(query_side, gate_side)),
        input_needs_grad=input_needs_grad,
    )
    parts = (gradients.input, carry.h, carry.c, carry.fresh_h, carry.fresh_c)
    return _present(problem.input, parts) + gradients.w.given()


@scan_backward_op.register_fake
def _scan_backward_shapes(*given: Any) -> list[Tensor]:
    *_, input_needs_grad = given[:10]
    input, h, c, _, _, weights, *_ = given[10:]
    parts = (input if input_needs_grad else None, h, c, h, c, *weights)
    shapes = (None if p is None else p.new_empty(p.shape) for p in parts)
    return _present(input, shapes)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *states, weights, reset, valid = inputs[:8]
    h, _, _, active, *kept = output
    ctx.save_for_backward(*states, reset, valid, h, active, *kept, *weights)
    ctx.rules = inputs[8:]
    ctx.mark_non_differentiable(active, *kept)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    *states, reset, valid, output, active = ctx.saved_tensors[:9]
    kept, weights = ctx.saved_tensors[9:13], ctx.saved_tensors[13:]
    given = (*states, weights, reset, valid, *ctx.rules)
    nothing = (None,) * (len(ctx.needs_input_grad) - 6)  # arguments with defaults may be left out
    problem = unpack(given)
    # A program exported under no_grad has saved nothing.
    if needs_autograd(*grads[:3]) or not problem.save:
        gradients = unrolled.gradients(
            grads[:3], problem.input, problem.states, problem.flags, problem.w, problem.rules
        )
        return (*gradients[:5], gradients[5 : 5 + len(weights)], *nothing)
    needs = ctx.needs_input_grad[0]
    d_input, *d_states = torch.ops.rims.scan_backward(
        *grads[:3], output, active, *kept, needs, *given
    )
    parts = [d_input if needs else None]
    parts += [
        None if state is None else grad
        for state, grad in zip(states[1:], d_states[:4], strict=True)
    ]
    return (*parts, d_states[4:], *nothing)


torch.library.register_autograd("rims::scan", _backward, setup_context=_setup)
