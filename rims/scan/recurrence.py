"""Interface of all implementations of the recurrent part of a sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from rims.scan.problem import Flags, Rules, States, Weights


class Sequence(NamedTuple):
    """Results of all steps of a sequence."""

    h: Tensor  # (T, B, D) after every step
    c: Tensor | None  # (T, B, D); a GRU has none
    active: Tensor  # (T, B, N) bool


class Hoisted(NamedTuple):
    """The input side of consecutive steps; :mod:`rims.scan.torch.loop` says what U and G are."""

    query_side: Tensor  # (L, B, N d), U
    gate_side: Tensor  # (L, B, N G d), G


class LoopWeights(NamedTuple):
    """Gradients of the weights that the recurrent part has, in their shapes; see Weights."""

    hh: Tensor
    comm_query: Tensor
    comm_key: Tensor
    comm_value: Tensor
    output: Tensor
    gate: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    output_bias: Tensor
    gate_bias: Tensor


class Carry(NamedTuple):
    """Gradients that go back in time, changed in place."""

    h: Tensor  # (B, D)
    c: Tensor | None
    fresh_h: Tensor  # (B, D), of what resets put in place of the state; all of them summed
    fresh_c: Tensor | None


def new_carry(grad_h: Tensor, grad_c: Tensor | None) -> Carry:
    """The gradients of the last state, in memory of their own, and nothing of fresh states yet."""
    own = [
        None if g is None else g.clone(memory_format=torch.contiguous_format)
        for g in (grad_h, grad_c)
    ]
    assert own[0] is not None
    fresh = [None if g is None else torch.zeros_like(g) for g in own]
    assert fresh[0] is not None
    return Carry(own[0], own[1], fresh[0], fresh[1])


class Recurrence(ABC):
    """The recurrent part of one sequence, computed a range of steps at a time.

    Every sequence has its own, so an implementation can pack weights once for all ranges.
    """

    #: Bytes it holds besides the tensors it was made with.
    num_bytes = 0

    def __init__(self, w: Weights, rules: Rules, states: States, flags: Flags) -> None:
        self.w, self.rules, self.states, self.flags = w, rules, states, flags

    def is_stale(self) -> bool:
        """Whether a tensor it was made with has new memory, as after ``parameter.data = ...``.

        Autograd notices values that change in the same memory, except changes through ``.data``.
        """
        return False

    @abstractmethod
    def forward(self, first: int, inputs: Hoisted, out: Sequence) -> None:
        """Fill the steps of ``out`` from ``first``, as many as ``inputs`` has."""

    @abstractmethod
    def backward(
        self,
        first: int,
        inputs: Hoisted,
        did: Sequence,
        grad_output: Tensor,
        carry: Carry,
        out: Hoisted,
    ) -> None:
        """Fill ``out``, gradients of ``inputs``; move ``carry`` from after these steps to before.

        ``grad_output`` (L, B, D) is the gradient of these steps' outputs. Ranges come from the last
        to the first.
        """

    @abstractmethod
    def gradients(self) -> LoopWeights:
        """Gradients of the weights, after all ranges; no two share memory."""
