"""The recurrent part of a sequence in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from rims.scan.recurrence import Carry, Hoisted, Sequence
from rims.scan.torch import loop
from rims.scan.torch.products import LoopGradients, ProductRecurrence


class TorchRecurrence(ProductRecurrence):
    """PyTorch, on any device and in any type."""

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

    def retreat(
        self,
        first: int,
        inputs: Hoisted,
        did: Sequence,
        grad_output: Tensor,
        carry: Carry,
        out: LoopGradients,
    ) -> None:
        """See :meth:`ProductRecurrence.retreat`."""
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
            grad = loop.step_gradient(grad_h, grad_c, again, *sides, h, c, self.w, self.rules)
            out.query_side[i] = grad.query_side.flatten(1)
            out.gate_side[i] = grad.gate_side.flatten(1)
            out.state_gates[i] = grad.state_gates.flatten(1)
            out.qkv[i] = grad.qkv
            out.output_gate[i] = grad.output_gate
            out.h_prev[i] = h.flatten(1)
            out.comm_input[i] = again.comm_input.flatten(1)
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
