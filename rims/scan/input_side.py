r"""The input side of a sequence: products of the input for all steps, and their gradients.

.. math:: U = x W^k Q^T / \sqrt{d_k}, \qquad G = x W^v W_{ih}^T

:class:`Apart` multiplies as it is written, through keys and values. :class:`Joined` multiplies the
weights with each other first: fewer operations where the input is narrow and its rows are many.
Their roundings differ.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from rims.scan.problem import Weights
from rims.scan.recurrence import Hoisted

#: Fewer rows than this are multiplied by two matrices rather than by a copy of both side by side.
FEW_ROWS = 128


class InputSide:
    """Weights of the input side, and the sums of their gradients over the rows added so far."""

    def __init__(self, w: Weights) -> None:
        self.w = w
        self.sizes = [w.input_key.shape[1], w.input_value.shape[1]]  # dk, A
        self.scale = 1 / math.sqrt(self.sizes[0])
        self.query = w.input_query.flatten(0, 1)  # (N d, dk)
        self.ih = w.ih.flatten(0, 1)  # (N G d, A)
        self._so_far = 0.0  # what the sums count for: nothing before the first rows

    def room(self, input: Tensor, *lead: int) -> tuple[Tensor | None, Hoisted]:
        """Memory for :meth:`project`, for inputs of the leading shape ``lead``."""
        kept = self._room_to_keep(input, *lead)
        sides = (input.new_empty(*lead, weight.shape[0]) for weight in (self.query, self.ih))
        return kept, Hoisted(*sides)

    def _room_to_keep(self, input: Tensor, *lead: int) -> Tensor | None:
        raise NotImplementedError

    def project(self, input: Tensor, kept: Tensor | None, out: Hoisted) -> None:
        """Fill ``out``, and what else the gradient needs, from ``input`` (..., I)."""
        raise NotImplementedError

    def add(
        self, d: Hoisted, input: Tensor, kept: Tensor | None, grad_input: Tensor | None
    ) -> None:
        """Add what rows of the input contribute, from the gradients ``d`` of U and G.

        ``grad_input``, where it is wanted, is filled.
        """
        raise NotImplementedError

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of W^k, W^v, Q and W_ih in the shapes of the parameters."""
        raise NotImplementedError


class Apart(InputSide):
    """Keys and values first, which are kept for the gradient."""

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Room for those of keys beside values, of Q and of W_ih."""
        empty = self.w.input_key.new_empty
        wide = empty(self.w.input_key.shape[0], sum(self.sizes))
        return wide, empty(self.query.shape), empty(self.ih.shape)

    @cached_property
    def key_value(self) -> Tensor:
        """W^k beside W^v, (I, dk + A)."""
        return torch.cat([self.w.input_key, self.w.input_value], dim=1)

    def _room_to_keep(self, input: Tensor, *lead: int) -> Tensor:
        return input.new_empty(*lead, sum(self.sizes))

    def project(self, input: Tensor, kept: Tensor | None, out: Hoisted) -> None:
        """See :meth:`InputSide.project`."""
        assert kept is not None
        rows = as_rows(input)
        key, value = as_rows(kept).split_with_sizes(self.sizes, dim=1)
        if rows.shape[0] < FEW_ROWS:
            torch.mm(rows, self.w.input_key, out=key)
            torch.mm(rows, self.w.input_value, out=value)
        else:
            torch.mm(rows, self.key_value, out=as_rows(kept))
        as_rows(out.query_side).addmm_(key, self.query.mT, beta=0.0, alpha=self.scale)
        torch.mm(value, self.ih.mT, out=as_rows(out.gate_side))

    def add(
        self, d: Hoisted, input: Tensor, kept: Tensor | None, grad_input: Tensor | None
    ) -> None:
        """See :meth:`InputSide.add`."""
        assert kept is not None
        d_query_side, d_gate_side = map(as_rows, d)
        key_value, beta = as_rows(kept), self._so_far
        of_key_value, of_query, of_ih = self._sums
        key, value = key_value.split_with_sizes(self.sizes, dim=1)
        of_query.addmm_(d_query_side.mT, key, alpha=self.scale, beta=beta)
        of_ih.addmm_(d_gate_side.mT, value, beta=beta)
        d_key_value = torch.empty_like(key_value)
        d_key, d_value = d_key_value.split_with_sizes(self.sizes, dim=1)
        d_key.addmm_(d_query_side, self.query, beta=0.0, alpha=self.scale)
        torch.mm(d_gate_side, self.ih, out=d_value)
        of_key_value.addmm_(as_rows(input).mT, d_key_value, beta=beta)
        self._so_far = 1.0
        if grad_input is not None:
            torch.mm(d_key_value, self.key_value.mT, out=as_rows(grad_input))

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See :meth:`InputSide.gradients`."""
        of_key_value, of_query, of_ih = self._sums
        input_key, input_value = parted(of_key_value, self.sizes, dim=1)
        return (
            input_key,
            input_value,
            of_query.view_as(self.w.input_query),
            of_ih.view_as(self.w.ih),
        )


class Joined(InputSide):
    """Projects the input to U and G in one product each; nothing is kept."""

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor]:
        """Room for those of W^k Q^T and W^v W_ih^T."""
        empty, size = self.w.input_key.new_empty, self.w.input_key.shape[0]
        return empty(size, self.query.shape[0]), empty(size, self.ih.shape[0])

    @cached_property
    def to_query(self) -> Tensor:
        """W^k Q^T / sqrt(dk), (I, N d)."""
        product = self.w.input_key.new_empty(self.w.input_key.shape[0], self.query.shape[0])
        return product.addmm_(self.w.input_key, self.query.mT, beta=0.0, alpha=self.scale)

    @cached_property
    def to_gate(self) -> Tensor:
        """W^v W_ih^T, (I, N G d)."""
        return self.w.input_value @ self.ih.mT

    def _room_to_keep(self, input: Tensor, *lead: int) -> None:
        pass

    def project(self, input: Tensor, kept: Tensor | None, out: Hoisted) -> None:
        """See :meth:`InputSide.project`."""
        rows = as_rows(input)
        torch.mm(rows, self.to_query, out=as_rows(out.query_side))
        torch.mm(rows, self.to_gate, out=as_rows(out.gate_side))

    def add(
        self, d: Hoisted, input: Tensor, kept: Tensor | None, grad_input: Tensor | None
    ) -> None:
        """See :meth:`InputSide.add`."""
        d_query_side, d_gate_side = map(as_rows, d)
        columns, (to_query, to_gate) = as_rows(input).mT, self._sums
        # Of W^k Q^T alone: the scale is already part of it.
        to_query.addmm_(columns, d_query_side, beta=self._so_far, alpha=self.scale)
        to_gate.addmm_(columns, d_gate_side, beta=self._so_far)
        self._so_far = 1.0
        if grad_input is not None:
            rows = as_rows(grad_input)
            torch.mm(d_query_side, self.to_query.mT, out=rows)
            rows.addmm_(d_gate_side, self.to_gate.mT)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See :meth:`InputSide.gradients`."""
        w, (to_query, to_gate) = self.w, self._sums
        query, ih = to_query.mT @ w.input_key, to_gate.mT @ w.input_value
        return (
            to_query @ self.query,
            to_gate @ self.ih,
            query.view_as(w.input_query),
            ih.view_as(w.ih),
        )


def choose(w: Weights, rows: int, save: bool, input_needs_grad: bool) -> type[InputSide]:
    """The way that takes fewer multiplications.

    Args:
        w: the weights.
        rows: of the input, all of which differ.
        save: whether the backward pass counts too.
        input_needs_grad: whether the input's gradient does.

    Example:
        >>> import rims
        >>> wide, narrow = rims.RIM_LSTM(600, 300, 6, 4), rims.RIM_LSTM(64, 64, 4, 3)
        >>> choose(Weights.of(wide.rim_cells[0]), 6400, True, False).__name__
        'Apart'
        >>> choose(Weights.of(narrow.rim_cells[0]), 512, True, False).__name__
        'Joined'
    """
    (size, keys), values = w.input_key.shape, w.input_value.shape[1]
    queries, gates = w.num_rims * w.unit_size, w.num_rims * w.hh.shape[1]
    to_keys, behind = size * (keys + values), keys * queries + values * gates
    at_once = size * (queries + gates)
    apart, joined, once = to_keys + behind, at_once, size * behind
    if save:  # gradients of the weights, and of keys and values
        apart, joined, once = apart + to_keys + 2 * behind, joined + at_once, once + 2 * once
        if input_needs_grad:
            apart, joined = apart + to_keys, joined + at_once
    return Joined if rows * joined + once < rows * apart else Apart


def as_rows(sequence: Tensor) -> Tensor:
    """(..., X) -> (rows, X); a view."""
    return sequence.view(-1, sequence.shape[-1])


def parted(whole: Tensor, sizes: list[int], dim: int) -> list[Tensor]:
    """Copies of parts that lie side by side."""
    parts = whole.split_with_sizes(sizes, dim=dim)
    return [part.clone(memory_format=torch.contiguous_format) for part in parts]
