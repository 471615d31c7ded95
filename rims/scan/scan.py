"""A cell over a whole sequence: chooses a path, and runs it in either direction of time."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rims.checks import check_input_dtype, check_state, is_autocasting
from rims.layout.batching import RepeatedInput, as_it_is, flip_time
from rims.parameters import Parameters
from rims.scan import hoisted, paths, reference
from rims.scan.graph.function import ScanFunction
from rims.scan.graph.operator import scan_op
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.reference import ScanOutput
from rims.step import RIMCell, State


def scan(
    cell: RIMCell,
    input: Tensor,
    state: State,
    p: Parameters | None = None,
    *,
    reset: Tensor | None = None,
    valid: Tensor | None = None,
    record: bool = False,
    repeated: RepeatedInput | None = None,
) -> ScanOutput:
    """Run ``cell`` over ``input`` from ``state`` by the fastest path available.

    Args:
        cell: the step.
        input: ``(T, B, I)``, with slots ``(T, B, S, I)``; at least one step.
        state: ``(h, c)`` or ``(h,)``, each ``(B, D)``.
        p: the parameters of ``cell``. Default: its current ones.
        reset: bool ``(T, B)``; where true the state starts anew before that step.
        valid: bool ``(T, B)``; where false the step is padding and the state does not change.
        record: also return both attentions of every step. Other results do not depend on it.
        repeated: ``input`` with each distinct row given once. Fast paths use it to save work.

    Returns:
        ``ScanOutput``; the attentions are ``None`` unless recorded.
    """
    p = Parameters.of(cell) if p is None else p
    path = paths.choose(cell, input, p, (*state, reset, valid))
    if path == "reference":
        return reference.loop(cell, input, state, p, reset=reset, valid=valid, record=record)
    did = _scan_fast(path, cell, input, state, p, Flags(reset, valid), repeated)
    if not record:
        return did
    # The fast path returns who was active; the readable loop then computes the attentions.
    with torch.no_grad():
        seen = reference.loop(
            cell, input, state, p, reset=reset, valid=valid, record=True, active=did.active
        )
    return did._replace(input_attention=seen.input_attention, communication=seen.communication)


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
    """As :func:`scan`, from the last step to the first; results are in order of time."""
    if reset is not None:
        # A reset before step t splits the sequence there: seen from this side, after step t.
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


class Over(NamedTuple):
    """How a layer makes a cell run over a sequence within one call of the cell.

    It holds tensors as the arguments of any module do, so hooks find them: for example hooks that
    move the arguments of a module to its device.
    """

    where: str  # the layer, for errors
    wrong_type: type[Exception] = ValueError  # raised if input and parameters differ in type
    reset: Tensor | None = None  # bool (T, B)
    valid: Tensor | None = None  # bool (T, B)
    repeated: RepeatedInput | None = None
    sent: tuple[int, int] | None = None  # identity of the input that ``repeated`` stands for
    backwards: bool = False
    record: bool = False

    def __call__(self, cell: RIMCell, input: Tensor, hx: State | None) -> ScanOutput:
        """Run ``cell`` from ``hx`` or its initial state; its parameters are read once, here."""
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
        """The repeated form of ``input``; None if hooks on the cell replaced the input."""
        # Graphs have none either: their operator takes no places.
        is_as_sent = self.sent is not None and as_it_is(input) == self.sent
        if is_as_sent and input.is_inference() and _has_pre_hooks(cell):
            return None  # they may have changed it in place, which is not counted
        return self.repeated if is_as_sent else None


def _has_pre_hooks(cell: RIMCell) -> bool:
    return bool(cell._forward_pre_hooks or torch.nn.modules.module._global_forward_pre_hooks)


def _scan_fast(
    path: paths.Path,
    cell: RIMCell,
    input: Tensor,
    state: State,
    p: Parameters,
    flags: Flags,
    repeated: RepeatedInput | None,
) -> ScanOutput:
    """As :func:`scan` by one of the fast paths, without recording."""
    fresh: State = ()
    if flags.reset is not None and cell.learned_initial_state:
        fresh = cell.initial_state(input[0], p)
    place = None
    if repeated is not None:
        input, place = repeated
    tensors = [input, *_pair(state), *_pair(fresh)]
    w = Weights.of(p)
    dtype = _compute_dtype(input)
    if not all(t is None or t.dtype == dtype for t in (*tensors, w.hh)):
        tensors = [None if t is None else t.to(dtype) for t in tensors]
        w = Weights.each(lambda weight: weight.to(dtype), w)
    rules = Rules.of(cell)
    save = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*tensors, *w)
    )
    if torch.compiler.is_compiling():
        numbers, words = rules[:3], rules[3:]
        output, h, c, active, *_ = scan_op(
            *tensors, w.given(), *flags, *numbers, path, save, *words
        )
    elif save:
        output, h, c, active = ScanFunction.apply(*tensors, place, *flags, rules, path, *w)  # type: ignore[no-untyped-call]
    else:
        # Without the autograd function too: for a single step it would take as long as the step.
        output, h, c, active = _without_autograd(path, tensors, place, flags, w, rules)
    stored = state[0].dtype
    parts = tuple(part.to(stored) for part in (h, c)[: cell.num_states])
    return ScanOutput(output.to(stored), parts, active, None, None)


def _without_autograd(
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


def _pair(state: State) -> tuple[Tensor | None, Tensor | None]:
    """h and c; None for each that is absent."""
    h, c, *_ = (*state, None, None)
    return h, c


def _compute_dtype(input: Tensor) -> torch.dtype:
    """The type of all arithmetic: on a CPU at least single precision, which is faster there too."""
    dtype = input.dtype
    if is_autocasting(input.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(input.device.type)
    if input.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        return torch.float32
    return dtype
