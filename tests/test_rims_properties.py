"""What must hold for every RIM layer, whatever its sizes: 40 random layers and inputs each."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

import rims
from oracles import rim_step
from rims.base_layer import RIMLayer
from rims.step import RIMCell

EVERY = settings(max_examples=40, deadline=None, derandomize=True)


class Case(NamedTuple):
    """A random layer and an input for it."""

    layer: RIMLayer
    input: Tensor  # (T, B, I)
    hx: Any

    @property
    def cell(self) -> RIMCell:
        cell = self.layer.cells[0]
        assert isinstance(cell, RIMCell)
        return cell


@st.composite
def cases(draw: st.DrawFn, *, dense: bool = False, layers: int = 1, long: int = 6) -> Case:
    def size(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    torch.manual_seed(size(0, 10**6))
    num_rims, unit = size(1, 5), size(1, 3)
    kind: Any = draw(st.sampled_from([rims.RIM_LSTM, rims.RIM_GRU]))
    slots = draw(st.sampled_from([None, None, 1, 3]))
    heads = size(1, 2)
    options: dict[str, Any] = {
        "num_layers": size(1, layers),
        "input_slots": slots is not None,
        "num_input_heads": heads,
        "input_value_size": heads * size(1, 4),
        "learned_initial_state": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "input_key_size": size(1, 5),
        "num_comm_heads": size(1, 2),
        "comm_key_size": size(1, 4),
        "comm_value_size": size(1, 4),
        "comm_reads": draw(st.sampled_from(["candidate", "state"])),
    }
    if kind is rims.RIM_LSTM:
        options["proj_size"] = num_rims * size(0, unit - 1)
    k = num_rims if dense else size(1, num_rims)
    layer = kind(size(1, 4), num_rims * unit, num_rims, k, dtype=torch.float64, **options)
    steps, batch = size(1, long), size(1, 4)
    shape = (steps, batch) if slots is None else (steps, batch, slots)
    input = torch.randn(*shape, layer.input_size, dtype=torch.float64)
    states = [
        torch.randn(options["num_layers"], batch, width, dtype=torch.float64)
        for width in layer.cells[0].state_sizes
    ]
    for cell in layer.cells:
        for start in cell.initial:
            torch.nn.init.normal_(start)
    # a zero state ties all mechanisms
    states = [s * draw(st.sampled_from([0.0, 1.0])) for s in states]
    return Case(layer, input, tuple(states) if len(states) > 1 else states[0])


def flat(hx: Any) -> list[Tensor]:
    return [hx] if isinstance(hx, Tensor) else list(hx)


def rows(hx: Any, index: Any) -> Any:
    parts = [part[:, index] for part in flat(hx)]
    return tuple(parts) if len(parts) > 1 else parts[0]


@EVERY
@given(case=cases())
def test_exactly_k_change_and_the_others_keep_every_bit(case: Case) -> None:
    cell = case.cell
    state = tuple(part[0] for part in flat(case.hx))
    for input in case.input:
        step = cell.step(input, state)
        assert step.active.sum(-1).tolist() == [cell.k] * len(input)
        for old, new in zip(state, step.state, strict=True):
            same = (old == new).reshape(len(input), cell.num_rims, -1)
            assert same[~step.active].all()
            assert not same[step.active].all(-1).any()
        state = step.state


@EVERY
@given(case=cases(layers=2), data=st.data())
def test_causality(case: Case, data: st.DataObject) -> None:
    output, _ = case.layer(case.input, case.hx)
    t = data.draw(st.integers(0, len(case.input) - 1))
    changed = case.input.clone()
    changed[t] += 1
    other, _ = case.layer(changed, case.hx)
    assert torch.equal(output[:t], other[:t])
    assert not torch.equal(output[t], other[t])


@EVERY
@given(case=cases(layers=2), data=st.data())
def test_samples_do_not_meet_even_through_nan(case: Case, data: st.DataObject) -> None:
    output, hx = case.layer(case.input, case.hx)
    b = data.draw(st.integers(0, case.input.shape[1] - 1))
    others = [i for i in range(case.input.shape[1]) if i != b]
    spoiled = case.input.clone()
    spoiled[:, b] = float("nan")
    spoiled_output, spoiled_hx = case.layer(spoiled, case.hx)
    assert torch.equal(spoiled_output[:, others], output[:, others])
    for got, want in zip(flat(spoiled_hx), flat(hx), strict=True):
        assert torch.equal(got[:, others], want[:, others])
    alone, _ = case.layer(case.input[:, [b]], rows(case.hx, [b]))
    # another batch size may sum in another order
    torch.testing.assert_close(alone, output[:, [b]], rtol=1e-9, atol=1e-11)


@EVERY
@given(case=cases(layers=2), data=st.data())
def test_reset_equals_splitting_the_sequence(case: Case, data: st.DataObject) -> None:
    steps, batch = case.input.shape[:2]
    flags = data.draw(st.lists(st.booleans(), min_size=steps * batch, max_size=steps * batch))
    reset = torch.tensor(flags).reshape(steps, batch)
    output, hx = case.layer(case.input, case.hx, reset=reset)
    for b in range(batch):
        cuts = [t for t in range(steps) if reset[t, b]]
        edges = sorted({0, *cuts, steps})
        state: Any = rows(case.hx, [b])
        for begin, end in pairwise(edges):
            state = None if begin in cuts else state
            part, state = case.layer(case.input[begin:end, [b]], state)
            torch.testing.assert_close(output[begin:end, [b]], part, rtol=1e-9, atol=1e-11)
        for got, want in zip(flat(rows(hx, [b])), flat(state), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@EVERY
@given(case=cases(long=3))
def test_values_and_gradients_are_those_of_the_equations(case: Case) -> None:
    """For k < N the published stop of gradients bars a numerical check; the oracle has it too."""
    cell = case.cell
    leaves = [case.input.requires_grad_(), *(p.requires_grad_() for p in flat(case.hx))]
    leaves += list(cell.parameters())
    output, _ = case.layer(case.input, case.hx)
    state = tuple(part[0] for part in flat(case.hx))
    outputs = []
    for input in case.input:
        state = rim_step(cell, input, state).state
        outputs.append(state[0])
    torch.testing.assert_close(output, torch.stack(outputs), rtol=1e-9, atol=1e-10)
    cotangent = torch.randn_like(output)
    ours, theirs = (
        torch.autograd.grad(end, leaves, cotangent, allow_unused=True, materialize_grads=True)
        for end in (output, torch.stack(outputs))
    )
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@EVERY
@given(case=cases(dense=True, long=2))
def test_numerical_gradient_where_all_are_active(case: Case) -> None:
    leaves = [case.input.requires_grad_(), *(p.requires_grad_() for p in flat(case.hx))]

    def outputs(input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        output, hx = case.layer(input, states if len(states) > 1 else states[0])
        return (output, *flat(hx))

    assert gradcheck(outputs, leaves, fast_mode=True)


@EVERY
@given(case=cases(layers=2))
def test_no_parameter_is_dead(case: Case) -> None:
    """Over random states every mechanism is active somewhere, and then every weight matters."""
    layer = case.layer
    batch = 64  # so many that each mechanism is active in some sample and inactive in another
    states = [
        torch.randn(layer.num_layers, batch, part.shape[-1], dtype=torch.float64)
        for part in flat(case.hx)
    ]
    input = torch.randn(3, batch, *case.input.shape[2:], dtype=torch.float64)
    reset = torch.zeros(3, batch, dtype=torch.bool)
    reset[1, ::2] = True  # so that a learned initial state is used
    given = tuple(states) if len(states) > 1 else states[0]
    output, hx = layer(input, given, reset=reset)
    torch.autograd.backward([output.square().sum(), *(part.square().sum() for part in flat(hx))])
    cells = [cell for cell in layer.cells if isinstance(cell, RIMCell)]
    for name, parameter in layer.named_parameters():
        cell = cells[int(name.split(".")[1])]
        if cell.num_rims == 1 and name.endswith((".comm_query_weight", ".comm_key_weight")):
            continue  # one mechanism attends to itself with weight 1, whatever the query
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
