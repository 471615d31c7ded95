r"""A whole sequence, the input side before the loop and its gradients after it.

Everything that does not depend on the state is a product over all T B rows at once; the rest is a
:class:`rims.scan.recurrence.Recurrence`. Steps go in chunks of a thousand rows or more, so that
what one part writes is still in the cache when the next reads it, and temporary memory does not
grow with T.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rims.checks import is_autocasting
from rims.scan.input_side import Apart, InputSide, Joined, as_rows, choose
from rims.scan.problem import Weights
from rims.scan.recurrence import Carry, Hoisted, Recurrence, Sequence

#: Rows (steps times batch) of a chunk at least: enough for full speed of a matrix product.
_CHUNK_ROWS = 1024
#: Numbers of the gradients of its input side: small layers have more rows, to have fewer chunks.
_CHUNK_NUMBERS = 1_500_000


class Saved(NamedTuple):
    """Values that the gradient needs besides the arguments; the rest is recomputed.

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

    ``input_needs_grad`` only changes the order of products. Without ``join`` keys and values of
    the input are always kept.
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
    """Backward pass through the chunks of a sequence."""

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
        steps, batch, _ = grad_output.shape
        self.buffer = _room(grad_output, w, _chunk_length(w, batch, steps))

    def each_step(self, input: Tensor, input_needs_grad: bool) -> Tensor | None:
        """Backward pass if every step has its own input; returns the gradient of the input."""
        grad_input = torch.empty_like(input) if input_needs_grad else None
        key_value, inputs = self.saved.key_value, self.saved.inputs
        for first, last in self._chunks():
            self.side.add(
                self._retreat(first, last, _range(inputs, first, last)),
                _steps(input, first, last),
                None if key_value is None else _steps(key_value, first, last),
                None if grad_input is None else _steps(grad_input, first, last),
            )
        return grad_input

    def repeated(self, input: Tensor, place: Tensor, input_needs_grad: bool) -> Tensor | None:
        """Backward pass if steps share inputs, whose gradients are summed before the products."""
        d = Hoisted(*(torch.zeros_like(part) for part in self.saved.inputs))
        for first, last in self._chunks():
            read = place[first:last]
            part = self._retreat(first, last, _placed(self.saved.inputs, read))
            for total, rows in zip(d, part, strict=True):
                total.index_add_(0, read.flatten(), as_rows(rows))
        grad_input = torch.empty_like(input) if input_needs_grad else None
        self.side.add(d, input, self.saved.key_value, grad_input)
        return grad_input

    def weights(self) -> Weights:
        """Gradients of all weights."""
        given = (*self.side.gradients(), *self.recurrence.gradients())
        pairs = zip(given, self.recurrence.w, strict=True)
        return Weights(*(None if weight is None else grad for grad, weight in pairs))  # type: ignore[arg-type]

    def _chunks(self) -> Iterator[tuple[int, int]]:
        steps, batch = self.grad_output.shape[:2]
        return reversed(list(_chunks(self.recurrence.w, batch, steps)))

    def _retreat(self, first: int, last: int, inputs: Hoisted) -> Hoisted:
        part = _range(self.buffer, 0, last - first)
        grad_output = _steps(self.grad_output, first, last)
        self.recurrence.backward(first, inputs, self.saved.sequence, grad_output, self.carry, part)
        return part


def _range(inputs: Hoisted, first: int, last: int) -> Hoisted:
    return Hoisted(*(_steps(part, first, last) for part in inputs))


def _steps(sequence: Tensor, first: int, last: int) -> Tensor:
    """These steps, without slicing if they are all: a slice costs as much as a short product."""
    return sequence if last - first == sequence.shape[0] else sequence[first:last]


def _placed(inputs: Hoisted, place: Tensor) -> Hoisted:
    """The input side of different rows (U, ...), as (L, B, ...) for the steps that read them."""
    return Hoisted(F.embedding(place, inputs.query_side), F.embedding(place, inputs.gate_side))


def _exactly(input: Tensor) -> AbstractContextManager[object]:
    """Autocast off: the types are already chosen."""
    device = input.device.type
    return torch.autocast(device, enabled=False) if is_autocasting(device) else nullcontext()


def _empty_sequence(recurrence: Recurrence, input: Tensor, steps: int) -> Sequence:
    states, w = recurrence.states, recurrence.w
    lead = steps, states.h.shape[0]
    shape = (*lead, w.num_rims * w.unit_size)
    return Sequence(
        input.new_empty(shape),
        None if states.c is None else input.new_empty(shape),
        torch.empty(*lead, w.num_rims, dtype=torch.bool, device=input.device),
    )


def _room(sequence: Tensor, w: Weights, length: int) -> Hoisted:
    """Memory for gradients of the input side of ``length`` steps of ``sequence``, (T, B, ...)."""
    (n, gates, d), rows = w.hh.shape, length * sequence.shape[1]
    sizes = n * d, n * gates
    # One piece, which the allocator reuses. It would return single large arrays to the system each
    # time, and getting them again costs as much as filling them.
    pieces = sequence.new_empty(rows * sum(sizes)).split_with_sizes([rows * s for s in sizes])
    return Hoisted(*(piece.view(length, -1, s) for piece, s in zip(pieces, sizes, strict=True)))


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def chunk_rows(w: Weights) -> int:
    """Rows (steps times batch) of a chunk."""
    n, gates, d = w.hh.shape
    return max(_CHUNK_ROWS, _CHUNK_NUMBERS // (n * (d + gates)))


def _chunk_length(w: Weights, batch: int, steps: int) -> int:
    return min(steps, max(1, chunk_rows(w) // max(1, batch)))


def _chunks(w: Weights, batch: int, steps: int) -> Iterator[tuple[int, int]]:
    length = _chunk_length(w, batch, steps)
    for first in range(0, steps, length):
        yield first, min(steps, first + length)
