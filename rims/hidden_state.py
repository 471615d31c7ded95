"""hx and h_n: from the form nn.LSTM uses to one state per cell, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from rims.batching import TimeMajor
from rims.step import RIMCell, State

#: One tensor (layers * directions, B, D), or one per layer (directions, B, D_l) where sizes differ.
Stacked = Tensor | tuple[Tensor, ...]


def split_hx(
    where: str,
    cells: Sequence[RIMCell],
    hx: tuple[Stacked, ...] | None,
    batch: TimeMajor,
    directions: int,
) -> list[State]:
    """The initial state of every cell, rows in the order of ``batch``; zeros without ``hx``.

    Raises:
        RuntimeError: for a state that does not fit, as nn.LSTM does.
    """
    if hx is None:
        return [cell.initial_state(batch.input[0]) for cell in cells]
    num_states = cells[0].num_states
    if len(hx) != num_states:
        raise RuntimeError(f"{where}: hx must hold {num_states} tensors; got {len(hx)}.")
    columns = [
        _split(
            f"{where}: Expected {name}", part, [c.state_sizes[i] for c in cells], batch, directions
        )
        for i, (name, part) in enumerate(zip(("h_0", "c_0"), hx, strict=False))
    ]
    return list(zip(*columns, strict=True))


def join_states(states: Sequence[State], batch: TimeMajor, directions: int) -> tuple[Stacked, ...]:
    """Final states of all cells in the form of hx, rows in the caller's order."""
    return tuple(_join(list(rows), batch, directions) for rows in zip(*states, strict=True))


def is_autocasting(device: str) -> bool:
    """Whether autocast is on for a kind of device; never on those without it, such as "meta"."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


@overload
def to_autocast_dtype(part: Tensor) -> Tensor: ...
@overload
def to_autocast_dtype(part: Stacked) -> Stacked: ...
def to_autocast_dtype(part: Stacked) -> Stacked:
    """Under autocast ``part`` in the type it computes in; float64 stays, as torch leaves it."""
    if not isinstance(part, Tensor):
        return tuple(to_autocast_dtype(tensor) for tensor in part)
    if part.dtype == torch.float64 or not is_autocasting(part.device.type):
        return part
    return part.to(torch.get_autocast_dtype(part.device.type))


def _split(
    expected: str, part: Stacked, sizes: list[int], batch: TimeMajor, directions: int
) -> list[Tensor]:
    tensors = [part] if isinstance(part, Tensor) else list(part)
    rows = [row for tensor in tensors if tensor.dim() for row in tensor]
    lead = () if batch.unbatched else (batch.input.shape[1],)
    if [tuple(row.shape) for row in rows] != [(*lead, size) for size in sizes]:
        whole: object = (len(sizes), *lead, sizes[0])
        if not _all_equal(sizes):
            whole = [(directions, *lead, size) for size in sizes[::directions]]
        got = tuple(part.shape) if isinstance(part, Tensor) else [tuple(t.shape) for t in tensors]
        raise RuntimeError(f"{expected} size {whole}, got {got}")
    if batch.unbatched:
        return [row.unsqueeze(0) for row in rows]
    if batch.order is not None:
        return [row.index_select(0, batch.order) for row in rows]
    return rows


def _join(rows: list[Tensor], batch: TimeMajor, directions: int) -> Stacked:
    if batch.unbatched:
        rows = [row.squeeze(0) for row in rows]
    elif batch.order_back is not None:
        rows = [row.index_select(0, batch.order_back) for row in rows]
    if _all_equal([row.shape[-1] for row in rows]):
        return torch.stack(rows)
    layers = range(0, len(rows), directions)
    return tuple(torch.stack(rows[i : i + directions]) for i in layers)


def _all_equal(sizes: Sequence[int]) -> bool:
    return len(set(sizes)) == 1
