"""Compare Triton's recurrence with autograd through the readable loop; also a script.

As a script it runs the named cases, or all, and prints one line of JSON per case: its name and what
went wrong, null if nothing did. Triton decides at its import whether it interprets kernels, so
interpreted cases have a process of their own.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from rims import RIM_GRUCell, RIM_LSTMCell
from rims.scan import hoisted
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Carry, Hoisted, Sequence
from rims.scan.reference import loop
from rims.scan.torch.products import LoopGradients, empty_gradients
from rims.scan.triton.recurrence import TritonRecurrence
from rims.step import RIMCell

LSTM, GRU = RIM_LSTMCell, RIM_GRUCell

#: Largest error by type, as a part of the largest number of the same tensor. Double: sums of some
#: dozens of terms. Single: the same with 2^-24. Half precisions: inputs of the loop, what is stored
#: of a step and every gradient are rounded, by up to 2^-9 (bfloat16) or 2^-12 (float16) each, and
#: some ten such errors meet on the way through three steps.
BOUNDS = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}


class _WithoutDot(TritonRecurrence):
    """Products as plain sums: in bfloat16 the interpreter's ``tl.dot`` multiplies bit patterns."""

    def __init__(self, w: Weights, rules: Rules, states: States, flags: Flags) -> None:
        super().__init__(w, rules, states, flags)
        self._shape = replace(self._shape, use_dot=False)


class Case(NamedTuple):
    """A cell, a sequence for it and how it is cut."""

    kind: type[RIM_LSTMCell] | type[RIM_GRUCell]
    num_rims: int
    k: int
    unit_size: int
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed
    dtype: torch.dtype = torch.float64
    steps: int = 2
    batch: int = 3
    reset: bool = False
    valid: bool = False
    zero_state: bool = False
    steps_per_range: int = 10


#: No size a power of two, no two alike.
ODD = {
    "num_comm_heads": 3,
    "comm_key_size": 3,
    "comm_value_size": 5,
    "input_key_size": 7,
    "input_value_size": 9,
}
STATE = {"bias": False, "comm_reads": "state", "num_comm_heads": 2, "comm_key_size": 3}
FRESH = {"learned_initial_state": True}

CASES = {
    # Five samples are two programs, the second of them one sample and padding.
    "lstm": Case(LSTM, 3, 2, 6, ODD | FRESH, batch=5, reset=True, valid=True, steps_per_range=1),
    "gru": Case(GRU, 3, 2, 6, ODD | FRESH, steps=3, reset=True, valid=True, steps_per_range=2),
    "lstm reads state": Case(LSTM, 2, 1, 5, STATE, valid=True),
    "gru reads state": Case(GRU, 2, 1, 5, STATE, reset=True),
    "one mechanism": Case(LSTM, 1, 1, 3),
    "one of five": Case(GRU, 5, 1, 2, steps=1),
    "all of five": Case(LSTM, 5, 5, 1, steps=1, reset=True, zero_state=True),
    "ties": Case(LSTM, 4, 2, 2, zero_state=True, batch=1),
    "more columns than a tile": Case(LSTM, 2, 1, 35, batch=2),
    "lstm float32": Case(LSTM, 3, 2, 6, ODD, torch.float32, valid=True, reset=True),
    "gru float32": Case(GRU, 2, 1, 70, dtype=torch.float32, batch=2),
    "lstm bfloat16": Case(LSTM, 3, 2, 6, ODD, torch.bfloat16, steps=3),
    "gru float16": Case(GRU, 2, 1, 5, ODD, torch.float16),
}


class Problem(NamedTuple):
    """A case in numbers, in double precision but representable in the case's type."""

    cell: RIMCell
    input: Tensor
    state: tuple[Tensor, ...]
    flags: Flags
    grad_output: Tensor
    grad_state: tuple[Tensor, ...]


def compare(case: Case, device: str) -> None:
    """Values and all gradients, against the oracle in double precision."""
    problem = _problem(case)
    leaves = [problem.input, *problem.state, *problem.cell.parameters()]
    want = loop(
        problem.cell,
        problem.input,
        problem.state,
        reset=problem.flags.reset,
        valid=problem.flags.valid,
    )
    loss = (want.output * problem.grad_output).sum()
    loss = loss + sum((s * g).sum() for s, g in zip(want.state, problem.grad_state, strict=True))
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    names = ["input", "h", "c"][: 1 + len(problem.state)]
    names += [name for name, _ in problem.cell.named_parameters()]
    got, got_grads = _run(case, problem, device)
    assert got.active.cpu().equal(want.active), "active"
    _near("output", got.h, want.output, case.dtype)
    for name, grad in zip(names, grads, strict=True):
        if grad is not None:
            _near(name, got_grads[name], grad, case.dtype)


def check_nan(device: str) -> None:
    """NaN in one sample: the rule of selection, no word of it elsewhere, zero where idle."""
    case = Case(LSTM, 3, 2, 3, steps=1, batch=4)
    clean = _problem(case)
    input, h = clean.input.detach().clone(), clean.state[0].detach().clone()
    input[0, 1] = torch.nan  # all scores: the first k
    h[2, 6:] = torch.nan  # the last mechanism's: it is one of the k
    dirty = clean._replace(input=input, state=(h, clean.state[1].detach()))
    want, want_grads = _run(case, clean, device)
    got, got_grads = _run(case, dirty, device)
    assert got.active[0, 1].tolist() == [True, True, False]
    assert bool(got.active[0, 2, 2])
    others = [0, 3]
    assert got.h[:, others].equal(want.h[:, others])
    assert got.h[0, 1, 6:].cpu().equal(h[1, 6:]), "an idle mechanism keeps its state"
    assert got_grads["h"][others].equal(want_grads["h"][others])
    assert got_grads["input"][:, others].equal(want_grads["input"][:, others])
    part = _loop_gradients(case, dirty, got, device)
    idle = ~got.active  # (T, B, N)
    for name in ("query_side", "gate_side", "state_gates", "output_gate"):
        grad = getattr(part, name)
        by_rim = grad.reshape(*idle.shape, -1)
        assert not by_rim[idle].any(), name  # NaN would be true


def _problem(case: Case) -> Problem:
    torch.manual_seed(0)
    size = case.num_rims * case.unit_size
    cell = case.kind(4, size, case.num_rims, case.k, dtype=torch.float64, **case.options)
    with torch.no_grad():
        for start in cell.initial:
            start.normal_()
        for parameter in cell.parameters():
            parameter.copy_(parameter.to(case.dtype))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape).to(case.dtype).double()

    shape = (case.batch, size)
    state = tuple(
        (torch.zeros(shape).double() if case.zero_state else random(*shape)).requires_grad_()
        for _ in range(cell.num_states)
    )
    when = (case.steps, case.batch)
    return Problem(
        cell,
        random(*when, 4).requires_grad_(),
        state,
        Flags(
            torch.rand(when) < 0.4 if case.reset else None,
            torch.rand(when) < 0.7 if case.valid else None,
        ),
        random(*when, size),
        tuple(random(*shape) for _ in state),
    )


class _Arguments(NamedTuple):
    input: Tensor
    states: States
    flags: Flags
    w: Weights
    rules: Rules


def _arguments(case: Case, problem: Problem, device: str) -> _Arguments:
    def there(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        tensor = tensor.detach().to(device)
        return tensor.to(case.dtype) if tensor.is_floating_point() else tensor

    cell = problem.cell
    fresh = cell.initial_state(problem.input[0]) if cell.initial else ()
    states = [there(s) for s in (*problem.state, None)[:2]]
    states += [there(s) for s in (*fresh, None, None)[:2]]
    input, h = there(problem.input), states[0]
    assert input is not None
    assert h is not None
    return _Arguments(
        input,
        States(h, *states[1:]),
        Flags(*(there(flag) for flag in problem.flags)),
        Weights(*(there(weight) for weight in Weights.of(cell))),  # type: ignore[arg-type]
        Rules(cell.k, cell.num_comm_heads, cell.comm_reads == "state"),
    )


def _carry(case: Case, problem: Problem, device: str) -> Carry:
    grads = [g.to(device, case.dtype, copy=True) for g in problem.grad_state]  # changed in place
    fresh = [torch.zeros_like(g) for g in grads]
    h, c = (*grads, None)[:2]
    fresh_h, fresh_c = (*fresh, None)[:2]
    assert h is not None
    assert fresh_h is not None
    return Carry(h, c, fresh_h, fresh_c)


def _run(case: Case, problem: Problem, device: str) -> tuple[Sequence, dict[str, Tensor]]:
    """What Triton makes of it, and its gradients by name."""
    a = _arguments(case, problem, device)
    carry = _carry(case, problem, device)
    no_dot = device == "cpu" and case.dtype == torch.bfloat16
    kind = _WithoutDot if no_dot else TritonRecurrence
    rows = case.steps_per_range * case.batch
    with patch.object(hoisted, "chunk_rows", lambda w: rows):
        recurrence = kind(a.w, a.rules, a.states, a.flags)
        out, saved = hoisted.forward(recurrence, a.input, save=True)
        assert saved is not None
        grad_output = problem.grad_output.to(device, case.dtype)
        grad = hoisted.backward(
            recurrence, grad_output, carry, a.input, saved, input_needs_grad=True
        )
    assert grad.input is not None
    grads = {"input": grad.input, "h": carry.h, "initial_h": carry.fresh_h.sum(0)}
    if carry.c is not None and carry.fresh_c is not None:
        grads |= {"c": carry.c, "initial_c": carry.fresh_c.sum(0)}
    names = {id(p): name for name, p in problem.cell.named_parameters()}
    for parameter, weight in zip(Weights.of(problem.cell), grad.w, strict=True):
        if parameter is not None and weight is not None:
            grads[names[id(parameter)]] = weight
    return out, grads


def _loop_gradients(case: Case, problem: Problem, did: Sequence, device: str) -> LoopGradients:
    """What backward leaves of every step."""
    a = _arguments(case, problem, device)
    recurrence = TritonRecurrence(a.w, a.rules, a.states, a.flags)
    rest = hoisted.forward(recurrence, a.input, save=True)[1]
    assert rest is not None
    inputs = Hoisted(rest.inputs.query_side, rest.inputs.gate_side)
    room = Hoisted(*map(torch.empty_like, inputs))
    out = empty_gradients(room, a.w, torch.zeros_like(a.w.hh[..., 0]))
    grad_output = problem.grad_output.to(device, case.dtype)
    recurrence.retreat(0, inputs, did, grad_output, _carry(case, problem, device), out)
    return out


def _near(name: str, got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    bound = BOUNDS[dtype] * max(1.0, want.abs().max().item())
    torch.testing.assert_close(
        got.double().cpu(), want, rtol=0, atol=bound, msg=lambda text: f"{name}: {text}"
    )


def run(name: str, device: str) -> None:
    """One case, or the one about NaN."""
    if name == "nan":
        check_nan(device)
    else:
        compare(CASES[name], device)


NAMES = [*CASES, "nan"]


def main(names: list[str]) -> None:
    """Run cases on the CPU and report."""
    torch.set_num_threads(1)
    for name in names or NAMES:
        start = time.perf_counter()
        try:
            run(name, "cpu")
            error = None
        except Exception:
            error = traceback.format_exc()
        seconds = time.perf_counter() - start
        print(json.dumps({"name": name, "error": error, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
