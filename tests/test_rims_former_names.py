"""Checkpoints of versions in which the attentions of a cell were modules, and seeds of then."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import rims
from layer_cases import THEN, B, D, I, K, Kind, N, T, both, cells_of, former, make

OPTIONS: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "learned_initial_state": True}


@both
@pytest.mark.parametrize("assign", [False, True])
def test_a_former_state_loads_strictly(kind: Kind, assign: bool) -> None:
    source, target = (nn.ModuleDict({"core": make(kind, **OPTIONS)}) for _ in range(2))
    saved = former(source.state_dict())
    kept = dict(saved)
    target.load_state_dict(saved, strict=True, assign=assign)
    assert saved == kept  # what was given is not changed
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name
    for layer in (target["core"], source["core"]):
        assert set(layer.state_dict()) == {n for n, _ in layer.named_parameters()}


@both
def test_a_former_state_loads_into_a_cell(kind: Kind) -> None:
    source, target = (kind.cell_type(I, D, N, K) for _ in range(2))
    target.load_state_dict(former(source.state_dict()))
    input = torch.randn(B, I)
    for got, expected in zip(target(input), source(input), strict=True):
        assert torch.equal(got, expected)


@both
def test_a_former_pruned_weight_loads_into_a_pruned_cell(kind: Kind) -> None:
    cells = [kind.cell_type(I, D, N, K) for _ in range(2)]
    for cell in cells:
        prune.random_unstructured(cell, "key_weight", 0.5)  # type: ignore[no-untyped-call]
    state = cells[0].state_dict()
    saved = {n.replace("key_weight_", "input_attention.key_weight_"): v for n, v in state.items()}
    saved = {n.replace("comm_input_attention.", "communication."): v for n, v in saved.items()}
    cells[1].load_state_dict(saved)
    assert torch.equal(cells[1].state_dict()["key_weight_mask"], state["key_weight_mask"])


@both
def test_what_is_missing_twice_or_unknown_is_refused(kind: Kind) -> None:
    layer = make(kind)
    saved = former(layer.state_dict())
    gone = "cells.0.communication.gate_bias"
    with pytest.raises(RuntimeError, match=r"Missing key.*cells.0.comm_gate_bias"):
        layer.load_state_dict({n: value for n, value in saved.items() if n != gone})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*input_attention.key_weight"):
        layer.load_state_dict(saved | {"cells.0.key_weight": torch.zeros(I, 64)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*comm_stranger"):
        layer.load_state_dict(saved | {"cells.0.communication.stranger": torch.zeros(1)})


@both
def test_parameters_are_in_the_order_of_then(kind: Kind) -> None:
    # The states of optimizers in checkpoints go by it.
    own = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    starts = ["initial_h", "initial_c"][: kind.cell_type.num_states]
    names = [*own, *starts, *THEN.values()]
    expected = [f"cells.{i}.{name}" for i in range(4) for name in names]
    assert [name for name, _ in make(kind, **OPTIONS).named_parameters()] == expected
    (cell, *_) = cells_of(rims.RIM_LSTM(I, D, N, K, proj_size=5))
    assert [name for name, _ in cell.named_parameters()][4] == "weight_hr"


def test_a_seed_gives_the_weights_it_gave_then() -> None:
    """First numbers of some weights, as printed by the version before."""
    torch.manual_seed(5)
    cell = rims.RIM_LSTMCell(7, 12, 4, 2)
    for name, numbers in {
        "query_weight": [0.38134199380874634, -0.43172991275787354, 0.4705054759979248],
        "comm_gate_bias": [-0.04855746030807495, 0.0974569171667099, 0.05615636706352234],
        "weight_ih": [0.009213017299771309, -0.06003546342253685, 0.12111755460500717],
        "bias_hh": [0.1468408852815628, 0.21368741989135742, 0.12416442483663559],
    }.items():
        assert cell.get_parameter(name).flatten()[:3].tolist() == numbers


@both
@pytest.mark.parametrize("init_from_unit_size", [False, True])
def test_weights_are_drawn_attentions_first_from_their_fan_in(
    kind: Kind, init_from_unit_size: bool
) -> None:
    cell = kind.cell_type(I, D, N, K, init_from_unit_size=init_from_unit_size)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        cell.reset_parameters()
    source = torch.Generator().manual_seed(3)
    gates = D // N if init_from_unit_size else D
    fans = {"query_weight": D // N, "key_weight": I, "value_weight": I}
    fans |= dict.fromkeys(("comm_query_weight", "comm_key_weight", "comm_value_weight"), D // N)
    fans |= dict.fromkeys(
        (name for name in THEN.values() if "output" in name or "gate" in name), 64
    )
    fans |= dict.fromkeys(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), gates)
    for name, fan in fans.items():
        got, bound = cell.get_parameter(name), 1 / math.sqrt(fan)
        expected = torch.empty_like(got).uniform_(-bound, bound, generator=source)
        assert torch.equal(got, expected), name


@both
def test_training_goes_on_from_a_former_optimizer_state(kind: Kind) -> None:
    layers = [make(kind), make(kind)]
    optimizers = [torch.optim.Adam(layer.parameters(), lr=0.1) for layer in layers]
    input = torch.randn(T, B, I)

    def step(which: int) -> None:
        optimizers[which].zero_grad()
        layers[which](input)[0].square().sum().backward()
        optimizers[which].step()

    step(0)
    layers[1].load_state_dict(former(layers[0].state_dict()))
    # Copied: an optimizer takes the tensors it is given for its own.
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    step(0)
    step(1)
    for got, expected in zip(*(layer.parameters() for layer in layers), strict=True):
        assert torch.equal(got, expected)
