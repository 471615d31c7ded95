"""nn.LSTM and nn.GRU over sequences with resets inside, in one loop with a gradient by hand.

PyTorch's own layers cannot begin anew inside a sequence, and to cut it into pieces and pack these
takes longer on a CPU. So does nn.GRU with its gradient where nothing begins anew, at the sizes of
agents. What does not need the state is taken out of the loop, forwards and backwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

State = tuple[Tensor, ...]


def supports(module: nn.Module) -> bool:
    """Whether :func:`run_with_resets` computes what calling ``module`` does.

    A hook may change weights, input or output (``torch.nn.utils.weight_norm`` is one), and is only
    heard by a call.
    """
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)
    return (
        isinstance(module, nn.LSTM | nn.GRU)
        and not any((*hooks, module._backward_pre_hooks))
        and type(module).forward in (nn.LSTM.forward, nn.GRU.forward)
        and module.num_layers == 1
        and not module.bidirectional
        and not module.proj_size
        and not module.batch_first
    )


def run_with_resets(
    module: nn.LSTM | nn.GRU, input: Tensor, state: State, starts: State, reset: Tensor
) -> tuple[Tensor, State]:
    """Run a sequence in which the state becomes ``starts`` before every step with a reset.

    Args:
        module: for which :func:`supports` is true.
        input: ``(T, B, I)``, of the type of the weights; there is no autocast.
        state: h, and c of an LSTM, each ``(1, B, H)``.
        starts: states that episodes begin with, each ``(1, 1, H)``.
        reset: bool ``(T, B)``.

    Returns:
        The output ``(T, B, H)`` and the state after the last step.

    Example:
        >>> gru, zero = nn.GRU(2, 3), torch.zeros(1, 1, 3)
        >>> reset = torch.tensor([[False], [True]])
        >>> output, _ = run_with_resets(gru, torch.ones(2, 1, 2), (zero,), (zero,), reset)
        >>> output[0].equal(output[1])  # the second step began anew
        True
    """
    weight_ih, weight_hh, *biases = module.all_weights[0]
    bias_ih, bias_hh = biases or (None, None)
    flat = (*(part[0] for part in state), *(part[0] for part in starts))
    if isinstance(module, nn.LSTM):
        bias = None if bias_ih is None or bias_hh is None else bias_ih + bias_hh
        side = nn.functional.linear(input, weight_ih, bias)  # (T, B, 4 H)
        results = _LSTMLoop.apply(side, reset, weight_hh, *flat)  # type: ignore[no-untyped-call]
    else:
        side = nn.functional.linear(input, weight_ih, bias_ih)  # (T, B, 3 H)
        results = _GRULoop.apply(side, reset, weight_hh, bias_hh, *flat)  # type: ignore[no-untyped-call]
    output, *last = results
    return output, tuple(part.unsqueeze(0) for part in last)


class _Resets:
    """The places where states are reset, in the forward and the backward pass."""

    def __init__(self, reset: Tensor) -> None:
        self.flag = reset.unsqueeze(-1)  # (T, B, 1)
        self.any = reset.any(1).tolist()  # most steps may have none, and nothing is done there

    def start(self, t: int, state: Tensor, start: Tensor, out: Tensor) -> Tensor:
        """The state (B, H) before step ``t``, and where it is kept."""
        if self.any[t]:
            return torch.where(self.flag[t], start, state, out=out)
        return out.copy_(state)

    def back(self, t: int, grad: Tensor, grad_start: Tensor) -> Tensor:
        """The gradient of the state before step ``t`` resets it; adds up that of the start."""
        if not self.any[t]:
            return grad
        kept = grad.masked_fill(self.flag[t], 0.0)
        grad_start += (grad - kept).sum(0, keepdim=True)
        return kept


class _LSTMLoop(torch.autograd.Function):
    """Input side of the gates i, f, g, o, reset, W_hh, h, c, h and c of starts -> output, h, c."""

    @staticmethod
    def forward(
        ctx: Any,
        side: Tensor,
        reset: Tensor,
        weight_hh: Tensor,
        h: Tensor,
        c: Tensor,
        start_h: Tensor,
        start_c: Tensor,
    ) -> tuple[Tensor, ...]:
        resets = _Resets(reset)
        size = weight_hh.shape[1]
        gates = torch.empty_like(side)
        output, cells, tanh_cells, h_prev, c_prev = (
            side.new_empty(*side.shape[:2], size) for _ in range(5)
        )
        by_step = (part.unbind() for part in (h_prev, c_prev, cells, tanh_cells, output))
        i_and_f = gates[..., : 2 * size].unbind()
        of_gates = (part.unbind() for part in gates.chunk(4, dim=-1))
        rows = zip(side.unbind(), gates.unbind(), i_and_f, *of_gates, *by_step, strict=True)
        for t, (x, gate, i_f, i, f, g, o, h_old, c_old, cell, tanh_cell, out) in enumerate(rows):
            h = resets.start(t, h, start_h, h_old)
            c = resets.start(t, c, start_c, c_old)
            torch.addmm(x, h, weight_hh.T, out=gate)
            i_f.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            c = torch.mul(f, c, out=cell).addcmul_(i, g)
            h = torch.mul(o, torch.tanh(c, out=tanh_cell), out=out)
        ctx.save_for_backward(weight_hh, gates, tanh_cells, h_prev, c_prev)
        ctx.resets = resets
        return output, h.clone(), c.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight_hh, gates, tanh_cells, h_prev, c_prev = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, dim=-1)
        # Factors of the gradients of c and h on their way into the gates.
        from_c = torch.stack([g * i * (1 - i), c_prev * f * (1 - f), i * (1 - g * g)], dim=2)
        from_h, into_c = tanh_cells * o * (1 - o), o * (1 - tanh_cells * tanh_cells)
        grad_gates = gates.new_empty(*i.shape[:2], 4, i.shape[2])  # (T, B, 4, H)
        flat = grad_gates.flatten(2)
        grad_h, grad_c = grads
        grad_starts: State = tuple(torch.zeros_like(grad[:1]) for grad in grads)
        for t in reversed(range(len(gates))):
            grad_h = grad_h + grad_output[t]
            grad_c = torch.addcmul(grad_c, grad_h, into_c[t])
            torch.mul(grad_h, from_h[t], out=grad_gates[t, :, 3])
            torch.mul(grad_c.unsqueeze(1), from_c[t], out=grad_gates[t, :, :3])
            grad_h = ctx.resets.back(t, flat[t] @ weight_hh, grad_starts[0])
            grad_c = ctx.resets.back(t, grad_c * f[t], grad_starts[1])
        grad_weight = flat.flatten(0, 1).T @ h_prev.flatten(0, 1)
        return flat, None, grad_weight, grad_h, grad_c, *grad_starts


class _GRULoop(torch.autograd.Function):
    """Input side of the gates r, z, n, reset, W_hh, b_hh, h, h of starts -> output, h."""

    @staticmethod
    def forward(
        ctx: Any,
        side: Tensor,
        reset: Tensor,
        weight_hh: Tensor,
        bias_hh: Tensor | None,
        h: Tensor,
        start: Tensor,
    ) -> tuple[Tensor, ...]:
        resets = _Resets(reset)
        size = weight_hh.shape[1]
        gates = torch.empty_like(side)
        output, h_prev, hidden_n = (side.new_empty(*side.shape[:2], size) for _ in range(3))
        sides = side[..., : 2 * size], side[..., 2 * size :]
        parts = (*sides, gates[..., : 2 * size], *gates.chunk(3, dim=-1), h_prev, hidden_n, output)
        rows = zip(*(part.unbind() for part in parts), strict=True)
        for t, (x_r_z, x_n, r_z, r, z, n, h_old, h_n, out) in enumerate(rows):
            h = resets.start(t, h, start, h_old)
            hidden = nn.functional.linear(h, weight_hh, bias_hh)
            h_n.copy_(hidden[:, 2 * size :])
            torch.add(x_r_z, hidden[:, : 2 * size], out=r_z).sigmoid_()
            torch.addcmul(x_n, r, h_n, out=n).tanh_()
            h = torch.lerp(n, h, z, out=out)
        ctx.save_for_backward(weight_hh, gates, h_prev, hidden_n)
        ctx.resets, ctx.has_bias = resets, bias_hh is not None
        return output, h.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        weight_hh, gates, h_prev, hidden_n = ctx.saved_tensors
        r, z, n = gates.chunk(3, dim=-1)
        # Factors of the gradient of h on its way into the gates.
        into_n = (1 - z) * (1 - n * n)
        into_r, into_z = into_n * hidden_n * r * (1 - r), (h_prev - n) * z * (1 - z)
        into = torch.stack([into_r, into_z, into_n * r], dim=2)  # (T, B, 3, H)
        grad_hh, grad_all = torch.empty_like(into), torch.empty_like(h_prev)
        grad_start = torch.zeros_like(grad_h[:1])
        for t in reversed(range(len(gates))):
            grad_h = torch.add(grad_h, grad_output[t], out=grad_all[t])
            torch.mul(grad_h.unsqueeze(1), into[t], out=grad_hh[t])
            grad_h = torch.addmm(grad_h * z[t], grad_hh[t].flatten(1), weight_hh)
            grad_h = ctx.resets.back(t, grad_h, grad_start)
        grad_side = torch.cat([grad_hh[:, :, :2].flatten(2), grad_all * into_n], dim=-1)
        rows = grad_hh.flatten(2).flatten(0, 1)  # (T B, 3 H)
        grad_weight = rows.T @ h_prev.flatten(0, 1)
        grad_bias = rows.sum(0) if ctx.has_bias else None
        return grad_side, None, grad_weight, grad_bias, grad_h, grad_start
