"""Padding by a mask, which libraries hand to recurrent modules that are not torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rims
from tolerances import assert_near

both = pytest.mark.parametrize("kind", [rims.RIM_LSTM, rims.RIM_GRU])
#: Steps, batch, features; hidden size, mechanisms, active ones.
T, B, I = 7, 3, 11  # noqa: E741
D, N, K = 10, 5, 2


def make(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(I, D, N, K, dtype=torch.float64, **options)


def as_tuple(hx: Any) -> tuple[Tensor, ...]:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


@both
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_mask_equals_packing(kind: Any, bidirectional: bool, batch_first: bool) -> None:
    layer = make(
        kind,
        num_layers=2,
        bidirectional=bidirectional,
        batch_first=batch_first,
    )
    lengths = torch.tensor([T - 2, T, 1])
    mask = torch.arange(T).unsqueeze(-1) < lengths  # (T, B)
    input = torch.randn(T, B, I, dtype=torch.float64)
    input[~mask] = float("nan")  # padding must not be read
    given = (input.transpose(0, 1), mask.T) if batch_first else (input, mask)
    output, hx = layer(given[0], mask=given[1])
    output = output.transpose(0, 1) if batch_first else output
    packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
    packed_output, expected_hx = layer(packed)
    expected, _ = pad_packed_sequence(packed_output, total_length=T)
    # a batch of another composition may sum in another order
    assert_near(output[mask], expected[mask])
    for got, want in zip(as_tuple(hx), as_tuple(expected_hx), strict=True):
        assert_near(got, want)
    # nor must its gradient reach a weight, and zero times NaN is NaN
    parameters = list(layer.parameters())
    cotangent = torch.randn_like(output[mask])
    ours = torch.autograd.grad(output[mask], parameters, cotangent, materialize_grads=True)
    theirs = torch.autograd.grad(expected[mask], parameters, cotangent, materialize_grads=True)
    for got, want in zip(ours, theirs, strict=True):
        assert_near(got, want)


@both
def test_mask_errors_are_one_clear_line(kind: Any) -> None:
    layer, input = make(kind), torch.zeros(T, B, I, dtype=torch.float64)
    mask = torch.ones(T, B, dtype=torch.bool)
    with pytest.raises(ValueError, match="mask must be a bool tensor"):
        layer(input, mask=mask.T)
    with pytest.raises(ValueError, match="mask must be a bool tensor"):
        layer(input, mask=mask.float())
    with pytest.raises(
        ValueError, match="reset cannot be combined with a PackedSequence or a mask"
    ):
        layer(input, mask=mask, reset=~mask)
    mask[2] = False
    assert layer(input, mask=mask)[0].shape == (T, B, D)
    with pytest.raises(ValueError, match="mask of a bidirectional layer must be true up to"):
        make(kind, bidirectional=True)(input, mask=mask)


@both
def test_layer_has_no_all_weights_to_be_mistaken_for_an_lstm(kind: Any) -> None:
    layer = make(kind)
    assert not hasattr(layer, "_all_weights")
    with pytest.raises(AttributeError, match="its weights are not those of one LSTM or GRU"):
        layer._all_weights  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        layer.nonsense  # noqa: B018
