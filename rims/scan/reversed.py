"""A sequence run against time, for the second direction of bidirectional layers."""

from __future__ import annotations

import torch
from torch import Tensor

from rims.batching import flip_time
from rims.parameters import Parameters
from rims.scan.dispatch import scan
from rims.scan.reference import ScanOutput
from rims.step import RIMCell, State


def scan_reversed(
    cell: RIMCell,
    input: Tensor,
    state: State,
    p: Parameters | None = None,
    *,
    reset: Tensor | None = None,
    valid: Tensor | None = None,
    record: bool = False,
) -> ScanOutput:
    """As :func:`rims.scan.scan`, from the last step to the first; results are in order of time."""
    if reset is not None:
        # A reset before step t parts the sequence there: from this side, after step t.
        reset = torch.cat([torch.zeros_like(reset[:1]), reset[1:].flip(0)])
    flipped = flip_time(input, valid)
    result = scan(cell, flipped, state, p, reset=reset, valid=valid, record=record)
    reads, comm = result.input_attention, result.communication
    return ScanOutput(
        flip_time(result.output, valid),
        result.state,
        flip_time(result.active, valid),
        None if reads is None else flip_time(reads, valid),
        None if comm is None else flip_time(comm, valid),
    )
