"""One step: equal to the equations in loops, and what nn.LSTMCell and nn.GRUCell promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

from cell_cases import CELLS, SIZES, Kind, both, call, make, random_input, random_state
from oracles import rim_step
from rims import RIM_GRUCell, RIM_LSTMCell
from rims.step import RIMCell, State
from tolerances import assert_near

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- the equations


@st.composite
def cells(draw: st.DrawFn) -> RIMCell:
    def size(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    num_rims, unit_size = size(1, 5), size(1, 4)
    options: dict[str, Any] = {
        "bias": draw(st.booleans()),
        "input_key_size": size(1, 5),
        "input_value_size": draw(st.none() | st.integers(1, 7)),
        "num_comm_heads": size(1, 3),
        "comm_key_size": size(1, 5),
        "comm_value_size": size(1, 5),
    }
    kind = draw(st.sampled_from(CELLS))
    if kind is RIM_LSTMCell:
        options["proj_size"] = num_rims * size(0, unit_size - 1)
    torch.manual_seed(size(0, 999))
    return make(kind, size(1, 7), num_rims * unit_size, num_rims, size(1, num_rims), **options)


@PROPERTY
@given(cell=cells(), batch=st.integers(1, 3), zero=st.booleans())
def test_cell_equals_the_equations(cell: RIMCell, batch: int, zero: bool) -> None:
    inputs = [random_input(cell, batch).requires_grad_() for _ in range(2)]
    start = random_state(cell, batch)
    start = tuple((s * 0 if zero else s).requires_grad_() for s in start)
    leaves = [*cell.parameters(), *inputs, *start]

    state, expected = start, start
    for input in inputs:
        step, oracle = cell.step(input, state), rim_step(cell, input, expected)
        state, expected = step.state, oracle.state
        assert [row.nonzero().flatten().tolist() for row in step.active] == oracle.active
        assert_near(step.input_attention, oracle.input_attention)
        assert_near(step.communication, oracle.communication)
        for got, want in zip(state, expected, strict=True):
            assert_near(got, want)

    cotangents = [torch.randn_like(s) for s in state]
    gradients = [
        torch.autograd.grad(end, leaves, cotangents, allow_unused=True, materialize_grads=True)
        for end in (state, expected)
    ]
    for got, want in zip(*gradients, strict=True):
        assert_near(got, want)


@both
def test_forward_is_step(kind: Kind) -> None:
    cell = make(kind)
    input, state = random_input(cell, 3), random_state(cell, 3)
    for got, expected in zip(call(cell, input, state), cell.step(input, state).state, strict=True):
        assert torch.equal(got, expected)


@both
@pytest.mark.parametrize("k", [1, 2, 5])
def test_exactly_k_change_and_the_others_keep_every_bit(kind: Kind, k: int) -> None:
    cell = make(kind, 7, 15, 5, k)
    input, state = random_input(cell, 11), random_state(cell, 11)
    step = cell.step(input, state)
    assert step.active.sum(-1).tolist() == [k] * 11
    assert k == 5 or len({tuple(row) for row in step.active.tolist()}) > 1  # not always the same
    for new, old in zip(step.state, state, strict=True):
        new, old = new.reshape(11, 5, 3), old.reshape(11, 5, 3)
        assert torch.equal((new != old).any(-1), step.active)
        assert torch.equal(new[~step.active], old[~step.active])


@both
def test_active_are_those_that_attend_most_to_the_input(kind: Kind) -> None:
    cell = make(kind)
    step = cell.step(random_input(cell, 11), random_state(cell, 11))
    on_input = step.input_attention[..., 1]
    least_active = on_input.masked_fill(~step.active, math.inf).amin(-1)
    most_idle = on_input.masked_fill(step.active, -math.inf).amax(-1)
    assert (least_active > most_idle).all()


@both
def test_zero_state_activates_the_lowest(kind: Kind) -> None:
    cell = make(kind)
    input = random_input(cell, 3)
    step = cell.step(input, cell.initial_state(input))
    assert step.active.tolist() == [[True, True, False, False, False]] * 3
    assert torch.equal(step.input_attention, torch.full((3, 5, 2), 0.5, dtype=torch.float64))


@both
def test_idle_mechanisms_are_read_but_not_trained_by_it(kind: Kind) -> None:
    cell = make(kind)
    input, state = random_input(cell, 1), random_state(cell, 1)
    step = cell.step(input, state)
    active, idle = (step.active[0] == flag for flag in (True, False))
    loss = step.state[0].reshape(5, 3)[active].sum()
    (gradient,) = torch.autograd.grad(loss, cell.weight_hh)
    assert gradient[idle].count_nonzero() == 0
    assert (gradient[active] != 0).any(-1).all()
    # read nevertheless: another weight of an idle mechanism gives other active states
    with torch.no_grad():
        cell.weight_hh[idle] += 1.0
    again = cell.step(input, state)
    assert torch.equal(again.active, step.active)
    assert (again.state[0] != step.state[0]).reshape(5, 3).any(-1).tolist() == active.tolist()


@both
def test_gradient_is_numerically_right_where_all_are_active(kind: Kind) -> None:
    cell = make(kind, 3, 4, 2, 2, input_key_size=3, comm_key_size=2, comm_value_size=2)
    names, parameters = zip(*cell.named_parameters(), strict=True)
    state = tuple(s.requires_grad_() for s in random_state(cell, 2))

    def run(*leaves: Tensor) -> State:
        split = len(leaves) - len(state) - 1
        given = dict(zip(names, leaves[:split], strict=True))
        hx = leaves[split + 1 :] if len(state) == 2 else leaves[-1]
        result = torch.func.functional_call(cell, given, (leaves[split], hx))
        return result if isinstance(result, tuple) else (result,)

    assert gradcheck(run, [*parameters, random_input(cell, 2).requires_grad_(), *state])


# --- the contract of nn.LSTMCell and nn.GRUCell


@both
def test_unbatched_is_a_batch_of_one(kind: Kind) -> None:
    cell = make(kind)
    input, state = random_input(cell, 1), random_state(cell, 1)
    batched = call(cell, input, state)
    single = call(cell, input[0], tuple(s[0] for s in state))
    for got, expected in zip(single, batched, strict=True):
        assert torch.equal(got, expected[0])
    assert [tuple(s.shape) for s in call(cell, input[0])] == [(15,)] * cell.num_states


@both
def test_hx_defaults_to_zeros(kind: Kind) -> None:
    cell = make(kind)
    input = random_input(cell, 3)
    zeros = tuple(torch.zeros_like(s) for s in random_state(cell, 3))
    for got, expected in zip(call(cell, input), call(cell, input, zeros), strict=True):
        assert torch.equal(got, expected)


@both
def test_empty_batch_gives_an_empty_state(kind: Kind) -> None:
    cell = make(kind)
    input = random_input(cell, 0).requires_grad_()
    for hx in (None, random_state(cell, 0)):
        state = call(cell, input, hx)
        assert [tuple(s.shape) for s in state] == [(0, 15)] * cell.num_states
        torch.autograd.backward(state[0].sum())
    assert cell.weight_ih.grad is not None
    assert cell.weight_ih.grad.count_nonzero() == 0


def test_lstm_cell_takes_a_list_as_hx_like_torch() -> None:
    cell = make(RIM_LSTMCell)
    input, state = random_input(cell, 3), random_state(cell, 3)
    for got, expected in zip(cell(input, list(state)), cell(input, state), strict=True):
        assert torch.equal(got, expected)


def test_proj_size_projects_every_mechanism_by_itself() -> None:
    cell = make(RIM_LSTMCell, 7, 15, 5, 5, proj_size=10)
    assert isinstance(cell.weight_hr, nn.Parameter)
    assert cell.weight_hr.shape == (5, 2, 3)
    input, (h, c) = random_input(cell, 3), random_state(cell, 3)
    assert (h.shape, c.shape) == ((3, 10), (3, 15))
    h_new, c_new = cell(input, (h, c))
    assert (h_new.shape, c_new.shape) == ((3, 10), (3, 15))
    with torch.no_grad():  # no communication, no projection of mechanism 3
        cell.get_parameter("comm_output_weight").zero_()
        cell.get_parameter("comm_output_bias").zero_()
        cell.weight_hr[3] = 0
    h_new, _ = cell(input, (h, c))
    zero = (h_new.reshape(3, 5, 2) == 0).all(-1)
    assert zero.tolist() == [[False, False, False, True, False]] * 3


Calls = Callable[[Any], object]


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape)


INPUT_MISTAKES: dict[str, Calls] = {
    "0-D": lambda cell: cell(_zeros()),
    "3-D": lambda cell: cell(_zeros(2, 3, 7)),
    "features": lambda cell: cell(_zeros(2, 11)),
    "features unbatched": lambda cell: cell(_zeros(11)),
    "double": lambda cell: cell(_zeros(2, 7).double()),
    "integer": lambda cell: cell(_zeros(2, 7).long()),
    "nothing": lambda cell: cell(None),
}

#: Shape of a wrong state for an input of shape (2, 7) or (7,).
STATE_MISTAKES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "batch": ((2, 7), (3, 15)),
    "width": ((2, 7), (2, 17)),
    "1-D for a batch": ((2, 7), (15,)),
    "2-D for one": ((7,), (1, 15)),
    "3-D": ((2, 7), (1, 2, 15)),
}


def same_error(theirs: nn.Module, ours: nn.Module, mistake: Calls) -> str:
    """The message of ours, once it is known to be of the class torch raises."""
    kinds = (ValueError, RuntimeError, TypeError, AttributeError)
    with pytest.raises(kinds, match=r"\w") as expected:
        mistake(theirs)
    with pytest.raises(kinds, match=r"\w") as got:
        mistake(ours)
    assert got.type is expected.type, f"{got.value!r} instead of {expected.value!r}"
    return str(got.value)


def pair(kind: Kind) -> tuple[nn.Module, nn.Module]:
    """Torch's cell and ours, in single precision."""
    theirs: Any = {RIM_LSTMCell: nn.LSTMCell, RIM_GRUCell: nn.GRUCell}[kind]
    return theirs(7, 15), kind(*SIZES)


@both
@pytest.mark.parametrize("mistake", INPUT_MISTAKES)
def test_wrong_input_raises_the_class_of_torch(kind: Kind, mistake: str) -> None:
    same_error(*pair(kind), INPUT_MISTAKES[mistake])


@both
@pytest.mark.parametrize(
    "mistake",
    STATE_MISTAKES,
)
def test_wrong_state_raises_the_class_of_torch(kind: Kind, mistake: str) -> None:
    input_shape, shape = STATE_MISTAKES[mistake]
    right = (*input_shape[:-1], 15)
    theirs, ours = pair(kind)
    input, wrong, good = _zeros(*input_shape), _zeros(*shape), _zeros(*right)
    if kind is RIM_GRUCell:
        same_error(theirs, ours, lambda cell: cell(input, wrong))
    else:
        same_error(theirs, ours, lambda cell: cell(input, (wrong, good)))
        same_error(theirs, ours, lambda cell: cell(input, (good, wrong)))


@both
def test_state_of_another_dtype_raises_the_class_of_torch(kind: Kind) -> None:
    h = _zeros(2, 15).double()
    hx = h if kind is RIM_GRUCell else (h, h)
    same_error(*pair(kind), lambda cell: cell(_zeros(2, 7), hx))


@pytest.mark.parametrize("count", [1, 3])
def test_lstm_cell_wrong_number_of_states_raises_the_class_of_torch(count: int) -> None:
    states = (_zeros(2, 15),) * count
    message = same_error(*pair(RIM_LSTMCell), lambda cell: cell(_zeros(2, 7), states))
    assert "zip" not in message


def test_lstm_cell_refuses_a_tensor_as_hx_like_torch() -> None:
    same_error(*pair(RIM_LSTMCell), lambda cell: cell(_zeros(2, 7), _zeros(2, 2, 15)))


@both
def test_error_names_the_sizes(kind: Kind) -> None:
    cell = kind(*SIZES)
    with pytest.raises(RuntimeError, match=rf"{kind.__name__}.* 11 .* 7"):
        cell(_zeros(2, 11))
    wrong = _zeros(3, 15)
    hx: Any = wrong if kind is RIM_GRUCell else (wrong, wrong)
    with pytest.raises(RuntimeError, match=rf"{kind.__name__}.*\(3, 15\).*\(2, 15\)"):
        cell(_zeros(2, 7), hx)


@both
@pytest.mark.parametrize("where", ["input", "state"])
def test_nan_stays_in_its_sample(kind: Kind, where: str) -> None:
    cell = make(kind)
    input, state = random_input(cell, 3), random_state(cell, 3)
    clean = call(cell, input, state)
    (input if where == "input" else state[0])[1] = math.nan
    spoiled = call(cell, input, state)
    for got, expected in zip(spoiled, clean, strict=True):
        assert got[1].isnan().any()
        assert torch.equal(got[[0, 2]], expected[[0, 2]])


@both
def test_infinite_input_does_not_reach_idle_mechanisms(kind: Kind) -> None:
    cell = make(kind)
    input, state = random_input(cell, 3), random_state(cell, 3)
    input[:, 0] = math.inf
    step = cell.step(input, state)
    assert step.active.sum(-1).tolist() == [2] * 3
    for new, old in zip(step.state, state, strict=True):
        new, old = new.reshape(3, 5, 3), old.reshape(3, 5, 3)
        assert torch.equal(new[~step.active], old[~step.active])
