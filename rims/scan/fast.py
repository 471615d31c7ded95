"""A cell over a sequence by one of the fast paths: what the loop does, as one operator."""

from __future__ import annotations

import torch
from torch import Tensor

from rims.batching import RepeatedInput
from rims.checks import is_autocasting
from rims.parameters import Parameters
from rims.scan import hoisted, paths
from rims.scan.function import ScanFunction
from rims.scan.operator import scan_op
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.reference import ScanOutput
from rims.step import RIMCell, State


def scan(
    path: paths.Path,
    cell: RIMCell,
    input: Tensor,
    state: State,
    p: Parameters,
    *,
    reset: Tensor | None,
    valid: Tensor | None,
    repeated: RepeatedInput | None = None,
) -> ScanOutput:
    """As :func:`rims.scan.scan`, without recording."""
    fresh: tuple[Tensor | None, ...] = (None, None)
    if reset is not None and cell.learned_initial_state:
        fresh = cell.initial_state(input[0], p)
    place = None
    if repeated is not None:
        input, place = repeated
    tensors = [input, state[0], _second(state), fresh[0], _second(fresh)]
    w = Weights.of(p)
    dtype = _computed_in(input)
    if not all(t is None or t.dtype == dtype for t in (*tensors, w.hh)):
        tensors = [None if t is None else t.to(dtype) for t in tensors]
        w = Weights.each(lambda weight: weight.to(dtype), w)
    rules = Rules(cell.k, cell.num_comm_heads, cell.comm_reads == "state")
    save = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*tensors, *w)
    )
    if torch.compiler.is_compiling():
        output, h, c, active, *_ = scan_op(*tensors, w.given(), reset, valid, *rules, path, save)
    elif save:
        output, h, c, active = ScanFunction.apply(*tensors, place, reset, valid, rules, path, *w)  # type: ignore[no-untyped-call]
    else:
        # Not through the function either: for a single step that would take as long as the step.
        output, h, c, active = _directly(path, tensors, place, Flags(reset, valid), w, rules)
    stored = state[0].dtype
    parts = tuple(part.to(stored) for part in (h, c)[: cell.num_states])
    return ScanOutput(output.to(stored), parts, active, None, None)


def _directly(
    path: paths.Path,
    tensors: list[Tensor | None],
    place: Tensor | None,
    flags: Flags,
    w: Weights,
    rules: Rules,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    input, *states = tensors
    assert input is not None
    kind = paths.recurrence(path, input, "forward")
    recurrence = kind(w, rules, States(*states), flags)  # type: ignore[arg-type]
    out, _ = hoisted.forward(recurrence, input, place=place, save=False)
    return out.h, out.h[-1].clone(), None if out.c is None else out.c[-1].clone(), out.active


def _second(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    return parts[1] if len(parts) > 1 else None


def _computed_in(input: Tensor) -> torch.dtype:
    """The type of all arithmetic: on a CPU at least single precision, which is faster there too."""
    dtype = input.dtype
    if is_autocasting(input.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(input.device.type)
    if input.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        return torch.float32
    return dtype
