"""The readable path: a loop over the cell, differentiated by autograd."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rims.parameters import Parameters
from rims.step import CellStep, RIMCell, State


class ScanOutput(NamedTuple):
    """One cell over a sequence."""

    output: Tensor  # (T, B, D) h after every step
    state: State  # after the last step, each (B, D)
    active: Tensor  # (T, B, N) bool
    input_attention: Tensor | None  # (T, B, N, 1 + S), where recorded
    communication: Tensor | None  # (T, B, M, N, N), where recorded


def loop(
    cell: RIMCell,
    input: Tensor,
    state: State,
    p: Parameters | None = None,
    *,
    reset: Tensor | None = None,
    valid: Tensor | None = None,
    record: bool = False,
    active: Tensor | None = None,
) -> ScanOutput:
    """Run ``cell`` over ``input`` from ``state``.

    Args:
        cell: the step.
        input: ``(T, B, I)``, with slots ``(T, B, S, I)``; at least one step.
        state: ``(h, c)`` or ``(h,)``, each ``(B, D)``.
        p: the parameters of ``cell``. Default: as they are now.
        reset: bool ``(T, B)``; where true the state starts anew before that step.
        valid: bool ``(T, B)``; where false the step is padding and the state stays as it was.
        record: also return both attentions of every step, detached.
        active: bool ``(T, B, N)``, the active mechanisms if they are known.

    Returns:
        ``ScanOutput``; the attentions are ``None`` unless recorded.
    """
    steps: list[CellStep] = []
    p = Parameters.of(cell) if p is None else p
    start = None if reset is None else cell.initial_state(input[0], p)
    for t in range(input.shape[0]):
        if start is not None and reset is not None:
            # torch.where, not a product: zero times NaN is NaN
            flag = reset[t].unsqueeze(-1)
            state = tuple(torch.where(flag, new, s) for new, s in zip(start, state, strict=True))
        step = cell.step(input[t], state, p, active=None if active is None else active[t])
        if valid is not None:
            keep = valid[t].unsqueeze(-1)
            kept = tuple(
                torch.where(keep, new, old) for new, old in zip(step.state, state, strict=True)
            )
            step = step._replace(state=kept, active=step.active & keep)
        state = step.state
        steps.append(step)
    return ScanOutput(
        output=torch.stack([step.state[0] for step in steps]),
        state=state,
        active=torch.stack([step.active for step in steps]),
        input_attention=_stacked([s.input_attention for s in steps]) if record else None,
        communication=_stacked([s.communication for s in steps]) if record else None,
    )


def _stacked(steps: list[Tensor]) -> Tensor:
    return torch.stack([step.detach() for step in steps])
