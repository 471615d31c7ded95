"""One step of a RIM layer, written to be read.

Every faster way of computing a sequence is tested against :meth:`RIMCell.step`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rims.attention import communicate, read_input, select
from rims.checks import (
    CommReads,
    CommUpdate,
    Competition,
    InputGate,
    check_cell_options,
    check_mechanisms,
    check_state,
    is_autocasting,
    option_defaults,
)
from rims.functional import stop_gradient_where
from rims.interop.opacus import refuse_opacus
from rims.parameters import Parameters, draw_, from_former_names

#: The state of a cell: ``(h, c)`` for an LSTM, ``(h,)`` for a GRU, each flat: (B, D).
State = tuple[Tensor, ...]

#: Computes a whole sequence with a cell; takes the cell, the input and the state or None.
Over = Callable[["RIMCell", Tensor, Any], Any]


class CellStep(NamedTuple):
    """One step of a cell and how it came about."""

    state: State  # each (B, N d), flat
    active: Tensor  # (B, N) bool, exactly k true per row, with tie_margin at least k
    input_attention: Tensor  # (B, N, 1 + S) weight on the null slot and on the input's elements
    communication: Tensor  # (B, M, N, N) weight of head M from reader to read


class RIMCell(nn.Module):
    """Base class of LSTM and GRU mechanisms: competition, selection, communication.

    A subclass defines how a mechanism alone changes its state (:meth:`candidate`), the number of
    gates this takes and the number of tensors in the state.

    All parameters belong to the cell and are used only while it is called: by its user for a step,
    by a layer for a whole sequence. So whatever acts on a module around its call (hooks, pruning,
    norms, offloading, sharding) acts on all of them.
    """

    num_gates: ClassVar[int]
    num_states: ClassVar[int]

    # Options that the constructor sets by name.
    input_size: int
    bias: bool
    input_slots: bool
    num_input_heads: int
    input_key_size: int
    input_value_size: int
    num_comm_heads: int
    comm_key_size: int
    comm_value_size: int
    input_dropout: float
    comm_dropout: float
    comm_reads: CommReads
    learned_initial_state: bool
    init_from_unit_size: bool

    # Cells that earlier versions pickled whole have none of these.
    input_gate: InputGate = "null"
    competition: Competition = "null"
    comm_update: CommUpdate = "additive"
    tie_margin: float = 0.0
    #: The option ``comm_gate_bias``, whose name is that of a parameter.
    comm_gate_start: float = 0.0

    # Tools may replace a parameter by a plain tensor. Shapes: see Parameters.
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_hr: Tensor | None
    initial_h: Tensor | None
    initial_c: Tensor | None
    query_weight: Tensor
    key_weight: Tensor
    value_weight: Tensor
    comm_query_weight: Tensor | None
    comm_key_weight: Tensor | None
    comm_value_weight: Tensor | None
    comm_output_weight: Tensor | None
    comm_gate_weight: Tensor | None
    comm_output_bias: Tensor | None
    comm_gate_bias: Tensor | None

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
        input_gate: InputGate = "null",
        competition: Competition = "null",
        tie_margin: float = 0.0,
        num_comm_heads: int = 4,
        comm_key_size: int = 16,
        comm_value_size: int = 16,
        input_dropout: float = 0.0,
        comm_dropout: float = 0.0,
        comm_reads: CommReads = "candidate",
        comm_update: CommUpdate = "additive",
        comm_gate_bias: float = 0.0,
        learned_initial_state: bool = False,
        init_from_unit_size: bool = False,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        check_mechanisms(where, hidden_size, num_rims, k, proj_size)
        self.hidden_size, self.num_rims = int(hidden_size), int(num_rims)
        self.k, self.proj_size = int(k), int(proj_size)
        read_size = 4 * (self.hidden_size // self.num_rims)
        given = {
            "input_size": input_size, "bias": bias, "input_slots": input_slots,
            "num_input_heads": num_input_heads, "input_key_size": input_key_size,
            "input_value_size": read_size if input_value_size is None else input_value_size,
            "input_gate": input_gate, "competition": competition, "tie_margin": tie_margin,
            "num_comm_heads": num_comm_heads, "comm_key_size": comm_key_size,
            "comm_value_size": comm_value_size, "input_dropout": input_dropout,
            "comm_dropout": comm_dropout, "comm_reads": comm_reads, "comm_update": comm_update,
            "comm_gate_bias": comm_gate_bias, "learned_initial_state": learned_initial_state,
            "init_from_unit_size": init_from_unit_size,
        }  # fmt: skip
        for name, option in check_cell_options(where, given).items():
            setattr(self, _ATTRIBUTES.get(name, name), option)
        for name, shape in self._shapes().items():
            value = torch.empty(shape, device=device, dtype=dtype) if shape else None
            self.register_parameter(name, None if value is None else nn.Parameter(value))
        self.reset_parameters()
        refuse_opacus(type(self))

    def _shapes(self) -> dict[str, tuple[int, ...] | None]:
        """The shape of every parameter in the order of :class:`Parameters`; None: there is none."""
        n, unit = self.num_rims, self.hidden_size // self.num_rims
        d = self.state_sizes[0] // n  # of one mechanism's h
        gates = self.num_gates * unit
        keys = self.num_input_heads * self.input_key_size
        heads = self.num_comm_heads
        comm_keys, comm_values = heads * self.comm_key_size, heads * self.comm_value_size
        starts = (*self.state_sizes, 0) if self.learned_initial_state else (0, 0)
        return {
            "weight_ih": (n, gates, self.input_value_size),
            "weight_hh": (n, gates, d),
            "bias_ih": (n, gates) if self.bias else None,
            "bias_hh": (n, gates) if self.bias else None,
            "weight_hr": (n, d, unit) if self.proj_size else None,
            "initial_h": (starts[0],) if starts[0] else None,
            "initial_c": (starts[1],) if starts[1] else None,
            "query_weight": (n, d, keys),
            "key_weight": (self.input_size, keys),
            "value_weight": (self.input_size, self.input_value_size),
            "comm_query_weight": (n, d, comm_keys) if heads else None,
            "comm_key_weight": (n, d, comm_keys) if heads else None,
            "comm_value_weight": (n, d, comm_values) if heads else None,
            "comm_output_weight": (d, comm_values) if heads else None,
            "comm_gate_weight": (d, comm_values) if heads else None,
            "comm_output_bias": (d,) if self.bias and heads else None,
            "comm_gate_bias": (d,) if self.bias and heads else None,
        }

    @property
    def initial(self) -> tuple[Tensor, ...]:
        """The learned initial state, one parameter per tensor of the state; empty if none is."""
        return tuple(start for start in (self.initial_h, self.initial_c) if start is not None)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Width of every tensor of the state; the first is the output."""
        return (self.proj_size or self.hidden_size, self.hidden_size)[: self.num_states]

    def reset_parameters(self) -> None:
        r"""Draw the gates from :math:`U(-1/\sqrt{D}, 1/\sqrt{D})`, the attentions by their fan-in.

        D is the total hidden size, the law of ``nn.LSTM`` and of the authors' code;
        ``init_from_unit_size=True`` takes the size d of one mechanism, its true fan-in. Learned
        initial states start at zero. ``comm_gate_bias`` is added to what is drawn for that bias.
        """
        draw_(
            dict(self.named_parameters(recurse=False)),
            mechanism=self.hidden_size // (self.num_rims if self.init_from_unit_size else 1),
            output=self.num_comm_heads * self.comm_value_size,
        )
        if self.comm_gate_start and self.comm_gate_bias is not None:
            with torch.no_grad():
                self.comm_gate_bias += self.comm_gate_start

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Read checkpoints of all versions."""
        super()._load_from_state_dict(from_former_names(state_dict, prefix), prefix, *rest)

    def initial_state(self, input: Tensor, p: Parameters | None = None) -> State:
        """The state before the first step for a batch like ``input``: zeros, unless learned."""
        batch = input.shape[0]
        if self.learned_initial_state:
            starts = (Parameters.of(self) if p is None else p).initial
            return tuple(start.expand(batch, -1) for start in starts)
        return tuple(input.new_zeros(batch, size) for size in self.state_sizes)

    def step(
        self,
        input: Tensor,
        state: State,
        p: Parameters | None = None,
        *,
        active: Tensor | None = None,
    ) -> CellStep:
        """Advance ``state`` by one input, ``(B, I)`` or with slots ``(B, S, I)``.

        The equations, with the symbols used here, are in ``docs/notation.md``. A loop reads the
        parameters ``p`` once for all its steps. ``active`` (B, N) gives the active mechanisms.
        """
        p = Parameters.of(self) if p is None else p
        prev = self._split(state)  # each (B, N, d)

        # 1. Compete: every mechanism attends to the input; the k of highest score are active.
        elements = input if self.input_slots else input.unsqueeze(1)  # (B, S, I)
        read, input_weights, score = read_input(
            p,
            elements,
            prev[0],
            num_heads=self.num_input_heads,
            dropout=self.input_dropout if self.training else 0.0,
            gate=self.input_gate,
            competition=self.competition,
            k=self.k,
        )
        if active is None:  # (B, N)
            active = select(score, self.k, competition=self.competition, margin=self.tie_margin)
        is_active = active.unsqueeze(-1)  # (B, N, 1)

        # 2. Update: every mechanism, active or not, computes its candidate state on its own.
        h_cand, *rest = self.candidate(p, read, prev)  # each (B, N, d)

        # 3. Communicate: candidates read each other. An idle mechanism is read, but it is not
        #    trained through being read.
        comm_input = (
            h_cand if self.comm_reads == "candidate" else torch.where(is_active, h_cand, prev[0])
        )
        communicated = communicate(
            p,
            stop_gradient_where(comm_input, ~is_active),
            num_heads=self.num_comm_heads,
            dropout=self.comm_dropout if self.training else 0.0,
            update=self.comm_update,
        )

        # torch.where keeps an idle state bit for bit; mask arithmetic would let a NaN through.
        new = tuple(
            torch.where(is_active, as_stored(candidate, old), old).flatten(1)  # -> (B, N d)
            for candidate, old in zip((h_cand + communicated.read, *rest), prev, strict=True)
        )
        return CellStep(new, active, input_weights, communicated.weights)

    @abstractmethod
    def candidate(self, p: Parameters, read: Tensor, prev: State) -> State:
        """Candidate states from ``read`` (B, N, A) and ``prev`` (each (B, N, d))."""

    def extra_repr(self) -> str:
        """Sizes in constructor order, then what differs from the default."""
        parts = [f"{self.input_size}, {self.hidden_size}, {self.num_rims}, {self.k}"]
        parts += [f"{n}={v!r}" for n, v in self._options().items() if v != _DEFAULTS[n]]
        return ", ".join(parts)

    def _options(self) -> dict[str, object]:
        options = {name: getattr(self, _ATTRIBUTES.get(name, name)) for name in _DEFAULTS}
        if self.input_value_size == 4 * (self.hidden_size // self.num_rims):
            options["input_value_size"] = None
        return options

    def _split(self, state: State) -> State:
        batch, num_rims = state[0].shape[0], self.num_rims  # -1 would fail for an empty batch
        return tuple(s.reshape(batch, num_rims, s.shape[-1] // num_rims) for s in state)

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
        p = Parameters.of(self)
        if hx is None:
            state = self.initial_state(batched, p)
        else:
            state = self._check_state(batched, is_batch, hx, p.weight_ih.dtype)
        new = self.step(batched, state, p).state
        return new if is_batch else tuple(s.squeeze(0) for s in new)

    def _check_state(
        self, batched: Tensor, is_batch: bool, hx: State | Tensor, dtype: torch.dtype
    ) -> State:
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
            check_state(where, s, batched, dtype)
        return state


def as_stored(candidate: Tensor, old: Tensor) -> Tensor:
    """``candidate`` in the type of the state it replaces: autocast may compute a narrower one."""
    return candidate.to(old.dtype) if is_autocasting(old.device.type) else candidate


_DEFAULTS = option_defaults(RIMCell.__init__)

#: Attributes of options whose name is that of a parameter.
_ATTRIBUTES = {"comm_gate_bias": "comm_gate_start"}
