"""Mistakes with RIM_LSTM and RIM_GRU raise what they raise with nn.LSTM and nn.GRU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rims
from layer_cases import B, D, I, K, Kind, N, T, both, make, pair, states


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


#: What a test does with torch's layer, and then with ours.
Calls = Callable[[Any], Any]
MISTAKES = (ValueError, RuntimeError, TypeError, AttributeError, IndexError)


def same_error(theirs: Any, ours: Any, mistake: Calls) -> None:
    with pytest.raises(MISTAKES, match=r"\w") as expected:
        mistake(theirs)
    with pytest.raises(MISTAKES, match=r"\w") as got:
        mistake(ours)
    assert got.type is expected.type, f"{got.value!r} instead of {expected.value!r}"


def packed_zeros(features: int, dtype: torch.dtype | None = None) -> PackedSequence:
    return pack_sequence([torch.zeros(length, features, dtype=dtype) for length in (3, 2)])


INPUT_MISTAKES: dict[str, Calls] = {
    "0-D": lambda layer: layer(torch.zeros(())),
    "1-D": lambda layer: layer(torch.zeros(I)),
    "4-D": lambda layer: layer(torch.zeros(1, T, B, I)),
    "features": lambda layer: layer(torch.zeros(T, B, I + 2)),
    "features unbatched": lambda layer: layer(torch.zeros(T, I + 2)),
    "double": lambda layer: layer(torch.zeros(T, B, I).double()),
    "integer": lambda layer: layer(torch.zeros(T, B, I).long()),
    "no steps": lambda layer: layer(torch.zeros(0, B, I)),
    "no steps unbatched": lambda layer: layer(torch.zeros(0, I)),
    "no steps, no batch": lambda layer: layer(torch.zeros(0, 0, I)),
    "no steps, features": lambda layer: layer(torch.zeros(0, B, I + 2)),
    "nothing": lambda layer: layer(None),
    "packed features": lambda layer: layer(
        pack_sequence([torch.zeros(3, I + 2), torch.zeros(2, I + 2)])
    ),
}


@both
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("mistake", INPUT_MISTAKES)
def test_wrong_input_raises_the_class_of_torch(
    kind: Kind, bidirectional: bool, mistake: str
) -> None:
    same_error(*pair(kind, bidirectional=bidirectional), INPUT_MISTAKES[mistake])


@both
def test_no_steps_batch_first_raises_the_class_of_torch(kind: Kind) -> None:
    same_error(*pair(kind, batch_first=True), lambda layer: layer(torch.zeros(B, 0, I)))


@pytest.mark.parametrize(
    "kind",
    [
        rims.RIM_LSTM,
        rims.RIM_GRU,
    ],
)
def test_packed_of_another_dtype_raises_the_class_of_torch(kind: Kind) -> None:
    packed = packed_zeros(I, torch.float64)
    same_error(*pair(kind), lambda layer: layer(packed))


@both
def test_packed_of_equal_lengths_with_wrong_features_is_refused(kind: Kind) -> None:
    # torch's LSTM runs here, and returns numbers computed from misread memory
    packed = pack_sequence([torch.zeros(3, I + 2), torch.zeros(3, I + 2)])
    with pytest.raises(RuntimeError, match=rf"Expected {I}, got {I + 2}"):
        make(kind)(packed)


#: Shape of a wrong state for two layers and an input of (T, B, I) or (T, I).
STATE_MISTAKES: dict[str, tuple[bool, tuple[int, ...]]] = {
    "batch": (True, (2, B + 2, D)),
    "width": (True, (2, B, D + 1)),
    "layers": (True, (3, B, D)),
    "2-D for 3-D": (True, (2, D)),
    "4-D": (True, (1, 2, B, D)),
    "0-D": (True, ()),
    "3-D for 2-D": (False, (2, 1, D)),
    "width unbatched": (False, (2, D + 1)),
    "layers unbatched": (False, (3, D)),
}


@both
@pytest.mark.parametrize(
    "mistake",
    STATE_MISTAKES,
)
def test_wrong_state_raises_the_class_of_torch(kind: Kind, mistake: str) -> None:
    batched, shape = STATE_MISTAKES[mistake]
    input = torch.zeros(T, B, I) if batched else torch.zeros(T, I)
    good = torch.zeros(2, B, D) if batched else torch.zeros(2, D)
    wrong = torch.zeros(shape)
    theirs, ours = pair(kind, num_layers=2)
    if kind is rims.RIM_GRU:
        same_error(theirs, ours, lambda layer: layer(input, wrong))
    else:
        same_error(theirs, ours, lambda layer: layer(input, (wrong, good)))
        same_error(theirs, ours, lambda layer: layer(input, (good, wrong)))


@both
@pytest.mark.parametrize("shape", [(2, B, D), (1, 2, D + 1), (2, 2, D)])
def test_wrong_state_of_packed_raises_the_class_of_torch(
    kind: Kind, shape: tuple[int, ...]
) -> None:
    state = torch.zeros(shape)
    hx = (state, state) if kind is rims.RIM_LSTM else state
    same_error(*pair(kind), lambda layer: layer(packed_zeros(I), hx))


@both
def test_state_of_another_dtype_raises_the_class_of_torch(kind: Kind) -> None:
    hx = states(kind, 1, B, D, dtype=torch.float64)
    same_error(*pair(kind), lambda layer: layer(torch.zeros(T, B, I), hx))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_lstm_wrong_number_of_states_says_how_many(count: int) -> None:
    hx: Any = (torch.zeros(1, B, D),) * count
    with pytest.raises(RuntimeError, match=f"hx must hold 2 tensors; got {count}"):
        make(rims.RIM_LSTM)(torch.zeros(T, B, I), hx)


def test_lstm_refuses_a_tensor_as_hx() -> None:
    # torch raises IndexError with one layer and RuntimeError with more; here one class for both
    for num_layers in (1, 2):
        theirs, ours = pair(rims.RIM_LSTM, num_layers=num_layers)
        input, h = torch.zeros(T, B, I), torch.zeros(num_layers, B, D)
        with pytest.raises((IndexError, RuntimeError)):
            theirs(input, h)
        with pytest.raises(RuntimeError, match=r"must be a pair \(h_0, c_0\)"):
            ours(input, h)


@both
def test_wrong_state_error_names_both_shapes(kind: Kind) -> None:
    expected = rf"{kind.__name__}: Expected h_0 size \(1, 3, 10\), got \(1, 2, 10\)"
    with pytest.raises(RuntimeError, match=expected):
        make(kind)(torch.zeros(T, B, I), states(kind, 1, 2, D))


CONSTRUCTOR_MISTAKES: dict[str, dict[str, Any]] = {
    "hidden 0": {"hidden_size": 0},
    "hidden negative": {"hidden_size": -D},
    "hidden text": {"hidden_size": "10"},
    "hidden float": {"hidden_size": 10.0},
    "input 0": {"input_size": 0},
    "input float": {"input_size": 11.0},
    "layers 0": {"num_layers": 0},
    "layers float": {"num_layers": 2.0},
    "dropout 2": {"num_layers": 2, "dropout": 2},
    "dropout negative": {"num_layers": 2, "dropout": -0.1},
    "dropout bool": {"num_layers": 2, "dropout": True},
    "unknown": {"heads": 3},
    "bias text": {"bias": "no"},
    "batch_first text": {"batch_first": "no"},
}


@both
@pytest.mark.parametrize(
    "mistake",
    CONSTRUCTOR_MISTAKES,
)
def test_wrong_constructor_argument_raises_the_class_of_torch(kind: Kind, mistake: str) -> None:
    sizes = {"input_size": I, "hidden_size": D, **CONSTRUCTOR_MISTAKES[mistake]}
    theirs = nn.LSTM if kind is rims.RIM_LSTM else nn.GRU
    same_error(partial(theirs, **sizes), partial(kind, num_rims=N, k=K, **sizes), lambda c: c())


@pytest.mark.parametrize("proj_size", [-1, D, D + 5])
def test_wrong_proj_size_raises_the_class_of_torch(proj_size: int) -> None:
    same_error(
        partial(nn.LSTM, I, D, proj_size=proj_size),
        partial(rims.RIM_LSTM, I, D, N, K, proj_size=proj_size),
        lambda constructor: constructor(),
    )


def test_gru_proj_size_raises_the_class_of_torch() -> None:
    ours: Any = rims.RIM_GRU
    same_error(
        partial(nn.GRU, I, D, proj_size=5),
        partial(ours, I, D, N, K, proj_size=5),
        lambda constructor: constructor(),
    )


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 6}, "k must lie in"),
        ({"num_rims": 3}, "num_rims must divide hidden_size"),
        ({"k": (2, 6)}, "k must lie in"),
        ({"k": (2, 2, 2)}, r"k must be one number or one per layer \(2\); got \(2, 2, 2\)"),
        ({"hidden_size": [10]}, r"hidden_size must be one number or one per layer \(2\)"),
        ({"num_rims": ()}, r"num_rims must be one number or one per layer \(2\); got \(\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(
    kind: Kind, options: dict[str, Any], message: str
) -> None:
    sizes = {"input_size": I, "hidden_size": D, "num_rims": N, "k": K, "num_layers": 2, **options}
    with pytest.raises(ValueError, match=message) as error:
        kind(**sizes)
    assert "\n" not in str(error.value)


def test_k_must_be_an_integer() -> None:
    k: Any = 2.0
    with pytest.raises((TypeError, ValueError), match="k"):
        rims.RIM_LSTMCell(I, D, N, k)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.bool])
def test_one_state_of_another_dtype_raises_the_class_of_torch(
    kind: Kind, dtype: torch.dtype
) -> None:
    good, wrong = torch.zeros(1, B, D), torch.zeros(1, B, D, dtype=dtype)
    forms: list[Any] = [wrong]
    if kind is rims.RIM_LSTM:
        forms = [(wrong, good), (good, wrong)]
    for hx in forms:
        same_error(*pair(kind), partial(run_with, hx))


def run_with(hx: Any, layer: Any) -> Any:
    return layer(torch.zeros(T, B, I), hx)


def test_hx_of_the_wrong_form_raises_the_class_of_torch() -> None:
    h = torch.zeros(2, B, D)
    for hx in ((h, h), (h,)):
        same_error(*pair(rims.RIM_GRU, num_layers=2), partial(run_with, hx))
    same_error(*pair(rims.RIM_LSTM), lambda layer: layer(torch.zeros(T, B, I), (None, None)))


@both
def test_construction_under_a_seed_equals_reset_parameters(kind: Kind) -> None:
    for make_one in pair_makers(kind):
        torch.manual_seed(1)
        one = make_one()
        other = make_one()
        torch.manual_seed(1)
        other.reset_parameters()
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def pair_makers(kind: Kind) -> list[Callable[[], Any]]:
    theirs: Any = nn.LSTM if kind is rims.RIM_LSTM else nn.GRU
    options = {"num_layers": 2, "bidirectional": True}
    return [partial(theirs, I, D, **options), partial(make, kind, **options)]


@both
def test_replica_of_data_parallel_runs(kind: Kind) -> None:
    layer = make(kind, num_layers=2)
    replica = layer._replicate_for_data_parallel()
    replica.cells = nn.ModuleList()
    for cell in layer.cells:
        copy = cell._replicate_for_data_parallel()
        for own, value in cell._parameters.items():  # as torch.nn.parallel.replicate does
            if value is None:
                copy._parameters[own] = None
            else:
                setattr(copy, own, value.view_as(value))  # not a parameter any more
        replica.cells.append(copy)
    input = torch.randn(T, B, I)
    assert torch.equal(replica(input)[0], layer(input)[0])


@both
def test_numbers_of_numpy_are_taken(kind: Kind) -> None:
    layer = make(kind, num_layers=np.int64(2), dropout=np.float32(0.5))
    assert (layer.num_layers, layer.dropout) == (2, 0.5)
    assert layer(torch.zeros(T, B, I))[0].shape == (T, B, D)
