"""What a fast path gets instead of a cell: plain tensors and a few numbers.

A custom operator takes tensors, not modules. This is the form they have on the way there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from rims.attention import CommunicationAttention, InputAttention
from rims.cells import RIM_GRUCell, RIM_LSTMCell
from rims.step import RIMCell


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
    def of(cls, cell: RIMCell) -> Weights:
        """The parameters of ``cell``."""
        read, comm = cell.input_attention, cell.communication
        return cls(
            read.key_weight,
            read.value_weight,
            read.query_weight,
            cell.weight_ih,
            cell.weight_hh,
            comm.query_weight,
            comm.key_weight,
            comm.value_weight,
            comm.output_weight,
            comm.gate_weight,
            cell.bias_ih,
            cell.bias_hh,
            comm.output_bias,
            comm.gate_bias,
        )


class Rules(NamedTuple):
    """What the shapes of the weights do not tell."""

    k: int
    num_heads: int  # M, of the communication
    reads_state: bool  # comm_reads="state"


class Flags(NamedTuple):
    """What interrupts a sequence, each bool (T, B) or absent."""

    reset: Tensor | None  # the state starts anew before the step
    valid: Tensor | None  # false: padding, the state stays as it was


class States(NamedTuple):
    """h and c before the first step, and after a reset; a GRU has no c."""

    h: Tensor  # (B, D)
    c: Tensor | None
    fresh_h: Tensor | None = None  # (B, D), None: zeros
    fresh_c: Tensor | None = None


def why_not(cell: RIMCell) -> str | None:
    """What about ``cell`` only the readable loop can do, its option or change; None if nothing."""
    read, comm = cell.input_attention, cell.communication
    if not (
        type(cell).step is RIMCell.step
        and type(cell).candidate in (RIM_LSTMCell.candidate, RIM_GRUCell.candidate)
        and type(read).forward is InputAttention.forward
        and type(comm).forward is CommunicationAttention.forward
        and not {"step", "candidate"} & vars(cell).keys()
        and not any("forward" in vars(part) for part in (read, comm))
    ):
        return "a method of its own"
    if any(_is_hooked(part) for part in (read, comm)):
        return "hooks on its attentions"
    if cell.input_slots:
        return "input_slots"
    if read.num_heads > 1:
        return "num_input_heads"
    if cell.proj_size:
        return "proj_size"
    if read.dropout and cell.training:
        return "input_dropout"
    if comm.dropout and cell.training:
        return "comm_dropout"
    return None


def _is_hooked(module: nn.Module) -> bool:
    """Whether somebody wants to be called whenever ``module`` is."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
