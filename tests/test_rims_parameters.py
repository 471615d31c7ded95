"""Parameters of RIM layers: saving, copying, seeds, gradients; inputs as they come."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import rims
from layer_cases import B, D, I, Kind, T, both, cells_of, make
from tolerances import assert_rounds


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@both
def test_reset_parameters_is_reproducible_and_complete(kind: Kind) -> None:
    layer = make(kind, num_layers=2)
    before = copy.deepcopy(layer.state_dict())
    torch.manual_seed(3)
    layer.reset_parameters()
    first = copy.deepcopy(layer.state_dict())
    torch.manual_seed(3)
    layer.reset_parameters()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, first[name]), name
        assert not torch.equal(value, before[name]), name


@both
def test_construction_is_reproducible(kind: Kind) -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(make(kind, num_layers=2).state_dict())
    assert all(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())


@both
def test_state_dict_round_trip(kind: Kind) -> None:
    options = {"num_layers": 2, "bidirectional": True}
    source, target = make(kind, **options), make(kind, **options)
    input = torch.randn(T, B, I)
    expected = source(input)[0]
    assert not torch.equal(target(input)[0], expected)
    target.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(target(input)[0], expected)
    empty = make(kind, **options, device="meta")
    empty.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(empty(input)[0], expected)


@both
def test_state_dict_names_are_frozen(kind: Kind) -> None:
    names = [
        "weight_ih",
        "weight_hh",
        "bias_ih",
        "bias_hh",
        "query_weight",
        "key_weight",
        "value_weight",
        "comm_query_weight",
        "comm_key_weight",
        "comm_value_weight",
        "comm_output_weight",
        "comm_gate_weight",
        "comm_output_bias",
        "comm_gate_bias",
    ]
    expected = {f"cells.{i}.{name}" for i in range(4) for name in names}
    assert set(make(kind, num_layers=2, bidirectional=True).state_dict()) == expected


@both
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_copies_after_a_backward_are_independent(
    kind: Kind, duplicate: Callable[[Any], Any]
) -> None:
    layer = make(kind, num_layers=2)
    input = torch.randn(T, B, I)
    layer(input)[0].sum().backward()
    other = duplicate(layer)
    expected = layer(input)[0]
    assert torch.equal(other(input)[0], expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert torch.equal(layer(input)[0], expected)
    assert not torch.equal(other(input)[0], expected)


@both
def test_meta_device_and_dtype_reach_every_parameter(kind: Kind) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
    if kind is rims.RIM_LSTM:
        options["proj_size"] = 5
    layer = make(kind, **options, device="meta", dtype=torch.bfloat16)
    assert {(p.is_meta, p.dtype) for p in layer.parameters()} == {(True, torch.bfloat16)}


@both
def test_options_reach_every_cell(kind: Kind) -> None:
    layer = make(
        kind,
        num_layers=2,
        input_key_size=13,
        input_value_size=17,
        num_comm_heads=3,
        comm_key_size=19,
        comm_value_size=23,
        input_dropout=0.25,
        comm_dropout=0.75,
        init_from_unit_size=True,
    )
    for cell in cells_of(layer):
        assert cell.key_weight.shape[-1] == 13
        assert cell.weight_ih.shape[-1] == 17
        assert cell.num_comm_heads == 3
        assert cell.get_parameter("comm_key_weight").shape[-1] == 57
        assert cell.get_parameter("comm_value_weight").shape[-1] == 69
        assert cell.input_dropout == 0.25
        assert cell.comm_dropout == 0.75
        assert cell.init_from_unit_size


@both
def test_extra_repr_shows_what_differs_from_the_default(kind: Kind) -> None:
    assert make(kind).extra_repr() == "11, 10, 5, 2"
    layer = make(
        kind, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True,
        use_inactive=False, blocked_grad=True,
    )  # fmt: skip
    assert layer.extra_repr() == (
        "11, 10, 5, 2, num_layers=2, bias=False, batch_first=True, dropout=0.5, "
        "bidirectional=True, use_inactive=False, blocked_grad=True"
    )
    if kind is rims.RIM_LSTM:
        assert make(kind, proj_size=5).extra_repr() == "11, 10, 5, 2, proj_size=5"


@both
def test_flatten_parameters_is_there_as_in_torch(kind: Kind) -> None:
    layer = make(kind)
    before = copy.deepcopy(layer.state_dict())
    layer.flatten_parameters()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


# --- inputs as they come


@both
@pytest.mark.parametrize("bidirectional", [False, True])
def test_input_and_state_need_not_be_contiguous(kind: Kind, bidirectional: bool) -> None:
    layer = make(kind, bidirectional=bidirectional)
    input = torch.randn(B, I, T).permute(2, 0, 1)  # (T, B, I), strides of (B, I, T)
    rows = 2 if bidirectional else 1
    parts = [torch.randn(D, B, rows).permute(2, 1, 0) for _ in range(layer.cells[0].num_states)]
    assert not input.is_contiguous()
    assert not parts[0].is_contiguous()

    def hx(states: list[Tensor]) -> Any:
        return tuple(states) if len(states) > 1 else states[0]

    output, _ = layer(input, hx(parts))
    expected, _ = layer(input.contiguous(), hx([part.contiguous() for part in parts]))
    # What is not in a row may be multiplied in another order, in each of T steps.
    assert_rounds(output, expected, I + D, times=T)


@both
def test_one_step_of_one_sequence_reaches_every_parameter_it_can(kind: Kind) -> None:
    layer = make(kind)
    output, hx = layer(torch.randn(1, 1, I))
    assert output.shape == (1, 1, D)
    total = output.sum() + (hx[1].sum() if kind is rims.RIM_LSTM else 0)
    total.backward()
    gradients = {name.removeprefix("cells.0."): p.grad for name, p in layer.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    # from a zero state, queries are zero, and so is what weighs them or the state
    silent = {name for name, gradient in gradients.items() if not gradient.any()}
    assert silent == {"query_weight", "key_weight", "weight_hh"}
