"""What a layer asks of a cell: a whole sequence in one call."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rims.batching import RepeatedInput, as_it_is
from rims.checks import check_input_dtype, check_state
from rims.parameters import Parameters
from rims.scan.dispatch import scan
from rims.scan.reference import ScanOutput
from rims.scan.reversed import scan_reversed
from rims.step import RIMCell, State


class Over(NamedTuple):
    """How a layer has a cell run over a sequence, within one call of the cell.

    Tensors are in it as they are in the arguments of any module, for hooks to find: those that
    move what a module is called with to its device, say.
    """

    where: str  # the layer, for errors
    wrong_type: type[Exception] = ValueError  # raised if the input is not of the parameters' type
    reset: Tensor | None = None  # bool (T, B)
    valid: Tensor | None = None  # bool (T, B)
    repeated: RepeatedInput | None = None
    sent: tuple[int, int] | None = None  # the input that ``repeated`` stands for, as it is
    backwards: bool = False
    record: bool = False

    def __call__(self, cell: RIMCell, input: Tensor, hx: State | None) -> ScanOutput:
        """Run ``cell`` from ``hx``, or from where it starts; its parameters are read here, once."""
        p = Parameters.of(cell)
        check_input_dtype(self.where, input, p.weight_hh.dtype, self.wrong_type)
        state = cell.initial_state(input[0], p) if hx is None else hx
        for part in state:
            check_state(self.where, part, input, p.weight_hh.dtype)
        run = (
            scan_reversed if self.backwards else partial(scan, repeated=self._repeated(cell, input))
        )
        return run(cell, input, state, p, reset=self.reset, valid=self.valid, record=self.record)

    def _repeated(self, cell: RIMCell, input: Tensor) -> RepeatedInput | None:
        """The repeated form of ``input``; None if hooks on the cell gave it something else."""
        # In graphs there is none either: their operator knows no places.
        is_as_sent = self.sent is not None and as_it_is(input) == self.sent
        if is_as_sent and input.is_inference() and _has_pre_hooks(cell):
            return None  # whether they changed it in place is not known
        return self.repeated if is_as_sent else None


def _has_pre_hooks(cell: RIMCell) -> bool:
    return bool(cell._forward_pre_hooks or torch.nn.modules.module._global_forward_pre_hooks)


def is_recomputing() -> bool:
    """Whether this is a way back, on which activation checkpointing computes a forward again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
