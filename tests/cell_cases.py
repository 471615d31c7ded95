"""The small cells that tests of RIM_LSTMCell and RIM_GRUCell share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rims import RIM_GRUCell, RIM_LSTMCell
from rims.step import RIMCell, State

CELLS = [RIM_LSTMCell, RIM_GRUCell]
both = pytest.mark.parametrize("kind", CELLS)
Kind = type[RIM_LSTMCell] | type[RIM_GRUCell]

#: I, D, N, k of the plain examples.
SIZES = (7, 15, 5, 2)


def make(kind: Kind, *sizes: int, **options: Any) -> RIMCell:
    input_size, hidden_size, num_rims, k = sizes or SIZES
    return kind(input_size, hidden_size, num_rims, k, dtype=torch.float64, **options)


def random_state(cell: RIMCell, batch: int) -> State:
    return tuple(torch.randn(batch, size, dtype=torch.float64) for size in cell.state_sizes)


def random_input(cell: RIMCell, batch: int) -> Tensor:
    return torch.randn(batch, cell.input_size, dtype=torch.float64)


def call(cell: RIMCell, input: Tensor, state: State | None = None) -> State:
    """The public forward, with the state as a tuple for both kinds."""
    if isinstance(cell, RIM_GRUCell):
        return (cell(input, None if state is None else state[0]),)
    return tuple(cell(input, state))
