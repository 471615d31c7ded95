"""hx and h_n: from the form nn.LSTM uses to one state per cell, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from rims.checks import is_autocasting
from rims.layout.batching import TimeMajor
from rims.step import RIMCell, State

#: One tensor (layers * directions, B, D), or one per layer (directions, B, D_l) where sizes differ.
Stacked = Tensor | tuple[Tensor, ...]


def split_hx(
    where: str,
    cells: Sequence[RIMCell],
    hx: tuple[Stacked, ...] | None,
    batch: TimeMajor,
    directions: int,
) -> list[State | None]:
    """The initial state of every cell, rows in the order of ``batch``; None: where a cell starts.

    Raises:
        RuntimeError, AttributeError: for a state that does not fit, as nn.LSTM does.
    """
    if hx is None:
        return [None] * len(cells)
    num_states = cells[0].num_states
    if len(hx) != num_states:
        raise RuntimeError(f"{where}: hx must hold {num_states} tensors; got {len(hx)}.")
    columns = [
        _split(where, cells, which, part, batch, directions) for which, part in enumerate(hx)
    ]
    return list(zip(*columns, strict=True))


def join_states(
    cells: Sequence[RIMCell], states: Sequence[State], batch: TimeMajor, directions: int
) -> tuple[Stacked, ...]:
    """Final states of all cells in the form of hx, rows in the caller's order."""
    # Sizes of the cells, not of the tensors: those are not numbers while a graph is traced.
    sizes = zip(*(cell.state_sizes for cell in cells), strict=True)
    return tuple(
        _join(list(rows), _all_equal(widths), batch, directions)
        for rows, widths in zip(zip(*states, strict=True), sizes, strict=True)
    )


@overload
def to_autocast_dtype(part: Tensor) -> Tensor: ...
@overload
def to_autocast_dtype(part: Stacked) -> Stacked: ...
def to_autocast_dtype(part: object) -> object:
    """Under autocast ``part`` in the type it computes in; float64 stays, as torch leaves it."""
    if isinstance(part, tuple):
        return tuple(to_autocast_dtype(tensor) for tensor in part)
    if not isinstance(part, Tensor):  # refused later, with the other forms that do not fit
        return part
    if part.dtype == torch.float64 or not is_autocasting(part.device.type):
        return part
    return part.to(torch.get_autocast_dtype(part.device.type))


def _split(
    where: str,
    cells: Sequence[RIMCell],
    which: int,
    part: Stacked,
    batch: TimeMajor,
    directions: int,
) -> list[Tensor]:
    """One of h and c (``which`` 0 and 1), split by cell."""
    expected = f"{where}: Expected {('h_0', 'c_0')[which]}"
    sizes = [cell.state_sizes[which] for cell in cells]
    alike = _all_equal(sizes)
    if alike != isinstance(part, Tensor):
        # The class that nn.GRU raises for a tuple, and nn.LSTM for None
        kind = "a tensor" if alike else "a tuple of one tensor per layer"
        raise AttributeError(f"{expected} to be {kind}; got {type(part).__name__}.")
    lead = () if batch.unbatched else (batch.input.shape[1],)
    if isinstance(part, Tensor):
        whole: object = (len(sizes), *lead, sizes[0])
        got: object = tuple(part.shape)
        parts = [part]
    else:
        whole = [(directions, *lead, size) for size in sizes[::directions]]
        got = [tuple(tensor.shape) for tensor in part]
        parts = list(part)
    if got != whole:
        raise RuntimeError(f"{expected} size {whole}, got {got}")
    rows = [row for tensor in parts for row in tensor]
    if batch.unbatched:
        return [row.unsqueeze(0) for row in rows]
    if batch.order is not None:
        return [row.index_select(0, batch.order) for row in rows]
    return rows


def _join(rows: list[Tensor], alike: bool, batch: TimeMajor, directions: int) -> Stacked:
    if batch.unbatched:
        rows = [row.squeeze(0) for row in rows]
    elif batch.order_back is not None:
        rows = [row.index_select(0, batch.order_back) for row in rows]
    if len(rows) == 1:
        return rows[0][None]
    if alike:
        return torch.stack(rows)
    layers = range(0, len(rows), directions)
    return tuple(torch.stack(rows[i : i + directions]) for i in layers)


def _all_equal(sizes: Sequence[int]) -> bool:
    return len(set(sizes)) == 1
