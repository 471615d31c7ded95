"""A whole sequence as one autograd function, for eager code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rims.native.eager import needs_autograd
from rims.scan import hoisted, paths
from rims.scan.graph import unrolled
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Hoisted, Sequence, new_carry

#: Arguments of :class:`ScanFunction` before the weights, and of these that have a gradient.
_HEAD, _DIFFERENTIABLE = 10, 5


class ScanFunction(torch.autograd.Function):
    """Output, last h, last c (``None`` for a GRU) and active of a sequence.

    With ``place`` (T, B) the input is (U, I): rows that steps share (:mod:`rims.scan.hoisted`).

    As ``torch.ops.rims.scan`` without its dispatch, which takes as long as a short sequence.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        h: Tensor,
        c: Tensor | None,
        fresh_h: Tensor | None,
        fresh_c: Tensor | None,
        place: Tensor | None,
        reset: Tensor | None,
        valid: Tensor | None,
        rules: Rules,
        path: str,
        *weights: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Run the sequence and keep what the gradient needs."""
        states = States(h, c, fresh_h, fresh_c)
        w = Weights(*weights)  # type: ignore[arg-type]
        kind = paths.recurrence(path, input, "forward")
        recurrence = kind(w, rules, states, Flags(reset, valid))
        out, saved = hoisted.forward(
            recurrence, input, place=place, save=True, input_needs_grad=ctx.needs_input_grad[0]
        )
        assert saved is not None
        ctx.rules, ctx.path = rules, path
        # Kept for the backward pass unless it is larger than what is saved anyway, as for one step.
        if recurrence.num_bytes <= _num_bytes(out.h, out.c, saved.key_value, *saved.inputs):
            ctx.recurrence = recurrence
        ctx.mark_non_differentiable(out.active)
        ctx.save_for_backward(
            input, *states, place, reset, valid, *out, saved.key_value, *saved.inputs, *weights
        )
        return out.h, out.h[-1].clone(), None if out.c is None else out.c[-1].clone(), out.active

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor, grad_h: Tensor, grad_c: Tensor | None, _: Any
    ) -> tuple[Tensor | None, ...]:
        """Gradients of input, states and weights."""
        input, *rest = ctx.saved_tensors
        states, place, flags, rest = States(*rest[:4]), rest[4], Flags(*rest[5:7]), rest[7:]
        sequence, key_value = Sequence(*rest[:3]), rest[3]
        inputs, w = Hoisted(*rest[4:6]), Weights(*rest[6:])
        nothing = (None,) * (_HEAD - _DIFFERENTIABLE)
        # Its packed weights are freed after this backward pass; a second one packs them again.
        recurrence = vars(ctx).pop("recurrence", None)
        if needs_autograd(grad_output, grad_h, grad_c):
            grads = (grad_output, grad_h, grad_c)
            found = unrolled.gradients(grads, input, states, flags, w, ctx.rules, place)
            return (*found[:_DIFFERENTIABLE], *nothing, *found[_DIFFERENTIABLE:])
        kind = paths.recurrence(ctx.path, input, "back")
        if type(recurrence) is not kind or recurrence.is_stale():
            recurrence = kind(w, ctx.rules, states, flags)
        gradients = hoisted.backward(
            recurrence,
            grad_output,
            new_carry(grad_h, None if states.c is None else grad_c),
            input,
            hoisted.Saved(sequence, key_value, inputs),
            place=place,
            input_needs_grad=ctx.needs_input_grad[0],
        )
        carry = gradients.carry
        fresh = [
            None if state is None else grad
            for state, grad in zip(states[2:], (carry.fresh_h, carry.fresh_c), strict=True)
        ]
        return (gradients.input, carry.h, carry.c, *fresh, *nothing, *gradients.w)


def _num_bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
