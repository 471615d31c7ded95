"""Arguments of a fast path instead of a cell: plain tensors and a few numbers.

A custom operator takes tensors, not modules. Here a cell is tensors and numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from rims.cells import RIM_GRUCell, RIM_LSTMCell
from rims.parameters import Parameters
from rims.step import RIMCell

#: Options that only the readable loop computes, and what fast paths compute instead.
_PLAIN = {"comm_update": "additive", "tie_margin": 0}


class Weights(NamedTuple):
    """The parameters of a cell as :mod:`rims.scan` passes them on, biases last."""

    input_key: Tensor  # (I, dk)
    input_value: Tensor  # (I, A)
    input_query: Tensor  # (N, d, dk)
    ih: Tensor  # (N, G d, A)
    hh: Tensor  # (N, G d, d)
    comm_query: Tensor  # (N, d, M dc)
    comm_key: Tensor  # (N, d, M dc)
    comm_value: Tensor  # (N, d, M dv)
    output: Tensor  # (d, M dv)
    gate: Tensor  # (d, M dv)
    bias_ih: Tensor | None = None  # (N, G d)
    bias_hh: Tensor | None = None  # (N, G d)
    output_bias: Tensor | None = None  # (d,)
    gate_bias: Tensor | None = None  # (d,)

    @property
    def num_rims(self) -> int:
        """N."""
        return self.hh.shape[0]

    @property
    def unit_size(self) -> int:
        """d."""
        return self.hh.shape[2]

    @property
    def num_gates(self) -> int:
        """G: 4 for an LSTM, 3 for a GRU."""
        return self.hh.shape[1] // self.hh.shape[2]

    def given(self) -> list[Tensor]:
        """The tensors that are there, in order; the form an operator takes."""
        return [weight for weight in self if weight is not None]

    @classmethod
    def each(cls, change: Callable[[Tensor], Tensor], weights: Weights) -> Weights:
        """``weights``, changed one by one."""
        return cls(*(None if w is None else change(w) for w in weights))  # type: ignore[arg-type]

    @classmethod
    def of(cls, given: RIMCell | Parameters) -> Weights:
        """The weights of a cell or of its parameters."""
        p = given if isinstance(given, Parameters) else Parameters.of(given)
        query, key, value, output, gate = _of_communication(p)
        return cls(
            p.key_weight,
            p.value_weight,
            p.query_weight,
            p.weight_ih,
            p.weight_hh,
            query,
            key,
            value,
            output,
            gate,
            p.bias_ih,
            p.bias_hh,
            p.comm_output_bias,
            p.comm_gate_bias,
        )


def _of_communication(p: Parameters) -> list[Tensor]:
    """Weights of queries, keys, values, output and gate; empty where nothing is communicated."""
    given = p.of_communication()
    if given:
        return given
    n, _, d = p.weight_hh.shape
    shapes = [(n, d, 0)] * 3 + [(d, 0)] * 2
    return [p.weight_hh.new_empty(shape) for shape in shapes]


class Rules(NamedTuple):
    """Sizes and options that the shapes of the weights do not determine."""

    k: int
    num_heads: int  # M, of the communication
    reads_state: bool  # comm_reads="state"
    input_gate: str = "null"
    competition: str = "null"

    @classmethod
    def of(cls, cell: RIMCell) -> Rules:
        """The rules of a cell."""
        reads_state = cell.comm_reads == "state"
        return cls(cell.k, cell.num_comm_heads, reads_state, cell.input_gate, cell.competition)


class Flags(NamedTuple):
    """Flags that interrupt a sequence, each bool (T, B) or absent."""

    reset: Tensor | None  # the state starts anew before the step
    valid: Tensor | None  # false: padding, the state stays as it was


class States(NamedTuple):
    """h and c before the first step, and after a reset; a GRU has no c."""

    h: Tensor  # (B, D)
    c: Tensor | None
    fresh_h: Tensor | None = None  # (B, D), None: zeros
    fresh_c: Tensor | None = None


def why_not(cell: RIMCell) -> str | None:
    """Option or change of ``cell`` that only the readable loop supports; None if none."""
    if not (
        type(cell).step is RIMCell.step
        and type(cell).candidate in (RIM_LSTMCell.candidate, RIM_GRUCell.candidate)
        and not {"step", "candidate"} & vars(cell).keys()
    ):
        return "a method of its own"
    if cell.input_slots:
        return "input_slots"
    if cell.num_input_heads > 1:
        return "num_input_heads"
    if cell.proj_size:
        return "proj_size"
    if cell.input_dropout and cell.training:
        return "input_dropout"
    if cell.comm_dropout and cell.training:
        return "comm_dropout"
    for name, plain in _PLAIN.items():
        if getattr(cell, name) != plain:
            return name
    return None


def why_no_kernel(cell: RIMCell, *, gates: bool) -> str | None:
    """Option of ``cell`` that the path in PyTorch computes and kernels do not; None if none.

    ``gates``: they know every ``input_gate``.
    """
    if cell.input_gate != "null" and not gates:
        return "input_gate"
    return None if cell.competition == "null" else "competition"
