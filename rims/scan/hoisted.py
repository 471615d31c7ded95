r"""A whole sequence, the input side before the loop and the weights' gradients after it.

Everything that does not depend on the state is a product over all T B rows at once; the rest is a
:class:`rims.scan.recurrence.Recurrence`. Steps go in chunks of a thousand rows or more, so that
what one part writes is still in the cache when the next reads it, and temporary memory does not
grow with T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rims.checks import is_autocasting
from rims.scan.input_side import Apart, InputSide, Joined, as_rows, choose, parted
from rims.scan.problem import Weights
from rims.scan.recurrence import Carry, Hoisted, LoopGradients, Recurrence, Sequence

#: Rows (steps times batch) of a chunk at least: enough for full speed of a matrix product.
_CHUNK_ROWS = 1024
#: Numbers of its gradients: small layers have more rows, to have fewer chunks.
_CHUNK_NUMBERS = 5_500_000


class Saved(NamedTuple):
    """What the gradient needs besides the arguments; the rest of a step is computed again.

    Without keys and values the input side was :class:`Joined`, and its gradient is.
    """

    sequence: Sequence
    key_value: Tensor | None  # (T, B, dk + A), x W^k beside x W^v, or (U, ...) of repeated inputs
    inputs: Hoisted  # (T, B, ...), or (U, ...)


class Gradients(NamedTuple):
    """Gradients of the arguments of :func:`forward`."""

    input: Tensor | None
    carry: Carry
    w: Weights


def forward(
    recurrence: Recurrence,
    input: Tensor,
    *,
    place: Tensor | None = None,
    save: bool,
    input_needs_grad: bool = False,
    join: bool = True,
) -> tuple[Sequence, Saved | None]:
    """Run ``input`` (T, B, I) and, if ``save``, keep what :func:`backward` needs.

    Whether the input needs a gradient counts for the order of products alone. Without ``join``
    keys and values of the input are always kept.
    """
    with _exactly(input):
        rows, w = input.shape[:-1].numel(), recurrence.w
        kind = choose(w, rows, save, input_needs_grad) if join else Apart
        side = kind(w)
        if place is None:
            return _forward(recurrence, side, input.contiguous(), save)
        return _forward_repeated(recurrence, side, input.contiguous(), place, save)


def _forward(
    recurrence: Recurrence, side: InputSide, input: Tensor, save: bool
) -> tuple[Sequence, Saved | None]:
    steps, batch, _ = input.shape
    out = _empty_sequence(recurrence, input, steps)
    length = steps if save else _chunk_length(recurrence.w, batch, steps)
    key_value, whole = side.room(input, length, batch)
    for first, last in _chunks(recurrence.w, batch, steps):
        where = (first, last) if save else (0, last - first)
        inputs = Hoisted(*(_steps(part, *where) for part in whole))
        kept = None if key_value is None else _steps(key_value, *where)
        side.project(_steps(input, first, last), kept, inputs)
        recurrence.forward(first, inputs, out)
    return out, Saved(out, key_value, whole) if save else None


def _forward_repeated(
    recurrence: Recurrence, side: InputSide, input: Tensor, place: Tensor, save: bool
) -> tuple[Sequence, Saved | None]:
    steps, batch = place.shape
    out = _empty_sequence(recurrence, input, steps)
    key_value, different = side.room(input, len(input))
    side.project(input, key_value, different)
    for first, last in _chunks(recurrence.w, batch, steps):
        recurrence.forward(first, _placed(different, place[first:last]), out)
    return out, Saved(out, key_value, different) if save else None


def backward(
    recurrence: Recurrence,
    grad_output: Tensor,
    carry: Carry,
    input: Tensor,
    saved: Saved,
    *,
    place: Tensor | None = None,
    input_needs_grad: bool,
) -> Gradients:
    """Gradients by hand-written backpropagation through time; ``carry`` ends at the first step."""
    with _exactly(input):
        # Operators and hooks on saved tensors promise numbers, not the order they lie in.
        saved = Saved(
            Sequence(*map(_dense, saved.sequence)),  # type: ignore[arg-type]
            _dense(saved.key_value),
            Hoisted(*map(_dense, saved.inputs)),  # type: ignore[arg-type]
        )
        back = _Back(recurrence, saved, grad_output, carry)
        input = input.contiguous()
        if place is None:
            grad_input = back.each_step(input, input_needs_grad)
        else:
            grad_input = back.repeated(input, place, input_needs_grad)
        return Gradients(grad_input, carry, back.weights())


class _Back:
    """The way back through the chunks of a sequence."""

    def __init__(
        self,
        recurrence: Recurrence,
        saved: Saved,
        grad_output: Tensor,
        carry: Carry,
    ) -> None:
        self.recurrence, self.saved = recurrence, saved
        self.grad_output, self.carry = grad_output, carry
        w = recurrence.w
        self.side = (Joined if saved.key_value is None else Apart)(w)
        self.sums = _LoopSums(w)
        steps, batch, _ = grad_output.shape
        slots = recurrence.rules.k if recurrence.packs_active else w.num_rims
        self.buffer = _empty_gradients(grad_output, w, _chunk_length(w, batch, steps), slots)

    def each_step(self, input: Tensor, input_needs_grad: bool) -> Tensor | None:
        """Every step has an input of its own; returns its gradient."""
        grad_input = torch.empty_like(input) if input_needs_grad else None
        key_value, inputs = self.saved.key_value, self.saved.inputs
        for first, last in self._chunks():
            part = self._retreat(first, last, Hoisted(*(_steps(p, first, last) for p in inputs)))
            self.side.add(
                Hoisted(part.query_side, part.gate_side),
                _steps(input, first, last),
                None if key_value is None else _steps(key_value, first, last),
                None if grad_input is None else _steps(grad_input, first, last),
            )
            self.sums.add(part)
        return grad_input

    def repeated(self, input: Tensor, place: Tensor, input_needs_grad: bool) -> Tensor | None:
        """Steps share inputs: their gradients are summed before they go through the weights."""
        d_query_side, d_gate_side = (torch.zeros_like(part) for part in self.saved.inputs)
        for first, last in self._chunks():
            read = place[first:last]
            part = self._retreat(first, last, _placed(self.saved.inputs, read))
            d_query_side.index_add_(0, read.flatten(), as_rows(part.query_side))
            d_gate_side.index_add_(0, read.flatten(), as_rows(part.gate_side))
            self.sums.add(part)
        grad_input = torch.empty_like(input) if input_needs_grad else None
        d = Hoisted(d_query_side, d_gate_side)
        self.side.add(d, input, self.saved.key_value, grad_input)
        return grad_input

    def weights(self) -> Weights:
        """Gradients of all weights."""
        return self.sums.result(self.side.gradients(), self.buffer.bias_ih)

    def _chunks(self) -> Iterator[tuple[int, int]]:
        steps, batch = self.grad_output.shape[:2]
        return reversed(list(_chunks(self.recurrence.w, batch, steps)))

    def _retreat(self, first: int, last: int, inputs: Hoisted) -> LoopGradients:
        part = self.buffer.first_steps(last - first)
        grad_output = _steps(self.grad_output, first, last)
        self.recurrence.backward(first, inputs, self.saved.sequence, grad_output, self.carry, part)
        return part


def _steps(sequence: Tensor, first: int, last: int) -> Tensor:
    """These steps; no slice if it is all of them, which would cost as much as a short product."""
    return sequence if last - first == sequence.shape[0] else sequence[first:last]


def _placed(inputs: Hoisted, place: Tensor) -> Hoisted:
    """The input side of different rows (U, ...), as (L, B, ...) for the steps that read them."""
    return Hoisted(F.embedding(place, inputs.query_side), F.embedding(place, inputs.gate_side))


def _exactly(input: Tensor) -> AbstractContextManager[object]:
    """The types are settled by now: autocast would change them again."""
    device = input.device.type
    return torch.autocast(device, enabled=False) if is_autocasting(device) else nullcontext()


class _LoopSums:
    """Gradients of the weights of the loop, a chunk of steps at a time."""

    def __init__(self, w: Weights) -> None:
        self.w = w
        self.hh = torch.empty_like(w.hh, memory_format=torch.contiguous_format)
        # An LSTM only ever adds its two biases, so that they have the same gradient.
        self.bias_hh = None if w.num_gates == 4 else w.hh.new_empty(w.hh[..., 0].numel())
        self.qkv_sizes = [p.shape[2] for p in (w.comm_query, w.comm_key, w.comm_value)]
        self.qkv = w.hh.new_empty(w.num_rims, w.unit_size, sum(self.qkv_sizes))
        self.output_gate = w.output.new_empty(2 * w.unit_size, w.output.shape[1])
        self.output_gate_bias = w.output.new_empty(2 * w.unit_size)
        self._so_far = 0.0  # what the sums count for: nothing before the first chunk

    def add(self, part: LoopGradients) -> None:
        """Add what the loop over a chunk contributes."""
        w, beta = self.w, self._so_far
        d_gates, h_prev = _groups(part.state_gates, w.num_rims), _groups(part.h_prev, w.num_rims)
        self.hh.baddbmm_(d_gates.mT, h_prev, beta=beta)
        spoken, d_qkv = _groups(part.spoken, w.num_rims), _groups(part.qkv.flatten(2), w.num_rims)
        self.qkv.baddbmm_(spoken.mT, d_qkv, beta=beta)
        d_output_gate = part.output_gate.flatten(0, 2)
        self.output_gate.addmm_(d_output_gate.mT, part.read.flatten(0, 2), beta=beta)
        if self.bias_hh is not None:
            _add_sum(self.bias_hh, as_rows(part.state_gates), beta)
        _add_sum(self.output_gate_bias, d_output_gate, beta)
        self._so_far = 1.0

    def result(self, of_input: tuple[Tensor, Tensor, Tensor, Tensor], bias_ih: Tensor) -> Weights:
        """The sums, in the shapes of the parameters, none in memory of another."""
        w = self.w
        comm_query, comm_key, comm_value = parted(self.qkv, self.qkv_sizes, dim=2)
        output, gate = parted(self.output_gate, [w.unit_size] * 2, dim=0)
        output_bias, gate_bias = parted(self.output_gate_bias, [w.unit_size] * 2, dim=0)
        bias_hh = bias_ih.clone() if self.bias_hh is None else self.bias_hh
        return Weights(
            *of_input,
            self.hh,
            comm_query,
            comm_key,
            comm_value,
            output,
            gate,
            None if w.bias_ih is None else bias_ih,
            None if w.bias_hh is None else bias_hh.view_as(w.bias_hh),
            None if w.output_bias is None else output_bias,
            None if w.gate_bias is None else gate_bias,
        )


def _add_sum(total: Tensor, rows: Tensor, beta: float) -> None:
    if beta:
        total.add_(rows.sum(0))
    else:
        torch.sum(rows, 0, out=total)


def _empty_sequence(recurrence: Recurrence, input: Tensor, steps: int) -> Sequence:
    states, w = recurrence.states, recurrence.w
    lead = steps, states.h.shape[0]
    shape = (*lead, w.num_rims * w.unit_size)
    return Sequence(
        input.new_empty(shape),
        None if states.c is None else input.new_empty(shape),
        torch.empty(*lead, w.num_rims, dtype=torch.bool, device=input.device),
    )


def _empty_gradients(sequence: Tensor, w: Weights, length: int, slots: int) -> LoopGradients:
    """Room for those of ``length`` steps of ``sequence``, (T, B, ...)."""
    batch, shapes = sequence.shape[1], _gradient_shapes(w, slots)
    # In one piece, which the allocator hands out again and again; single large arrays it would
    # return to the system every time, and fetching them anew costs as much as filling them.
    rows = length * batch
    sizes = [rows * math.prod(shape) for shape in shapes]
    pieces = sequence.new_empty(sum(sizes)).split_with_sizes(sizes)
    lead = (length, batch)
    steps = [piece.view(*lead, *shape) for piece, shape in zip(pieces, shapes, strict=True)]
    return LoopGradients(*steps, bias_ih=torch.zeros_like(w.hh[..., 0]))  # type: ignore[misc]


def _gradient_shapes(w: Weights, slots: int) -> list[tuple[int, ...]]:
    """Of a step and sample, in the order of LoopGradients."""
    state, head_values = w.num_rims * w.unit_size, w.comm_value.shape[2]
    gates = w.num_rims * w.hh.shape[1]
    qkv = w.comm_query.shape[2] + w.comm_key.shape[2] + head_values
    return [
        (state,),
        (gates,),
        (gates,),
        (w.num_rims, qkv),
        (slots, 2 * w.unit_size),
        (state,),
        (state,),
        (slots, head_values),
    ]


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _groups(sequence: Tensor, num_rims: int) -> Tensor:
    """(L, B, N X) -> (N, L B, X), a view: the rows of every mechanism."""
    return sequence.view(-1, num_rims, sequence.shape[-1] // num_rims).transpose(0, 1)


def chunk_rows(w: Weights) -> int:
    """Rows (steps times batch) of a chunk."""
    numbers = sum(map(math.prod, _gradient_shapes(w, w.num_rims)))
    return max(_CHUNK_ROWS, _CHUNK_NUMBERS // numbers)


def _chunk_length(w: Weights, batch: int, steps: int) -> int:
    return min(steps, max(1, chunk_rows(w) // max(1, batch)))


def _chunks(w: Weights, batch: int, steps: int) -> Iterator[tuple[int, int]]:
    length = _chunk_length(w, batch, steps)
    for first in range(0, steps, length):
        yield first, min(steps, first + length)
