"""Parameters and options of the cells: none dead, checked, drawn and shown as documented."""

from __future__ import annotations

import inspect
import math
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

from cell_cases import SIZES, Kind, both, call, make, random_input, random_state
from rims import RIM_GRUCell, RIM_LSTMCell
from rims.checks import CellOptions
from rims.step import RIMCell, State
from tolerances import assert_near


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@both
@pytest.mark.parametrize("bias", [True, False])
def test_no_parameter_is_dead(kind: Kind, bias: bool) -> None:
    cell = make(kind, bias=bias, **({"proj_size": 10} if kind is RIM_LSTMCell else {}))
    state: State | None = None
    total = torch.zeros((), dtype=torch.float64)
    for _ in range(5):
        state = call(cell, random_input(cell, 11), state)
        total = total + sum((s**2).sum() for s in state)
    torch.autograd.backward(total)
    for name, parameter in cell.named_parameters():
        assert parameter.grad is not None, name
        # of every mechanism, where there is one weight per mechanism
        rows = parameter.grad if parameter.shape[0] == 5 else parameter.grad[None]
        assert (rows.flatten(1) != 0).any(-1).all(), name


@both
def test_one_step_from_zero_gives_every_parameter_a_gradient(kind: Kind) -> None:
    cell = make(kind)
    torch.autograd.backward(call(cell, random_input(cell, 1))[0].sum())
    assert [name for name, p in cell.named_parameters() if p.grad is None] == []


@both
def test_bias_false_has_no_bias(kind: Kind) -> None:
    names = [name for name, _ in make(kind, bias=False).named_parameters()]
    assert len(names) == 10
    assert not any("bias" in name for name in names)
    with_bias = [name for name, _ in make(kind).named_parameters() if "bias" in name]
    assert sorted(with_bias) == [
        "bias_hh",
        "bias_ih",
        "comm_gate_bias",
        "comm_output_bias",
    ]


@both
@pytest.mark.parametrize(
    ("option", "silenced"),
    [
        ("input_dropout", ["value_weight"]),
        ("comm_dropout", ["comm_output_weight", "comm_output_bias"]),
    ],
)
def test_dropout_acts_in_training_only(kind: Kind, option: str, silenced: list[str]) -> None:
    # Dropping all of it equals weights of zero.
    dropping, plain = make(kind, **{option: 1.0}), make(kind)
    plain.load_state_dict(dropping.state_dict())
    input, state = random_input(plain, 3), random_state(plain, 3)
    without = call(plain, input, state)
    with torch.no_grad():
        for name in silenced:
            plain.get_parameter(name).zero_()
    silent = call(plain, input, state)
    for trained, evaluated, expected_trained, expected_evaluated in zip(
        call(dropping, input, state),
        call(dropping.eval(), input, state),
        silent,
        without,
        strict=True,
    ):
        assert_near(trained, expected_trained)
        assert torch.equal(evaluated, expected_evaluated)
    assert not torch.equal(silent[0], without[0])


@both
@pytest.mark.parametrize("option", ["input_dropout", "comm_dropout"])
def test_dropout_is_drawn_anew_each_step_and_spares_idle_states(kind: Kind, option: str) -> None:
    cell = make(kind, **{option: 0.5})
    input, state = random_input(cell, 3), random_state(cell, 3)
    one, two = cell.step(input, state), cell.step(input, state)
    assert torch.equal(one.active, two.active)
    differs = (one.state[0] != two.state[0]).reshape(3, 5, 3).any(-1)
    assert differs[one.active].any()
    assert not differs[~one.active].any()


def test_cell_options_are_those_of_the_constructor() -> None:
    parameters = inspect.signature(RIMCell.__init__).parameters.values()
    hints = get_type_hints(RIMCell.__init__)
    keyword_only = {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert keyword_only.pop("proj_size") is int
    assert keyword_only.pop("input_slots") is bool  # of the first layer alone
    assert keyword_only == get_type_hints(CellOptions)
    assert CellOptions.__required_keys__ == frozenset()


@both
def test_constructor_positions_follow_torch_after_k(kind: Kind) -> None:
    cell = kind(7, 15, 5, 2, False, "cpu", torch.float64)
    assert (cell.input_size, cell.hidden_size, cell.num_rims, cell.k) == SIZES
    assert cell.bias is False
    assert {p.dtype for p in cell.parameters()} == {torch.float64}
    theirs = list(inspect.signature(nn.LSTMCell).parameters)
    ours = list(inspect.signature(RIMCell).parameters)
    assert ours[:7] == [*theirs[:2], "num_rims", "k", *theirs[2:]]


@both
@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((7, 15, 5, 6), {}, "k must lie in .*5.*k=6"),
        ((7, 15, 5, 0), {}, "k must lie in .*k=0"),
        ((7, 15, 5, -1), {}, "k must lie in .*k=-1"),
        ((7, 15, 4, 2), {}, "num_rims must divide hidden_size.*15.*4"),
        ((7, 15, 0, 0), {}, "num_rims must divide hidden_size.*0"),
        ((7, 15, -5, 1), {}, "num_rims must divide hidden_size.*-5"),
        ((7, 0, 5, 2), {}, "hidden_size must be at least 1; got 0"),
        ((0, 15, 5, 2), {}, "input_size must be at least 1; got 0"),
        *[
            ((7, 15, 5, 2), {name: value}, name)
            for name, value in [
                ("input_key_size", 0),
                ("input_value_size", 0),
                ("input_value_size", -1),
                ("num_comm_heads", -1),
                ("comm_key_size", 0),
                ("comm_value_size", 0),
                ("input_dropout", 1.5),
                ("comm_dropout", -0.5),
            ]
        ],
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(
    kind: Kind, sizes: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make(kind, *sizes, **options)
    text = str(error.value)
    assert text.startswith(f"{kind.__name__}: ")
    assert "\n" not in text


@pytest.mark.parametrize("proj_size", [-5, 7, 15, 20])
def test_proj_size_that_does_not_fit_is_refused(proj_size: int) -> None:
    with pytest.raises(ValueError, match=rf"^RIM_LSTMCell: proj_size must .*got {proj_size}\.$"):
        make(RIM_LSTMCell, proj_size=proj_size)


@both
def test_reset_parameters_draws_the_documented_bounds(kind: Kind) -> None:
    # sizes so large that a uniform draw comes within 5 % of its bound, and distinct
    sizes = (61, 190, 5, 2)
    options = {
        "input_key_size": 37,
        "num_comm_heads": 2,
        "comm_key_size": 19,
        "comm_value_size": 23,
    }
    for unit_size_law in (False, True):
        cell = make(kind, *sizes, init_from_unit_size=unit_size_law, **options)
        gates = 38 if unit_size_law else 190
        fan_in = {
            "weight_ih": gates,
            "weight_hh": gates,
            "bias_ih": gates,
            "bias_hh": gates,
            "query_weight": 38,
            "key_weight": 61,
            "value_weight": 61,
            "comm_query_weight": 38,
            "comm_key_weight": 38,
            "comm_value_weight": 38,
            "comm_output_weight": 46,
            "comm_gate_weight": 46,
            "comm_output_bias": 46,
            "comm_gate_bias": 46,
        }
        assert {name for name, _ in cell.named_parameters()} == set(fan_in)
        for name, parameter in cell.named_parameters():
            largest = parameter.abs().max().item() * math.sqrt(fan_in[name])
            assert 0.85 < largest <= 1, name  # 38 numbers all below 0.85: chance 0.002


def test_projection_draws_the_bounds_of_the_gates() -> None:
    for unit_size_law, fan_in in ((False, 190), (True, 38)):
        cell = make(RIM_LSTMCell, 7, 190, 5, 2, proj_size=95, init_from_unit_size=unit_size_law)
        assert isinstance(cell.weight_hr, nn.Parameter)
        assert 0.95 < cell.weight_hr.abs().max().item() * math.sqrt(fan_in) <= 1


@both
def test_extra_repr_shows_sizes_and_missing_bias(kind: Kind) -> None:
    assert make(kind).extra_repr() == "7, 15, 5, 2"
    assert make(kind, bias=False).extra_repr() == "7, 15, 5, 2, bias=False"
    assert repr(make(kind)) == f"{kind.__name__}(7, 15, 5, 2)"


def test_extra_repr_shows_a_projection() -> None:
    assert make(RIM_LSTMCell, proj_size=10).extra_repr() == "7, 15, 5, 2, proj_size=10"


@both
@pytest.mark.parametrize("name", ["input_slots", "learned_initial_state", "init_from_unit_size"])
def test_flags_must_be_bool(kind: Kind, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a bool"):
        make(kind, **{name: "no"})


def test_gru_cell_has_no_projection() -> None:
    with pytest.raises(TypeError, match="proj_size is for LSTM"):
        make(RIM_GRUCell, proj_size=5)


@both
def test_extra_repr_shows_every_option_that_differs(kind: Kind) -> None:
    options: dict[str, Any] = {
        "input_slots": True,
        "num_input_heads": 2,
        "input_key_size": 3,
        "input_value_size": 8,
        "input_gate": "none",
        "competition": "mechanisms",
        "tie_margin": 0.01,
        "num_comm_heads": 2,
        "comm_key_size": 5,
        "comm_value_size": 7,
        "input_dropout": 0.25,
        "comm_dropout": 0.5,
        "comm_reads": "state",
        "comm_update": "convex",
        "comm_gate_bias": -2.0,
        "learned_initial_state": True,
        "init_from_unit_size": True,
    }
    assert set(options) | {"bias", "proj_size"} == set(_keyword_options())
    text = make(kind, **options).extra_repr()
    assert text == "7, 15, 5, 2, " + ", ".join(f"{n}={v!r}" for n, v in options.items())
    assert make(kind).extra_repr() == "7, 15, 5, 2"


def _keyword_options() -> list[str]:
    parameters = inspect.signature(RIMCell.__init__).parameters.values()
    return ["bias", *(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)]
