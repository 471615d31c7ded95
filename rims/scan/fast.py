"""A cell over a sequence by one of the fast paths: what the loop does, as one operator."""

from __future__ import annotations

import torch
from torch import Tensor

from rims.checks import is_autocasting
from rims.scan import hoisted, paths
from rims.scan.operator import scan_op
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.reference import ScanOutput
from rims.step import RIMCell, State


def scan(
    path: paths.Path,
    cell: RIMCell,
    input: Tensor,
    state: State,
    *,
    reset: Tensor | None,
    valid: Tensor | None,
) -> ScanOutput:
    """As :func:`rims.scan.scan`, without recording."""
    fresh: tuple[Tensor | None, ...] = (None, None)
    if reset is not None and cell.initial:
        fresh = cell.initial_state(input[0])
    given = (input, state[0], _second(state), fresh[0], _second(fresh))
    dtype = _computed_in(input, state[0])
    tensors = [None if t is None else t.to(dtype) for t in given]
    w = Weights(*(None if weight is None else weight.to(dtype) for weight in Weights.of(cell)))
    rules = Rules(cell.k, cell.communication.num_heads, cell.comm_reads == "state")
    save = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*tensors, *w)
    )
    if save or torch.compiler.is_compiling():
        output, h, c, active, *_ = scan_op(*tensors, w.given(), reset, valid, *rules, path, save)
    else:
        output, h, c, active = _directly(path, tensors, Flags(reset, valid), w, rules)
    stored = state[0].dtype
    parts = (h, c)[: cell.num_states]
    return ScanOutput(output.to(stored), tuple(p.to(stored) for p in parts), active, None, None)


@torch.no_grad()
def _directly(
    path: paths.Path,
    tensors: list[Tensor | None],
    flags: Flags,
    w: Weights,
    rules: Rules,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Past the operator, whose dispatch takes as long as a short step."""
    input, *states = tensors
    assert input is not None
    with torch.autocast(input.device.type, enabled=False):
        out, _ = hoisted.forward(
            paths.recurrence(path), input.contiguous(), States(*states), flags, w, rules, save=False
        )
    last_c = out.h[-1] if out.c is None else out.c[-1].clone()
    return out.h, out.h[-1].clone(), last_c, out.active


def _second(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    return parts[1] if len(parts) > 1 else None


def _computed_in(input: Tensor, h: Tensor) -> torch.dtype:
    """The type of all arithmetic: on a CPU at least single precision, which is faster there too."""
    dtype = input.dtype
    if is_autocasting(input.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(input.device.type)
    if input.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        return torch.float32
    return dtype
