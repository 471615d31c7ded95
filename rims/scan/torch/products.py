"""Gradients of the loop's weights as products over all rows of a chunk of steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from rims.scan.input_side import as_rows, parted
from rims.scan.problem import Weights
from rims.scan.recurrence import Carry, Hoisted, LoopWeights, Recurrence, Sequence


class LoopGradients(NamedTuple):
    """Values that the loop stores of consecutive steps, for products over all of them at once.

    A gradient of a weight is a product of one of these with another.
    """

    query_side: Tensor  # (L, B, N d), gradient of U
    gate_side: Tensor  # (L, B, N G d), of G
    state_gates: Tensor  # (L, B, N G d), of the state's half of the gates
    qkv: Tensor  # (L, B, N, W), of queries, keys and values of the communication
    output_gate: Tensor  # (L, B, N, 2 d), of its output and gate before tanh and sigmoid
    h_prev: Tensor  # (L, B, N d), the state before each step, resets made
    comm_input: Tensor  # (L, B, N d), what mechanisms read of each other
    read: Tensor  # (L, B, N, M dv), what they got
    bias_ih: Tensor  # (N, G d), of the input's half of the gates, summed over all steps so far


class ProductRecurrence(Recurrence):
    """Leaves of every step what the products need, and multiplies a chunk of steps at a time."""

    _sums: _Sums | None = None
    _buffer: LoopGradients | None = None

    @abstractmethod
    def retreat(
        self,
        first: int,
        inputs: Hoisted,
        did: Sequence,
        grad_output: Tensor,
        carry: Carry,
        out: LoopGradients,
    ) -> None:
        """As :meth:`backward`, without the products."""

    def backward(
        self,
        first: int,
        inputs: Hoisted,
        did: Sequence,
        grad_output: Tensor,
        carry: Carry,
        out: Hoisted,
    ) -> None:
        """See :meth:`Recurrence.backward`."""
        if self._sums is None:
            self._sums = _Sums(self.w)
        steps = out.gate_side.shape[0]
        if self._buffer is None or len(self._buffer.read) < steps:
            self._buffer = empty_gradients(out, self.w, self._sums.bias_ih)
        rest = (part[:steps] for part in self._buffer[2:-1])
        part = LoopGradients(*out, *rest, bias_ih=self._sums.bias_ih)  # type: ignore[misc]
        self.retreat(first, inputs, did, grad_output, carry, part)
        self._sums.add(part)

    def gradients(self) -> LoopWeights:
        """See :meth:`Recurrence.gradients`."""
        assert self._sums is not None
        return self._sums.result()


def empty_gradients(out: Hoisted, w: Weights, bias_ih: Tensor) -> LoopGradients:
    """Room for those of as many steps as ``out`` (L, B, ...) has."""
    lead, shapes = out.gate_side.shape[:2], _shapes(w)
    sizes = [math.prod((*lead, *shape)) for shape in shapes]
    pieces = out.gate_side.new_empty(sum(sizes)).split_with_sizes(sizes)
    parts = [piece.view(*lead, *shape) for piece, shape in zip(pieces, shapes, strict=True)]
    return LoopGradients(*out, *parts, bias_ih=bias_ih)  # type: ignore[misc]


def _shapes(w: Weights) -> list[tuple[int, ...]]:
    """Shapes per step and sample, in the order of LoopGradients from ``state_gates`` on."""
    state, head_values = w.num_rims * w.unit_size, w.comm_value.shape[2]
    gates = w.num_rims * w.hh.shape[1]
    qkv = w.comm_query.shape[2] + w.comm_key.shape[2] + head_values
    return [
        (gates,),
        (w.num_rims, qkv),
        (w.num_rims, 2 * w.unit_size),
        (state,),
        (state,),
        (w.num_rims, head_values),
    ]


class _Sums:
    """Gradients of the weights of the loop, a chunk of steps at a time."""

    def __init__(self, w: Weights) -> None:
        self.w = w
        self.hh = torch.empty_like(w.hh, memory_format=torch.contiguous_format)
        self.bias_ih = w.hh.new_zeros(w.hh.shape[:2])
        # An LSTM only ever adds its two biases, so that they have the same gradient.
        self.bias_hh = None if w.num_gates == 4 else w.hh.new_empty(w.hh.shape[:2])
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
        comm_input, d_qkv = (
            _groups(part.comm_input, w.num_rims),
            _groups(part.qkv.flatten(2), w.num_rims),
        )
        self.qkv.baddbmm_(comm_input.mT, d_qkv, beta=beta)
        d_output_gate = part.output_gate.flatten(0, 2)
        self.output_gate.addmm_(d_output_gate.mT, part.read.flatten(0, 2), beta=beta)
        if self.bias_hh is not None:
            _add_sum(self.bias_hh.view(-1), as_rows(part.state_gates), beta)
        _add_sum(self.output_gate_bias, d_output_gate, beta)
        self._so_far = 1.0

    def result(self) -> LoopWeights:
        """The sums, in the shapes of the parameters, none in memory of another."""
        pair = [self.w.unit_size] * 2
        bias_hh = self.bias_ih.clone() if self.bias_hh is None else self.bias_hh
        qkv, output_gate = parted(self.qkv, self.qkv_sizes, 2), parted(self.output_gate, pair, 0)
        biases = self.bias_ih, bias_hh, *parted(self.output_gate_bias, pair, 0)
        return LoopWeights(*(self.hh, *qkv, *output_gate, *biases))


def _add_sum(total: Tensor, rows: Tensor, beta: float) -> None:
    if beta:
        total.add_(rows.sum(0))
    else:
        torch.sum(rows, 0, out=total)


def _groups(sequence: Tensor, num_rims: int) -> Tensor:
    """(L, B, N X) -> (N, L B, X), a view: the rows of every mechanism."""
    rows, width = sequence.shape[:-1].numel(), sequence.shape[-1]  # -1 would fail for no features
    return sequence.view(rows, num_rims, width // num_rims).transpose(0, 1)
