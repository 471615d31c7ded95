r"""A whole sequence, the input side before the loop and the weights' gradients after it.

Everything that does not depend on the state is a product over all T B rows at once; the rest is a
:class:`rims.scan.recurrence.Recurrence`. Steps go in chunks of about a thousand rows, so that what
one part writes is still in the cache when the next reads it, and temporary memory does not grow
with T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from rims.checks import is_autocasting
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Carry, Hoisted, LoopGradients, Recurrence, Sequence

#: Rows (steps times batch) of a chunk: enough for full speed of a matrix product.
CHUNK_ROWS = 1024

#: Fewer rows than this are multiplied by two matrices rather than by a copy of both side by side.
FEW_ROWS = 128


class Saved(NamedTuple):
    """What the gradient needs besides the arguments; the rest of a step is computed again."""

    sequence: Sequence
    key_value: Tensor  # (T, B, dk + A), x W^k beside x W^v
    inputs: Hoisted  # (T, B, ...)


class Gradients(NamedTuple):
    """Gradients of the arguments of :func:`forward`."""

    input: Tensor | None
    carry: Carry
    w: Weights


def forward(
    kind: type[Recurrence],
    input: Tensor,
    states: States,
    flags: Flags,
    w: Weights,
    rules: Rules,
    *,
    save: bool,
) -> tuple[Sequence, Saved | None]:
    """Run ``input`` (T, B, I) and, if ``save``, keep what :func:`backward` needs."""
    with _exactly(input):
        return _forward(kind, input.contiguous(), states, flags, w, rules, save)


def _forward(
    kind: type[Recurrence],
    input: Tensor,
    states: States,
    flags: Flags,
    w: Weights,
    rules: Rules,
    save: bool,
) -> tuple[Sequence, Saved | None]:
    steps, batch, _ = input.shape
    out = _empty_sequence(input, states, w)
    recurrence = kind(w, rules, states, flags)
    side = _InputSide(w)
    sizes = (sum(side.sizes), w.num_rims * w.unit_size, w.num_rims * w.hh.shape[1])
    length = steps if save else _chunk_length(batch, steps)
    key_value, query_side, gate_side = (input.new_empty(length, batch, size) for size in sizes)
    for first, last in _chunks(batch, steps):
        where = slice(first, last) if save else slice(0, last - first)
        inputs = Hoisted(query_side[where], gate_side[where])
        side.project(input[first:last], key_value[where], inputs)
        recurrence.forward(first, inputs, out)
    inputs = Hoisted(query_side, gate_side)
    kept = Saved(out, key_value, inputs) if save else None
    return out, kept


def backward(
    kind: type[Recurrence],
    grad_output: Tensor,
    carry: Carry,
    input: Tensor,
    states: States,
    flags: Flags,
    w: Weights,
    rules: Rules,
    saved: Saved,
    *,
    input_needs_grad: bool,
) -> Gradients:
    """Gradients by hand-written backpropagation through time; ``carry`` ends at the first step."""
    with _exactly(input):
        recurrence = kind(w, rules, states, flags)
        # Operators and hooks on saved tensors promise numbers, not the order they lie in.
        saved = Saved(
            Sequence(*map(_dense, saved.sequence)),  # type: ignore[arg-type]
            saved.key_value.contiguous(),
            Hoisted(*map(_dense, saved.inputs)),  # type: ignore[arg-type]
        )
        return _backward(
            recurrence, grad_output, carry, input.contiguous(), saved, input_needs_grad
        )


def _backward(
    recurrence: Recurrence,
    grad_output: Tensor,
    carry: Carry,
    input: Tensor,
    saved: Saved,
    input_needs_grad: bool,
) -> Gradients:
    steps, batch, _ = input.shape
    w = recurrence.w
    side = _InputSide(w)
    sums = _WeightSums(w, side)
    slots = recurrence.rules.k if recurrence.packs_active else w.num_rims
    buffer = _empty_gradients(input, w, _chunk_length(batch, steps), slots)
    grad_input = torch.empty_like(input) if input_needs_grad else None
    for first, last in reversed(list(_chunks(batch, steps))):
        chunk = slice(first, last)
        part = buffer.first_steps(last - first)
        inputs = Hoisted(saved.inputs.query_side[chunk], saved.inputs.gate_side[chunk])
        recurrence.backward(first, inputs, saved.sequence, grad_output[chunk], carry, part)
        d_key_value = sums.add(part, input[chunk], saved.key_value[chunk])
        if grad_input is not None:
            torch.mm(d_key_value, side.key_value.mT, out=_rows(grad_input[chunk]))
    return Gradients(grad_input, carry, sums.result(buffer.bias_ih))


def _exactly(input: Tensor) -> AbstractContextManager[object]:
    """The types are settled by now: autocast would change them again."""
    device = input.device.type
    return torch.autocast(device, enabled=False) if is_autocasting(device) else nullcontext()


class _InputSide:
    """The weights of the input side in the form of three products."""

    def __init__(self, w: Weights) -> None:
        self.w = w
        self.sizes = [w.input_key.shape[1], w.input_value.shape[1]]  # dk, A
        self.scale = 1 / math.sqrt(self.sizes[0])
        self.query = w.input_query.flatten(0, 1) * self.scale  # (N d, dk)
        self.ih = w.ih.flatten(0, 1)  # (N G d, A)

    @cached_property
    def key_value(self) -> Tensor:
        """W^k beside W^v, (I, dk + A)."""
        return torch.cat([self.w.input_key, self.w.input_value], dim=1)

    def project(self, input: Tensor, key_value: Tensor, out: Hoisted) -> None:
        """Fill ``key_value`` and ``out`` from ``input``, (L, B, I)."""
        rows = _rows(input)
        key, value = _rows(key_value).split_with_sizes(self.sizes, dim=1)
        if len(rows) < FEW_ROWS:
            torch.mm(rows, self.w.input_key, out=key)
            torch.mm(rows, self.w.input_value, out=value)
        else:
            torch.mm(rows, self.key_value, out=_rows(key_value))
        torch.mm(key, self.query.mT, out=_rows(out.query_side))
        torch.mm(value, self.ih.mT, out=_rows(out.gate_side))


class _WeightSums:
    """Gradients of the weights, a chunk of steps at a time."""

    def __init__(self, w: Weights, side: _InputSide) -> None:
        self.w, self.side = w, side
        self.key_value = torch.empty_like(side.key_value)
        self.query = torch.empty_like(side.query)
        self.ih = torch.empty_like(side.ih)
        self.hh = torch.empty_like(w.hh, memory_format=torch.contiguous_format)
        self.bias_hh = w.hh.new_empty(side.ih.shape[0])
        self.qkv_sizes = [p.shape[2] for p in (w.comm_query, w.comm_key, w.comm_value)]
        self.qkv = w.hh.new_empty(w.num_rims, w.unit_size, sum(self.qkv_sizes))
        self.output_gate = w.output.new_empty(2 * w.unit_size, w.output.shape[1])
        self.output_gate_bias = w.output.new_empty(2 * w.unit_size)
        self._so_far = 0.0  # what the sums above count for: nothing before the first chunk

    def add(self, part: LoopGradients, input: Tensor, key_value: Tensor) -> Tensor:
        """Add what a chunk contributes; return the gradient of its keys and values, (rows, .)."""
        w, side, beta = self.w, self.side, self._so_far
        d_query_side, d_gate_side = _rows(part.query_side), _rows(part.gate_side)
        key, value = _rows(key_value).split_with_sizes(side.sizes, dim=1)
        self.query.addmm_(d_query_side.mT, key, alpha=side.scale, beta=beta)
        self.ih.addmm_(d_gate_side.mT, value, beta=beta)
        d_key_value = torch.empty_like(_rows(key_value))
        d_key, d_value = d_key_value.split_with_sizes(side.sizes, dim=1)
        torch.mm(d_query_side, side.query, out=d_key)
        torch.mm(d_gate_side, side.ih, out=d_value)
        self.key_value.addmm_(_rows(input).mT, d_key_value, beta=beta)

        d_gates, h_prev = _groups(part.state_gates, w.num_rims), _groups(part.h_prev, w.num_rims)
        self.hh.baddbmm_(d_gates.mT, h_prev, beta=beta)
        spoken, d_qkv = _groups(part.spoken, w.num_rims), _groups(part.qkv.flatten(2), w.num_rims)
        self.qkv.baddbmm_(spoken.mT, d_qkv, beta=beta)
        d_output_gate = part.output_gate.flatten(0, 2)
        self.output_gate.addmm_(d_output_gate.mT, part.read.flatten(0, 2), beta=beta)
        for total, rows in (
            (self.bias_hh, _rows(part.state_gates)),
            (self.output_gate_bias, d_output_gate),
        ):
            if beta:
                total.add_(rows.sum(0))
            else:
                torch.sum(rows, 0, out=total)
        self._so_far = 1.0
        return d_key_value

    def result(self, bias_ih: Tensor) -> Weights:
        """The sums, in the shapes of the parameters, none in memory of another."""
        w = self.w
        input_key, input_value = _parted(self.key_value, self.side.sizes, dim=1)
        comm_query, comm_key, comm_value = _parted(self.qkv, self.qkv_sizes, dim=2)
        output, gate = _parted(self.output_gate, [w.unit_size] * 2, dim=0)
        output_bias, gate_bias = _parted(self.output_gate_bias, [w.unit_size] * 2, dim=0)
        return Weights(
            input_key,
            input_value,
            self.query.view_as(w.input_query),
            self.ih.view_as(w.ih),
            self.hh,
            comm_query,
            comm_key,
            comm_value,
            output,
            gate,
            None if w.bias_ih is None else bias_ih,
            None if w.bias_hh is None else self.bias_hh.view_as(w.bias_hh),
            None if w.output_bias is None else output_bias,
            None if w.gate_bias is None else gate_bias,
        )


def _parted(whole: Tensor, sizes: list[int], dim: int) -> list[Tensor]:
    parts = whole.split_with_sizes(sizes, dim=dim)
    return [part.clone(memory_format=torch.contiguous_format) for part in parts]


def _empty_sequence(input: Tensor, states: States, w: Weights) -> Sequence:
    shape = (*input.shape[:2], w.num_rims * w.unit_size)
    return Sequence(
        input.new_empty(shape),
        None if states.c is None else input.new_empty(shape),
        torch.empty(*input.shape[:2], w.num_rims, dtype=torch.bool, device=input.device),
    )


def _empty_gradients(input: Tensor, w: Weights, length: int, slots: int) -> LoopGradients:
    state, head_values = w.num_rims * w.unit_size, w.comm_value.shape[2]
    gates = w.num_rims * w.hh.shape[1]
    qkv = w.comm_query.shape[2] + w.comm_key.shape[2] + head_values
    shapes: list[tuple[int, ...]] = [
        (state,),  # in the order of LoopGradients
        (gates,),
        (gates,),
        (w.num_rims, qkv),
        (slots, 2 * w.unit_size),
        (state,),
        (state,),
        (slots, head_values),
    ]
    # In one piece, which the allocator hands out again and again; single large arrays it would
    # return to the system every time, and fetching them anew costs as much as filling them.
    rows = length * input.shape[1]
    sizes = [rows * math.prod(shape) for shape in shapes]
    pieces = input.new_empty(sum(sizes)).split_with_sizes(sizes)
    lead = (length, input.shape[1])
    steps = [piece.view(*lead, *shape) for piece, shape in zip(pieces, shapes, strict=True)]
    return LoopGradients(*steps, bias_ih=torch.zeros_like(w.hh[..., 0]))  # type: ignore[misc]


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _rows(sequence: Tensor) -> Tensor:
    """(L, B, X) -> (L B, X); a view."""
    return sequence.view(-1, sequence.shape[-1])


def _groups(sequence: Tensor, num_rims: int) -> Tensor:
    """(L, B, N X) -> (N, L B, X), a view: the rows of every mechanism."""
    return sequence.view(-1, num_rims, sequence.shape[-1] // num_rims).transpose(0, 1)


def _chunk_length(batch: int, steps: int) -> int:
    return min(steps, max(1, CHUNK_ROWS // max(1, batch)))


def _chunks(batch: int, steps: int) -> Iterator[tuple[int, int]]:
    length = _chunk_length(batch, steps)
    for first in range(0, steps, length):
        yield first, min(steps, first + length)
