"""What computes the recurrent part of a sequence, whatever it is written in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rims.scan import loop
from rims.scan.problem import Flags, Rules, States, Weights


class Sequence(NamedTuple):
    """A whole sequence: what every step became."""

    h: Tensor  # (T, B, D) after every step
    c: Tensor | None  # (T, B, D); a GRU has none
    active: Tensor  # (T, B, N) bool


class Hoisted(NamedTuple):
    """The input side of consecutive steps; :mod:`rims.scan.loop` says what U and G are."""

    query_side: Tensor  # (L, B, N d), U
    gate_side: Tensor  # (L, B, N G d), G


class LoopGradients(NamedTuple):
    """What the loop leaves of consecutive steps for products over all of them at once.

    A gradient of a weight is a product of one of these with another. V is how many mechanisms per
    sample are given where only active ones count: k where a path packs them, else N.
    """

    query_side: Tensor  # (L, B, N d), gradient of U
    gate_side: Tensor  # (L, B, N G d), of G
    state_gates: Tensor  # (L, B, N G d), of the state's half of the gates
    qkv: Tensor  # (L, B, N, W), of queries, keys and values of the communication
    output_gate: Tensor  # (L, B, V, 2 d), of its output and gate before tanh and sigmoid
    h_prev: Tensor  # (L, B, N d), the state before each step, resets made
    spoken: Tensor  # (L, B, N d), what mechanisms read of each other
    read: Tensor  # (L, B, V, M dv), what they got
    bias_ih: Tensor  # (N, G d), of the input's half of the gates, summed over all steps so far

    def first_steps(self, count: int) -> LoopGradients:
        """Room for ``count`` steps, in the same memory."""
        *steps, bias_ih = self
        if len(self.read) == count:
            return self
        return LoopGradients(*(part[:count] for part in steps), bias_ih=bias_ih)  # type: ignore[misc]


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

    Made anew for every sequence, so that an implementation can pack weights once for all ranges.
    """

    #: What it holds besides the tensors it was made with.
    num_bytes = 0
    #: Whether ``output_gate`` and ``read`` hold only the k active mechanisms of a sample.
    packs_active: ClassVar[bool] = False

    def __init__(self, w: Weights, rules: Rules, states: States, flags: Flags) -> None:
        self.w, self.rules, self.states, self.flags = w, rules, states, flags

    def is_stale(self) -> bool:
        """Whether a tensor it was made with has other memory since, as ``parameter.data = ...``.

        Values that change in the same memory are autograd's to notice, which it does but for those
        changed through ``.data``.
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
        out: LoopGradients,
    ) -> None:
        """Fill ``out`` and take ``carry`` from after these steps to before them.

        ``grad_output`` (L, B, D) is the gradient of these steps' outputs.
        """


class TorchRecurrence(Recurrence):
    """In PyTorch, on any device and in any type."""

    def forward(self, first: int, inputs: Hoisted, out: Sequence) -> None:
        """See :meth:`Recurrence.forward`."""
        for i in range(len(inputs.query_side)):
            t = first + i
            h, c = self._before(t, out)
            did = loop.step(*self._inputs(i, inputs), h, c, self.w, self.rules)
            new_h, new_c, active = did.h, did.c, did.active
            if self.flags.valid is not None:
                keep = self.flags.valid[t, :, None]
                active = active & keep
                new_h = torch.where(keep[..., None], new_h, h)
                new_c = None if new_c is None or c is None else new_c.where(keep[..., None], c)
            out.h[t] = new_h.flatten(1)
            out.active[t] = active
            if out.c is not None and new_c is not None:
                out.c[t] = new_c.flatten(1)

    def backward(
        self,
        first: int,
        inputs: Hoisted,
        did: Sequence,
        grad_output: Tensor,
        carry: Carry,
        out: LoopGradients,
    ) -> None:
        """See :meth:`Recurrence.backward`."""
        for i in reversed(range(len(inputs.query_side))):
            t = first + i
            h, c = self._before(t, did)
            sides = self._inputs(i, inputs)
            again = loop.step(*sides, h, c, self.w, self.rules)
            if self.flags.valid is not None:
                # Nothing was active in padding: the gradient passes by on the same way.
                again = again._replace(active=again.active & self.flags.valid[t, :, None])
            grad_h = self._split(carry.h + grad_output[i])
            grad_c = None if carry.c is None else self._split(carry.c)
            grad = loop.step_gradient(grad_h, grad_c, again, *sides, h, c, self.w)
            out.query_side[i] = grad.query_side.flatten(1)
            out.gate_side[i] = grad.gate_side.flatten(1)
            out.state_gates[i] = grad.state_gates.flatten(1)
            out.qkv[i] = grad.qkv
            out.output_gate[i] = grad.output_gate
            out.h_prev[i] = h.flatten(1)
            out.spoken[i] = again.spoken.flatten(1)
            out.read[i] = again.read
            out.bias_ih.add_(grad.input_gates.sum(0))
            self._hand_back(t, grad, carry)

    def _before(self, t: int, did: Sequence) -> tuple[Tensor, Tensor | None]:
        """The state before step t, (B, N, d), resets made."""
        s = self.states
        h, c = (did.h[t - 1], did.c[t - 1] if did.c is not None else None) if t else (s.h, s.c)
        if self.flags.reset is not None:
            flag = self.flags.reset[t].unsqueeze(-1)
            zero = h.new_zeros(())
            h = torch.where(flag, zero if s.fresh_h is None else s.fresh_h, h)
            if c is not None:
                c = torch.where(flag, zero if s.fresh_c is None else s.fresh_c, c)
        return self._split(h), None if c is None else self._split(c)

    def _hand_back(self, t: int, grad: loop.StepGradient, carry: Carry) -> None:
        """Put the gradients of the state before step t where they belong."""
        for new, before, fresh in (
            (grad.h, carry.h, carry.fresh_h),
            (grad.c, carry.c, carry.fresh_c),
        ):
            if new is None or before is None or fresh is None:
                continue
            flat = new.flatten(1)
            if self.flags.reset is not None:
                flag = self.flags.reset[t].unsqueeze(-1)
                fresh.add_(flat.masked_fill(~flag, 0.0))
                flat = flat.masked_fill(flag, 0.0)
            before.copy_(flat)

    def _split(self, state: Tensor) -> Tensor:
        return state.reshape(state.shape[0], self.w.num_rims, self.w.unit_size)

    def _inputs(self, i: int, inputs: Hoisted) -> tuple[Tensor, Tensor]:
        batch, num_rims = inputs.query_side.shape[1], self.w.num_rims
        query_side, gate_side = inputs.query_side[i], inputs.gate_side[i]
        return (
            query_side.reshape(batch, num_rims, self.w.unit_size),
            gate_side.reshape(batch, num_rims, self.w.hh.shape[1]),
        )
