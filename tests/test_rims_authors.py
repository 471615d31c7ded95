"""Weights of the authors' implementation, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rims
from fixtures import Arrays, files, read, tensor, weights
from rims import authors
from rims.base_layer import RIMLayer
from rims.parameters import Parameters
from tolerances import assert_near as assert_close
from tolerances import assert_rounds

SINGLE = files("rims_*.npz")


def layer_of(arrays: Arrays) -> RIMLayer:
    kind: Any = rims.RIM_LSTM if str(arrays["meta.cell"]) == "lstm" else rims.RIM_GRU
    sizes = ("input_size", "hidden_size", "num_mechanisms", "num_active")
    layer: RIMLayer = kind(*(int(arrays[f"meta.{name}"]) for name in sizes), dtype=torch.float64)
    return layer


def blocks_core(arrays: Arrays) -> dict[str, Tensor]:
    """What a BlocksCore with these weights saves, entry by entry, dead ones and all."""
    given = {name: tensor(array) for name, array in weights(arrays).items()}
    num_rims, num_gates, unit = given["cell.bias_ih"].shape
    width = num_rims * unit
    core = "block_lstm.lstm" if num_gates == 4 else "block_lstm.gru"
    state = {"mha.ln.weight": torch.ones(unit), "mha.ln.bias": torch.zeros(unit)}
    for name in ("query", "key", "value"):
        state[f"mha.GLN_{name[0]}s.w"] = given[f"communication.{name}.weight"]
    state["inp_att.GLN_qs.w"] = given["input_attention.query.weight"]
    for name in ("key", "value"):
        used = given[f"input_attention.{name}.weight"]
        state[f"inp_att.GLN_{name[0]}s.w"] = torch.stack([torch.randn_like(used), used])
    for theirs, ours in (("fc", "output"), ("gate_fc", "gate")):
        for part in ("weight", "bias"):
            state[f"mha.{theirs}.{part}"] = given[f"communication.{ours}.{part}"]
            state[f"inp_att.gate_fc.{part}"] = torch.randn(3)
            state[f"inp_att.ln.{part}"] = torch.randn(3)
    for half in ("ih", "hh"):
        blocks = given[f"cell.weight_{half}"]
        inputs = blocks.shape[-1]
        # what lies off the diagonal is zeroed before every use, so its values must not matter
        dense = torch.randn(num_gates * width, num_rims * inputs, dtype=torch.float64)
        bias = torch.empty(num_gates * width, dtype=torch.float64)
        for m in range(num_rims):
            for g in range(num_gates):
                rows = slice(g * width + m * unit, g * width + (m + 1) * unit)
                dense[rows, m * inputs : (m + 1) * inputs] = blocks[m, g]
                bias[rows] = given[f"cell.bias_{half}"][m, g]
        state[f"{core}.weight_{half}"], state[f"{core}.bias_{half}"] = dense, bias
    return state


def outputs(layer: RIMLayer, arrays: Arrays) -> Tensor:
    start = [tensor(arrays[name])[None] for name in ("h0", "c0") if name in arrays]
    result: Tensor = layer(tensor(arrays["inputs"]), tuple(start) if len(start) > 1 else start[0])[
        0
    ]
    return result


@pytest.mark.parametrize("path", SINGLE)
def test_fixtures_hold_through_load_weights(path: Path) -> None:
    arrays = read(path)
    layer = layer_of(arrays)
    authors.load_weights(layer, weights(arrays))
    assert_close(outputs(layer, arrays), tensor(arrays["outputs"]))


@pytest.mark.parametrize("path", SINGLE)
def test_fixtures_hold_through_from_state_dict(path: Path) -> None:
    arrays = read(path)
    layer = layer_of(arrays)
    authors.from_state_dict(layer, blocks_core(arrays))
    assert_close(outputs(layer, arrays), tensor(arrays["outputs"]))


@pytest.mark.parametrize("path", files("rims2_*.npz"))
def test_several_layers_load_by_prefix(path: Path) -> None:
    arrays = read(path)
    names = ("hidden_size", "num_mechanisms", "num_active")
    sizes = [arrays[f"meta.{name}"].tolist() for name in names]
    kind: Any = rims.RIM_LSTM if str(arrays["meta.cell"]) == "lstm" else rims.RIM_GRU
    layer = kind(int(arrays["meta.input_size"]), *sizes, num_layers=2, dtype=torch.float64)
    authors.load_weights(layer, weights(arrays))
    for i in range(2):
        cell: Any = layer.cells[i]
        expected = tensor(arrays[f"param.layer{i}.cell.weight_hh"])
        assert torch.equal(cell.weight_hh, expected.reshape(cell.weight_hh.shape))


@pytest.mark.parametrize("kind", [rims.RIM_LSTM, rims.RIM_GRU])
def test_round_trip_keeps_every_bit_and_loads_into_their_modules(kind: Any) -> None:
    torch.manual_seed(0)
    layer, other = kind(7, 15, 5, 2), kind(7, 15, 5, 2)
    state = authors.to_state_dict(layer)
    authors.from_state_dict(other, state)
    for name, value in layer.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    # the dense matrices are those of torch's own cell over all mechanisms side by side
    core, cell = (
        ("lstm", torch.nn.LSTMCell(5 * 12, 15))
        if kind is rims.RIM_LSTM
        else ("gru", torch.nn.GRUCell(5 * 12, 15))
    )
    prefix = f"block_lstm.{core}."
    cell.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if prefix in n})
    read_in, h = torch.randn(3, 5, 12), torch.randn(3, 15)
    start = (h, torch.randn(3, 15)) if core == "lstm" else h
    ours: Any = layer.cells[0]
    parts = start if isinstance(start, tuple) else (start,)
    candidates = ours.candidate(
        Parameters.of(ours), read_in, tuple(p.reshape(3, 5, 3) for p in parts)
    )
    theirs = cell(read_in.flatten(1), start)
    expected = theirs if isinstance(theirs, tuple) else (theirs,)
    for got, want in zip(candidates, expected, strict=True):
        assert_rounds(got.flatten(1), want, 5 * 12 + 15)  # products summed in another order


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("mha.fc.bias"), r"mha\.fc\.bias is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown entry extra"),
        (
            lambda s: s.update({"inp_att.GLN_ks.w": torch.zeros(2, 7, 63)}),
            r"inp_att\.GLN_ks\.w must have shape \(2, 7, 64\); got \(2, 7, 63\)",
        ),
        (lambda s: s.pop("block_lstm.lstm.weight_hh"), r"block_lstm\.lstm\.weight_hh is missing"),
    ],
)
def test_state_dict_that_does_not_fit_is_refused_and_changes_nothing(
    change: object, message: str
) -> None:
    layer = rims.RIM_LSTM(7, 15, 5, 2)
    before = {n: v.clone() for n, v in layer.state_dict().items()}
    state = authors.to_state_dict(rims.RIM_LSTM(7, 15, 5, 2))
    assert callable(change)
    change(state)
    with pytest.raises(ValueError, match=message):
        authors.from_state_dict(layer, state)
    assert all(torch.equal(v, before[n]) for n, v in layer.state_dict().items())


def test_dead_entries_may_be_absent() -> None:
    layer = rims.RIM_GRU(7, 15, 5, 2)
    state = {n: v for n, v in authors.to_state_dict(layer).items() if n not in authors.DEAD}
    assert len(authors.DEAD) == 6
    authors.from_state_dict(rims.RIM_GRU(7, 15, 5, 2), state)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"num_layers": 2},
        {"proj_size": 5},
        {"learned_initial_state": True},
        {"input_slots": True},
        {"comm_reads": "state"},
        {"comm_update": "convex"},
        {"input_gate": "none"},
        {"competition": "mechanisms"},
        {"tie_margin": 0.01},
        {"num_comm_heads": 0},
        {"num_comm_heads": 2, "comm_key_size": 32, "comm_value_size": 32},
        {"num_input_heads": 2, "input_key_size": 32},
        {"input_key_size": 7},
        {"input_value_size": 11},
    ],
)
def test_modules_without_a_published_form_are_refused(options: Any) -> None:
    layer = rims.RIM_LSTM(7, 15, 5, 2, **options)
    with pytest.raises(ValueError, match="a BlocksCore"):
        authors.to_state_dict(layer)
    with pytest.raises(ValueError, match="a BlocksCore"):
        authors.from_state_dict(layer, authors.to_state_dict(rims.RIM_LSTM(7, 15, 5, 2)))


def test_plain_arrays_that_do_not_fit_are_refused() -> None:
    layer = rims.RIM_LSTM(7, 15, 5, 2)
    with pytest.raises(ValueError, match=r"cell\.bias_hh is missing"):
        authors.load_weights(layer, {})
    shapes = {
        "input_attention.query.weight": (5, 3, 64),
        "input_attention.key.weight": (7, 64),
        "input_attention.value.weight": (7, 12),
        "cell.weight_ih": (5, 4, 3, 12),
        "cell.weight_hh": (5, 4, 3, 3),
        "cell.bias_ih": (5, 4, 3),
        "cell.bias_hh": (5, 4, 3),
        **{f"communication.{name}.weight": (5, 3, 64) for name in ("query", "key", "value")},
        **{f"communication.{name}.weight": (3, 64) for name in ("output", "gate")},
        **{f"communication.{name}.bias": (3,) for name in ("output", "gate")},
    }
    arrays = {name: np.zeros(shape) for name, shape in shapes.items()}
    authors.load_weights(layer, arrays)
    assert not any(p.any() for p in layer.parameters())
    arrays["cell.weight_ih"] = arrays["cell.weight_ih"].reshape(5, 12, 12)
    with pytest.raises(ValueError, match=r"cell\.weight_ih must have shape \(5, 4, 3, 12\)"):
        authors.load_weights(layer, arrays)
