"""RIM_LSTM and RIM_GRU beside nn.LSTM and nn.GRU: names, signatures, shapes, mistakes."""

from __future__ import annotations

import inspect
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import rims
from layer_cases import (
    LAYERS,
    B,
    D,
    I,
    K,
    Kind,
    N,
    T,
    both,
    make,
    pair,
    shapes,
    states,
    torch_may_remark,
    with_projection,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- the public names


def test_public_names_are_frozen() -> None:
    assert rims.__all__ == [
        "RIM_GRU",
        "RIM_LSTM",
        "RIM_GRUCell",
        "RIM_LSTMCell",
        "RepeatedInput",
        "Trace",
        "Usage",
        "authors",
        "plot_activations",
        "scan_path",
        "trace",
    ]
    assert all(hasattr(rims, name) for name in rims.__all__)


def signature(kind: Kind) -> list[tuple[str, object]]:
    return [
        (p.name, p.default if p.default is not p.empty else "required")
        for p in inspect.signature(kind).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]


def test_signatures_are_frozen() -> None:
    expected: list[tuple[str, object]] = [
        ("input_size", "required"),
        ("hidden_size", "required"),
        ("num_rims", "required"),
        ("k", "required"),
        ("num_layers", 1),
        ("bias", True),
        ("batch_first", False),
        ("dropout", 0.0),
        ("bidirectional", False),
        ("proj_size", 0),
        ("device", None),
        ("dtype", None),
    ]
    assert signature(rims.RIM_LSTM) == expected
    assert signature(rims.RIM_GRU) == [item for item in expected if item[0] != "proj_size"]
    for kind in LAYERS:
        parameters = inspect.signature(kind).parameters.values()
        assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == {
            "input_slots": False,
            "use_inactive": True,
            "blocked_grad": False,
        }


def test_positions_after_k_are_those_of_torch() -> None:
    given = (2, False, True, 0.25, True)
    for kind, theirs in ((rims.RIM_LSTM, nn.LSTM), (rims.RIM_GRU, nn.GRU)):
        ours: Any = kind(I, D, N, K, *given)
        reference: Any = theirs(I, D, *given)
        for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional"):
            assert getattr(ours, name) == getattr(reference, name)
    lstm: Any = rims.RIM_LSTM(I, D, N, K, *given, 5, "cpu", torch.float64)
    torch_lstm: Any = nn.LSTM(I, D, *given, 5, "cpu", torch.float64)
    for layer in (lstm, torch_lstm):
        assert layer.proj_size == 5
        assert next(layer.parameters()).dtype == torch.float64


# --- shapes

COMBINATIONS = list(product([1, 2], [False, True], [False, True]))


@torch_may_remark
@with_projection
@pytest.mark.parametrize(("num_layers", "bidirectional", "batch_first"), COMBINATIONS)
def test_shapes_equal_those_of_torch(
    kind: Kind, num_layers: int, bidirectional: bool, batch_first: bool, proj_size: int
) -> None:
    options: dict[str, Any] = {
        "num_layers": num_layers,
        "bidirectional": bidirectional,
        "batch_first": batch_first,
    }
    if kind is rims.RIM_LSTM:
        options["proj_size"] = proj_size
    theirs, ours = pair(kind, **options)
    for shape in ((T, B, I), (T, I), (T, 1, I), (1, 1, I)):
        input = torch.randn(*shape)
        expected = theirs(input)
        got = ours(input)
        assert shapes(got) == shapes(expected)
        assert shapes(ours(input, expected[1])) == shapes(expected)
        if not batch_first:
            assert got[0].is_contiguous()
        h_n = got[1][0] if kind is rims.RIM_LSTM else got[1]
        assert h_n.is_contiguous()


@both
@pytest.mark.parametrize("bidirectional", [False, True])
def test_empty_batch_as_torch(kind: Kind, bidirectional: bool) -> None:
    theirs, ours = pair(kind, num_layers=2, bidirectional=bidirectional)
    input = torch.randn(T, 0, I)
    expected = theirs(input)
    assert shapes(ours(input)) == shapes(expected)
    assert shapes(ours(input, expected[1])) == shapes(expected)
    torch.autograd.backward(ours(input)[0].sum())


@both
def test_hx_defaults_to_zeros(kind: Kind) -> None:
    layer = make(kind, num_layers=2, bidirectional=True)
    input = torch.randn(T, B, I)
    zeros = torch.zeros(4, B, D)
    hx = (zeros, zeros) if kind is rims.RIM_LSTM else zeros
    assert torch.equal(layer(input)[0], layer(input, hx)[0])
    other = states(kind, 4, B, D)
    assert not torch.equal(layer(input)[0], layer(input, other)[0])


def test_lstm_takes_a_list_as_hx_like_torch() -> None:
    theirs, ours = pair(rims.RIM_LSTM)
    input, hx = torch.randn(T, B, I), states(rims.RIM_LSTM, 1, B, D)
    for layer in (theirs, ours):
        assert torch.equal(layer(input, list(hx))[0], layer(input, hx)[0])
