"""RIM_LSTMCell and RIM_GRUCell: one step of a RIM layer, written to be read.

Every faster way of computing a sequence is tested against these cells.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import ClassVar, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn

from rims.attention import CommunicationAttention, InputAttention, uniform_
from rims.checks import check_count, check_flag, check_mechanisms, check_probability
from rims.functional import (
    grouped_linear,
    gru_candidate,
    lstm_candidate,
    stop_gradient_where,
    topk_mask,
)

#: The state of a cell: ``(h, c)`` for an LSTM, ``(h,)`` for a GRU, each flat: (B, D).
State = tuple[Tensor, ...]


class CellStep(NamedTuple):
    """One step of a cell and how it came about."""

    state: State  # each (B, N d), flat
    active: Tensor  # (B, N) bool, exactly k true per row
    input_attention: Tensor  # (B, N, 2) weight on the null slot and on the input
    communication: Tensor  # (B, M, N, N) weight of head M from reader to read


class CellOptions(TypedDict, total=False):
    """Keyword-only options every cell and layer takes; :class:`RIM_LSTMCell` documents them."""

    input_key_size: int
    input_value_size: int | None
    num_comm_heads: int
    comm_key_size: int
    comm_value_size: int
    input_dropout: float
    comm_dropout: float
    init_from_unit_size: bool


class RIMCell(nn.Module):
    """What LSTM and GRU mechanisms share: competition, selection, communication.

    A subclass says how a mechanism alone would change its state (:meth:`candidate`), how many
    gates that takes and how many tensors the state has.
    """

    num_gates: ClassVar[int]
    num_states: ClassVar[int]

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
        proj_size: int = 0,
        input_key_size: int = 64,
        input_value_size: int | None = None,
        num_comm_heads: int = 4,
        comm_key_size: int = 16,
        comm_value_size: int = 16,
        input_dropout: float = 0.0,
        comm_dropout: float = 0.0,
        init_from_unit_size: bool = False,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        check_count(where, "input_size", input_size)
        check_mechanisms(where, hidden_size, num_rims, k, proj_size)
        check_flag(where, "bias", bias)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_rims = num_rims
        self.k = k
        self.bias = bias
        self.proj_size = proj_size
        self.init_from_unit_size = init_from_unit_size
        unit_size = hidden_size // num_rims
        output_size = (proj_size or hidden_size) // num_rims  # of one mechanism's h
        value_size = 4 * unit_size if input_value_size is None else input_value_size

        for name, size in (
            ("input_key_size", input_key_size),
            ("input_value_size", value_size),
            ("num_comm_heads", num_comm_heads),
            ("comm_key_size", comm_key_size),
            ("comm_value_size", comm_value_size),
        ):
            check_count(where, name, size)
        check_probability(where, "input_dropout", input_dropout)
        check_probability(where, "comm_dropout", comm_dropout)

        self.input_attention = InputAttention(
            input_size,
            output_size,
            num_rims,
            key_size=input_key_size,
            value_size=value_size,
            dropout=input_dropout,
            device=device,
            dtype=dtype,
        )
        empty = partial(torch.empty, device=device, dtype=dtype)
        gates = self.num_gates * unit_size
        self.weight_ih = nn.Parameter(empty(num_rims, gates, value_size))
        self.weight_hh = nn.Parameter(empty(num_rims, gates, output_size))
        self.bias_ih = nn.Parameter(empty(num_rims, gates)) if bias else None
        self.bias_hh = nn.Parameter(empty(num_rims, gates)) if bias else None
        self.weight_hr = (
            nn.Parameter(empty(num_rims, output_size, unit_size)) if proj_size else None
        )
        self.communication = CommunicationAttention(
            output_size,
            num_rims,
            num_heads=num_comm_heads,
            key_size=comm_key_size,
            value_size=comm_value_size,
            bias=bias,
            dropout=comm_dropout,
            device=device,
            dtype=dtype,
        )
        self.reset_parameters()

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Width of every tensor of the state; the first is the output."""
        return (self.proj_size or self.hidden_size, self.hidden_size)[: self.num_states]

    def reset_parameters(self) -> None:
        r"""Draw the gates from :math:`U(-1/\sqrt{D}, 1/\sqrt{D})`, the attentions by their fan-in.

        D is the total hidden size, the law of ``nn.LSTM`` and of the authors' code;
        ``init_from_unit_size=True`` takes the size d of one mechanism, its true fan-in.
        """
        self.input_attention.reset_parameters()
        self.communication.reset_parameters()
        fan_in = self.hidden_size // (self.num_rims if self.init_from_unit_size else 1)
        for parameter in self.parameters(recurse=False):
            uniform_(parameter, fan_in=fan_in)

    def initial_state(self, input: Tensor) -> State:
        """Zeros for a batch like ``input`` (B, I)."""
        return tuple(input.new_zeros(input.shape[0], size) for size in self.state_sizes)

    def step(self, input: Tensor, state: State) -> CellStep:
        """Advance ``state`` by one input ``(B, I)`` and tell which mechanisms were active.

        The equations, with the symbols used here, are in ``docs/notation.md``.
        """
        prev = self._split(state)  # each (B, N, d)

        # 1. Compete: every mechanism asks for the input; the k that want it most are active.
        read, input_weights, score = self.input_attention(input, prev[0])
        active = topk_mask(score, self.k)  # (B, N)
        is_active = active.unsqueeze(-1)  # (B, N, 1)

        # 2. Update: every mechanism, active or not, computes what it would become on its own.
        h_cand, *rest = self.candidate(read, prev)  # each (B, N, d)

        # 3. Communicate: candidates read each other. An idle mechanism is read, but what it
        #    would have become is not trained through being read.
        update, comm_weights = self.communication(stop_gradient_where(h_cand, ~is_active))

        # torch.where keeps an idle state bit for bit; mask arithmetic would let a NaN through.
        new = tuple(
            torch.where(is_active, candidate, old).flatten(1)  # (B, N, d) -> (B, N d)
            for candidate, old in zip((h_cand + update, *rest), prev, strict=True)
        )
        return CellStep(new, active, input_weights, comm_weights)

    @abstractmethod
    def candidate(self, read: Tensor, prev: State) -> State:
        """What the mechanisms become from ``read`` (B, N, A) and ``prev`` (each (B, N, d))."""

    def extra_repr(self) -> str:
        """Sizes in constructor order, then what differs from the default."""
        text = f"{self.input_size}, {self.hidden_size}, {self.num_rims}, {self.k}"
        if not self.bias:
            text += ", bias=False"
        if self.proj_size:
            text += f", proj_size={self.proj_size}"
        return text

    def _split(self, state: State) -> State:
        batch, num_rims = state[0].shape[0], self.num_rims  # -1 would fail for an empty batch
        return tuple(s.reshape(batch, num_rims, s.shape[-1] // num_rims) for s in state)

    def _gates(self, read: Tensor, h_prev: Tensor) -> tuple[Tensor, Tensor]:
        from_input = grouped_linear(read, self.weight_ih.mT, self.bias_ih)  # (B, N, G d)
        from_state = grouped_linear(h_prev, self.weight_hh.mT, self.bias_hh)  # (B, N, G d)
        return from_input, from_state

    def _step_batched(self, input: Tensor, hx: State | None) -> State:
        where = type(self).__name__
        if input.dim() not in (1, 2):
            raise ValueError(f"{where}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{where}: input has {input.shape[-1]} features; expected {self.input_size}"
            )
        batched = input if input.dim() == 2 else input.unsqueeze(0)
        state = self.initial_state(batched) if hx is None else self._check_state(batched, input, hx)
        new = self.step(batched, state).state
        return new if input.dim() == 2 else tuple(s.squeeze(0) for s in new)

    def _check_state(self, batched: Tensor, input: Tensor, hx: State | Tensor) -> State:
        where = type(self).__name__
        if isinstance(hx, Tensor):
            raise TypeError(f"{where}: hx must be a tuple (h, c); got one tensor.")
        if len(hx) != self.num_states:
            raise RuntimeError(f"{where}: hx must hold {self.num_states} tensors; got {len(hx)}.")
        for s in hx:
            if s.dim() not in (1, 2):
                raise ValueError(f"{where}: Expected hx to be 1D or 2D, got {s.dim()}D instead")
        state = tuple(s if input.dim() == 2 else s.unsqueeze(0) for s in hx)
        for s, size in zip(state, self.state_sizes, strict=True):
            if s.shape != (batched.shape[0], size):
                expected = (batched.shape[0], size)
                raise RuntimeError(f"{where}: hx has shape {tuple(s.shape)}; expected {expected}")
        return state


class RIM_LSTMCell(RIMCell):
    r"""One step of N LSTM mechanisms of which k are active; a drop-in for ``nn.LSTMCell``.

    Recurrent Independent Mechanisms, arXiv:1909.10893. Each mechanism m owns ``d = D / N`` columns
    of the state. With the input attention :math:`u_m = \sigma(l_m)\, x W^v`
    (:class:`rims.attention.InputAttention`), the k mechanisms with the largest :math:`l_m` become

    .. math::
        s_g = W^{ih}_{m,g} u_m + b^{ih}_{m,g} + W^{hh}_{m,g} h_m + b^{hh}_{m,g},
              \quad g \in \{i, f, g, o\} \\
        c'_m = \sigma(s_f)\, c_m + \sigma(s_i) \tanh(s_g), \qquad
        \tilde h_m = \sigma(s_o) \tanh(c'_m) \\
        h'_m = \tilde h_m + update_m(\tilde h_1, \dots, \tilde h_N)

    where the update comes from :class:`rims.attention.CommunicationAttention`; the others keep
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
        input_key_size: features of queries and keys of the input attention. Default 64.
        input_value_size: A, features a mechanism reads. Default ``4 d``.
        num_comm_heads: heads of the communication. Default 4.
        comm_key_size: features of a query or key of the communication, per head. Default 16.
        comm_value_size: features of a value, per head. Default 16.
        input_dropout: dropout on what a mechanism reads, in training mode. Default 0.
        comm_dropout: dropout on the update by communication, in training mode. Default 0.
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
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the state after one input; ``hx`` defaults to zeros."""
        h, c = self._step_batched(input, hx)
        return h, c

    def candidate(self, read: Tensor, prev: State) -> State:
        """LSTM update of every mechanism, projected if ``proj_size`` is set."""
        h_prev, c_prev = prev
        from_input, from_state = self._gates(read, h_prev)
        h, c = lstm_candidate(from_input + from_state, c_prev)
        return (h if self.weight_hr is None else grouped_linear(h, self.weight_hr.mT)), c


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
        **options: Unpack[CellOptions],
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_rims, k, bias, device, dtype, proj_size=0, **options
        )

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the state after one input; ``hx`` defaults to zeros."""
        (h,) = self._step_batched(input, None if hx is None else (hx,))
        return h

    def candidate(self, read: Tensor, prev: State) -> State:
        """GRU update of every mechanism."""
        (h_prev,) = prev
        return (gru_candidate(*self._gates(read, h_prev), h_prev),)
