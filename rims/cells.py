"""RIM_LSTMCell and RIM_GRUCell: what a mechanism does on its own, as nn.LSTMCell and nn.GRUCell."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from rims.checks import CellOptions as CellOptions
from rims.functional import grouped_linear, gru_candidate, lstm_candidate
from rims.interop.fx import as_leaf
from rims.parameters import Parameters
from rims.step import Over, RIMCell, State


class RIM_LSTMCell(RIMCell):
    r"""One step of N LSTM mechanisms of which k are active; a drop-in for ``nn.LSTMCell``.

    Recurrent Independent Mechanisms, arXiv:1909.10893. Each mechanism m owns ``d = D / N`` columns
    of the state. With the input attention :math:`u_m = \sigma(l_m)\, x W^v`
    (:func:`rims.attention.read_input`), the k mechanisms with the largest :math:`l_m` become

    .. math::
        s_g = W^{ih}_{m,g} u_m + b^{ih}_{m,g} + W^{hh}_{m,g} h_m + b^{hh}_{m,g},
              \quad g \in \{i, f, g, o\} \\
        c'_m = \sigma(s_f)\, c_m + \sigma(s_i) \tanh(s_g), \qquad
        \tilde h_m = \sigma(s_o) \tanh(c'_m) \\
        h'_m = \tilde h_m + update_m(\tilde h_1, \dots, \tilde h_N)

    where the update comes from :func:`rims.attention.communicate`; the others keep
    their state unchanged. Equal scores: the lowest index is active (a zero state ties them all).

    Args:
        input_size: I, features of the input.
        hidden_size: D, features of the whole state (not of one mechanism).
        num_rims: N, number of mechanisms; divides ``hidden_size``.
        k: number of active mechanisms per step, ``1 <= k <= num_rims``.
        bias: whether gates and communication have biases. Default true.
        device: where the parameters live.
        dtype: their type.
        proj_size: P, total size of a projected output as in ``nn.LSTM``, split over the
            mechanisms, each with its own projection; 0 (default) projects nothing.
        input_slots: the input of a step is S elements ``(B, S, I)``, objects or image patches say,
            which mechanisms attend to beside the null slot. Default false: one element ``(B, I)``.
        num_input_heads: heads of the input attention. Default 1.
        input_key_size: features of a query or key of the input attention, per head. Default 64.
        input_value_size: A, features a mechanism reads. Default ``4 d``.
        input_gate: factor of what a mechanism reads, :math:`\hat g_m\, x W^v`. ``"null"``
            (default, the paper): :math:`\hat g_m = g_m`, its attention on the input against the
            null slot; ``"none"``: 1; ``"straight_through"``: :math:`1 + g_m - \mathrm{sg}(g_m)`,
            which is 1 and has the gradient of :math:`g_m` (arXiv:1308.3432). All select alike.
        competition: what that attention competes with. ``"null"`` (default): the null slot;
            ``"mechanisms"``: the other mechanisms, :math:`g = \mathrm{softmax}_m(l_m)` cut at its
            (k+1)-th largest and scaled to sum to one (the authors' Atari code, version 2).
        tie_margin: mechanisms whose attention is above that of the k-th minus this margin are
            active as well, :math:`g_m > g_{(k)} - margin` (github.com/alexmlamb/
            blocks_rl_gru_setup, 0.01 there). Default 0: exactly k are active.
        num_comm_heads: heads of the communication. Default 4. 0: no communication,
            :math:`h'_m = \tilde h_m`, and no parameters of it (an ablation of the paper).
        comm_key_size: features of a query or key of the communication, per head. Default 16.
        comm_value_size: features of a value, per head. Default 16.
        input_dropout: dropout on what a mechanism reads, in training mode. Default 0.
        comm_dropout: dropout on the communication output before its tanh, in training mode.
            Default 0.
        comm_reads: what mechanisms read of an inactive one: its ``"candidate"`` (default, as the
            authors' code) or the ``"state"`` it keeps (as the text of the paper).
        comm_update: how communication changes a candidate, with gate g and output o.
            ``"additive"`` (default): :math:`h' = \tilde h + g \tanh(o)`; ``"convex"``:
            :math:`h' = (1 - g)\, \tilde h + g \tanh(o)`, at most 1 if the candidate is
            (github.com/alexmlamb/blocks_rl_gru_setup).
        comm_gate_bias: number added to the initial bias of that gate, :math:`b_g + number`; -2 to
            -3 almost close it at first (arXiv:1910.06764). Default 0.
        learned_initial_state: the state before the first step, and after a reset, is a parameter
            that starts at zero. Default false: zeros.
        init_from_unit_size: draw gate weights by d instead of D. Default false.

    Shape:
        input ``(B, I)`` or ``(I,)``; ``h (B, D)`` (``(B, P)`` if projected); ``c (B, D)``.

    Returns:
        ``(h, c)`` as ``nn.LSTMCell``.

    Raises:
        ValueError: for sizes that do not fit each other.
        RuntimeError: for an input or state of the wrong shape.

    Example:
        >>> cell = RIM_LSTMCell(10, 24, num_rims=6, k=4)
        >>> h, c = cell(torch.randn(3, 10))
        >>> h.shape, c.shape
        (torch.Size([3, 24]), torch.Size([3, 24]))
    """

    num_gates = 4
    num_states = 2

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, *, over: Over | None = None
    ) -> Any:
        """Return the state after one input; ``hx`` defaults to zeros.

        Layers give ``over``, which computes a whole sequence with this cell during this one call.
        """
        leaf = as_leaf(self, input, hx)
        if leaf is not None:
            return leaf
        if over is not None:
            return over(self, input, hx)
        h, c = self._step_batched(input, hx)
        return h, c

    def candidate(self, p: Parameters, read: Tensor, prev: State) -> State:
        """LSTM update of every mechanism, projected if ``proj_size`` is set."""
        h_prev, c_prev = prev
        from_input, from_state = _gates(p, read, h_prev)
        h, c = lstm_candidate(from_input + from_state, c_prev)
        return (h if p.weight_hr is None else grouped_linear(h, p.weight_hr.mT)), c


class RIM_GRUCell(RIMCell):
    r"""One step of N GRU mechanisms of which k are active; a drop-in for ``nn.GRUCell``.

    As :class:`RIM_LSTMCell` with, for every mechanism (gate order r, z, n),

    .. math::
        r = \sigma(W^{ih}_{m,r} u_m + b^{ih}_{m,r} + W^{hh}_{m,r} h_m + b^{hh}_{m,r}), \quad
        z \text{ likewise} \\
        n = \tanh(W^{ih}_{m,n} u_m + b^{ih}_{m,n} + r\,(W^{hh}_{m,n} h_m + b^{hh}_{m,n})), \qquad
        \tilde h_m = (1 - z)\, n + z\, h_m

    Args:
        input_size: I, features of the input.
        hidden_size: D, features of the whole state (not of one mechanism).
        num_rims: N, number of mechanisms; divides ``hidden_size``.
        k: number of active mechanisms per step, ``1 <= k <= num_rims``.
        bias: whether gates and communication have biases. Default true.
        device: where the parameters live.
        dtype: their type.
        options: the keyword-only options of :class:`RIM_LSTMCell`, but for ``proj_size``.

    Shape:
        input ``(B, I)`` or ``(I,)``; ``h (B, D)``.

    Returns:
        ``h`` as ``nn.GRUCell``.

    Raises:
        ValueError: for sizes that do not fit each other.
        RuntimeError: for an input or state of the wrong shape.

    Example:
        >>> RIM_GRUCell(10, 24, num_rims=6, k=4)(torch.randn(3, 10)).shape
        torch.Size([3, 24])
    """

    num_gates = 3
    num_states = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_rims: int,
        k: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_slots: bool = False,
        **options: Unpack[CellOptions],
    ) -> None:
        if "proj_size" in options:
            raise TypeError("RIM_GRUCell: proj_size is for LSTM mechanisms only, as in torch.")
        super().__init__(
            input_size,
            hidden_size,
            num_rims,
            k,
            bias,
            device,
            dtype,
            input_slots=input_slots,
            **options,
        )

    def forward(self, input: Tensor, hx: Tensor | None = None, *, over: Over | None = None) -> Any:
        """Return the state after one input; ``hx`` defaults to zeros.

        Layers give ``over``, which computes a whole sequence with this cell during this one call.
        """
        leaf = as_leaf(self, input, hx)
        if leaf is not None:
            return leaf
        if over is not None:
            return over(self, input, hx)
        (h,) = self._step_batched(input, None if hx is None else (hx,))
        return h

    def candidate(self, p: Parameters, read: Tensor, prev: State) -> State:
        """GRU update of every mechanism."""
        (h_prev,) = prev
        return (gru_candidate(*_gates(p, read, h_prev), h_prev),)


def _gates(p: Parameters, read: Tensor, h_prev: Tensor) -> tuple[Tensor, Tensor]:
    """The sums behind all gates: what comes from the input, and what from the state."""
    from_input = grouped_linear(read, p.weight_ih.mT, p.bias_ih)  # (B, N, G d)
    from_state = grouped_linear(h_prev, p.weight_hh.mT, p.bias_hh)  # (B, N, G d)
    return from_input, from_state
