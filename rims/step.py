"""One step of a RIM layer, written to be read.

Every faster way of computing a sequence is tested against :meth:`RIMCell.step`.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from functools import partial
from typing import ClassVar, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from rims.attention import CommunicationAttention, InputAttention, uniform_
from rims.checks import check_cell_options, check_mechanisms, check_state_dtype, is_autocasting
from rims.functional import (
    grouped_linear,
    stop_gradient_where,
    topk_mask,
)

#: The state of a cell: ``(h, c)`` for an LSTM, ``(h,)`` for a GRU, each flat: (B, D).
State = tuple[Tensor, ...]


#: What communication reads of an inactive mechanism: its discarded candidate or its kept state.
CommReads = Literal["candidate", "state"]


class CellStep(NamedTuple):
    """One step of a cell and how it came about."""

    state: State  # each (B, N d), flat
    active: Tensor  # (B, N) bool, exactly k true per row
    input_attention: Tensor  # (B, N, 1 + S) weight on the null slot and on the input's elements
    communication: Tensor  # (B, M, N, N) weight of head M from reader to read


class CellOptions(TypedDict, total=False):
    """Keyword-only options every cell and layer takes; :class:`RIM_LSTMCell` documents them."""

    num_input_heads: int
    input_key_size: int
    input_value_size: int | None
    num_comm_heads: int
    comm_key_size: int
    comm_value_size: int
    input_dropout: float
    comm_dropout: float
    comm_reads: CommReads
    learned_initial_state: bool
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
        input_slots: bool = False,
        num_input_heads: int = 1,
        input_key_size: int = 64,
        input_value_size: int | None = None,
        num_comm_heads: int = 4,
        comm_key_size: int = 16,
        comm_value_size: int = 16,
        input_dropout: float = 0.0,
        comm_dropout: float = 0.0,
        comm_reads: CommReads = "candidate",
        learned_initial_state: bool = False,
        init_from_unit_size: bool = False,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        check_mechanisms(where, hidden_size, num_rims, k, proj_size)
        unit_size = int(hidden_size) // int(num_rims)
        value_size = 4 * unit_size if input_value_size is None else input_value_size
        sizes = {
            "input_size": input_size,
            "num_input_heads": num_input_heads,
            "input_key_size": input_key_size,
            "input_value_size": value_size,
            "num_comm_heads": num_comm_heads,
            "comm_key_size": comm_key_size,
            "comm_value_size": comm_value_size,
        }
        flags = {
            "bias": bias,
            "input_slots": input_slots,
            "learned_initial_state": learned_initial_state,
            "init_from_unit_size": init_from_unit_size,
        }
        check_cell_options(where, sizes, flags, (input_dropout, comm_dropout), comm_reads)
        self.input_size = int(input_size)
        self.hidden_size = int(hidden_size)
        self.num_rims = int(num_rims)
        self.k = int(k)
        self.bias = bias
        self.proj_size = int(proj_size)
        self.input_slots = input_slots
        self.comm_reads = comm_reads
        self.init_from_unit_size = init_from_unit_size
        output_size = (self.proj_size or self.hidden_size) // self.num_rims  # of one mechanism's h

        self.input_attention = InputAttention(
            input_size,
            output_size,
            num_rims,
            num_heads=num_input_heads,
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
        starts = self.state_sizes if learned_initial_state else ()
        # Not a ParameterList: torch's replicas of a module would hold an empty one.
        self.initial_h = nn.Parameter(empty(starts[0])) if starts else None
        self.initial_c = nn.Parameter(empty(starts[1])) if len(starts) > 1 else None
        self._reset_own_parameters()  # the attentions have drawn theirs

    @property
    def initial(self) -> list[nn.Parameter]:
        """The learned initial state, one parameter per tensor of the state; empty if none is."""
        return [start for start in (self.initial_h, self.initial_c) if start is not None]

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
        self._reset_own_parameters()

    def _reset_own_parameters(self) -> None:
        fan_in = self.hidden_size // (self.num_rims if self.init_from_unit_size else 1)
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("initial_"):
                nn.init.zeros_(parameter)
            else:
                uniform_(parameter, fan_in=fan_in)

    def initial_state(self, input: Tensor) -> State:
        """The state before the first step for a batch like ``input``: zeros, unless learned."""
        batch = input.shape[0]
        if self.initial:
            return tuple(start.expand(batch, -1) for start in self.initial)
        return tuple(input.new_zeros(batch, size) for size in self.state_sizes)

    def step(self, input: Tensor, state: State) -> CellStep:
        """Advance ``state`` by one input, ``(B, I)`` or with slots ``(B, S, I)``.

        The equations, with the symbols used here, are in ``docs/notation.md``.
        """
        prev = self._split(state)  # each (B, N, d)

        # 1. Compete: every mechanism asks for the input; the k that want it most are active.
        elements = input if self.input_slots else input.unsqueeze(1)  # (B, S, I)
        read, input_weights, score = self.input_attention(elements, prev[0])
        active = topk_mask(score, self.k)  # (B, N)
        is_active = active.unsqueeze(-1)  # (B, N, 1)

        # 2. Update: every mechanism, active or not, computes what it would become on its own.
        h_cand, *rest = self.candidate(read, prev)  # each (B, N, d)

        # 3. Communicate: candidates read each other. An idle mechanism is read, but it is not
        #    trained through being read.
        spoken = (
            h_cand if self.comm_reads == "candidate" else torch.where(is_active, h_cand, prev[0])
        )
        update, comm_weights = self.communication(stop_gradient_where(spoken, ~is_active))

        # torch.where keeps an idle state bit for bit; mask arithmetic would let a NaN through.
        new = tuple(
            torch.where(is_active, as_stored(candidate, old), old).flatten(1)  # -> (B, N d)
            for candidate, old in zip((h_cand + update, *rest), prev, strict=True)
        )
        return CellStep(new, active, input_weights, comm_weights)

    @abstractmethod
    def candidate(self, read: Tensor, prev: State) -> State:
        """What the mechanisms become from ``read`` (B, N, A) and ``prev`` (each (B, N, d))."""

    def extra_repr(self) -> str:
        """Sizes in constructor order, then what differs from the default."""
        parts = [f"{self.input_size}, {self.hidden_size}, {self.num_rims}, {self.k}"]
        parts += [f"{n}={v!r}" for n, v in self._options().items() if v != _DEFAULTS[n]]
        return ", ".join(parts)

    def _options(self) -> dict[str, object]:
        read, comm = self.input_attention, self.communication
        unit_size = self.hidden_size // self.num_rims
        value_size = read.value_weight.shape[-1]
        return {
            "bias": self.bias,
            "proj_size": self.proj_size,
            "input_slots": self.input_slots,
            "num_input_heads": read.num_heads,
            "input_key_size": read.key_weight.shape[-1] // read.num_heads,
            "input_value_size": None if value_size == 4 * unit_size else value_size,
            "num_comm_heads": comm.num_heads,
            "comm_key_size": comm.key_weight.shape[-1] // comm.num_heads,
            "comm_value_size": comm.value_weight.shape[-1] // comm.num_heads,
            "input_dropout": read.dropout,
            "comm_dropout": comm.dropout,
            "comm_reads": self.comm_reads,
            "learned_initial_state": bool(self.initial),
            "init_from_unit_size": self.init_from_unit_size,
        }

    def _split(self, state: State) -> State:
        batch, num_rims = state[0].shape[0], self.num_rims  # -1 would fail for an empty batch
        return tuple(s.reshape(batch, num_rims, s.shape[-1] // num_rims) for s in state)

    def _gates(self, read: Tensor, h_prev: Tensor) -> tuple[Tensor, Tensor]:
        from_input = grouped_linear(read, self.weight_ih.mT, self.bias_ih)  # (B, N, G d)
        from_state = grouped_linear(h_prev, self.weight_hh.mT, self.bias_hh)  # (B, N, G d)
        return from_input, from_state

    def _step_batched(self, input: Tensor, hx: State | None) -> State:
        where = type(self).__name__
        unbatched_dim = 2 if self.input_slots else 1
        if input.dim() not in (unbatched_dim, unbatched_dim + 1):
            raise ValueError(
                f"{where}: Expected input to be {unbatched_dim}D or {unbatched_dim + 1}D, "
                f"got {input.dim()}D instead"
            )
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{where}: input has {input.shape[-1]} features; expected {self.input_size}"
            )
        is_batch = input.dim() > unbatched_dim
        batched = input if is_batch else input.unsqueeze(0)
        state = (
            self.initial_state(batched) if hx is None else self._check_state(batched, is_batch, hx)
        )
        new = self.step(batched, state).state
        return new if is_batch else tuple(s.squeeze(0) for s in new)

    def _check_state(self, batched: Tensor, is_batch: bool, hx: State | Tensor) -> State:
        where = type(self).__name__
        if isinstance(hx, Tensor):
            raise TypeError(f"{where}: hx must be a tuple (h, c); got one tensor.")
        if len(hx) != self.num_states:
            raise RuntimeError(f"{where}: hx must hold {self.num_states} tensors; got {len(hx)}.")
        for s in hx:
            if s.dim() not in (1, 2):
                raise ValueError(f"{where}: Expected hx to be 1D or 2D, got {s.dim()}D instead")
        state = tuple(s if is_batch else s.unsqueeze(0) for s in hx)
        for s, size in zip(state, self.state_sizes, strict=True):
            if s.shape != (batched.shape[0], size):
                expected = (batched.shape[0], size)
                raise RuntimeError(f"{where}: hx has shape {tuple(s.shape)}; expected {expected}")
            check_state_dtype(where, s, self.weight_ih.dtype)
        return state


def as_stored(candidate: Tensor, old: Tensor) -> Tensor:
    """``candidate`` in the type of the state it replaces: autocast may compute a narrower one."""
    return candidate.to(old.dtype) if is_autocasting(old.device.type) else candidate


_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(RIMCell.__init__).parameters.items()
}
