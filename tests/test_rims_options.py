"""Options beyond nn.LSTM: slots and heads, what communication reads, learned initial state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import rims
from oracles import rim_step
from rims import RIM_GRUCell, RIM_LSTMCell
from rims.step import RIMCell, State
from selection import short
from tolerances import assert_near

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)

cells = pytest.mark.parametrize("kind", [RIM_LSTMCell, RIM_GRUCell])
layers = pytest.mark.parametrize("kind", [rims.RIM_LSTM, rims.RIM_GRU])
#: T, B, S, I and D, N, k.
T, B, S, I = 7, 3, 4, 5  # noqa: E741
D, N, K = 10, 5, 2


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def as_tuple(hx: Any) -> State:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


@pytest.mark.parametrize("kind", short([RIM_LSTMCell, RIM_GRUCell], 1))
@PROPERTY
@given(
    heads=st.sampled_from([1, 2, 3]),
    slots=st.sampled_from([None, 1, 2, 5]),
    reads=st.sampled_from(["candidate", "state"]),
    more=st.fixed_dictionaries(
        {
            "input_gate": st.sampled_from(["null", "none", "straight_through"]),
            "competition": st.sampled_from(["null", "mechanisms"]),
            "tie_margin": st.sampled_from([0.0, 0.0, 0.05, 0.3]),
            "num_comm_heads": st.sampled_from([0, 1, 4]),
            "comm_update": st.sampled_from(["additive", "convex"]),
        }
    ),
    k=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_step_equals_the_oracle_values_and_gradients(
    kind: type[RIMCell],
    heads: int,
    slots: int | None,
    reads: Any,
    more: dict[str, Any],
    k: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    cell = kind(
        I,
        D,
        N,
        k,
        dtype=torch.float64,
        input_slots=slots is not None,
        num_input_heads=heads,
        input_key_size=7,
        input_value_size=6,
        comm_reads=reads,
        **more,
    )
    input = double(2, I) if slots is None else double(2, slots, I)
    state = tuple(double(2, size).requires_grad_() for size in cell.state_sizes)
    input.requires_grad_()
    step, oracle = cell.step(input, state), rim_step(cell, input, state)
    assert [row.nonzero().flatten().tolist() for row in step.active] == oracle.active
    assert_near(step.input_attention, oracle.input_attention)
    assert_near(step.communication, oracle.communication)
    leaves = [input, *state, *cell.parameters()]
    for got, want in zip(step.state, oracle.state, strict=True):
        assert_near(got, want)
        cotangent = torch.randn_like(got)
        gradients = [
            torch.autograd.grad(
                end, leaves, cotangent, allow_unused=True, materialize_grads=True, retain_graph=True
            )
            for end in (got, want)
        ]
        for ours, theirs in zip(*gradients, strict=True):
            assert_near(ours, theirs)


@layers
def test_one_slot_is_the_plain_input(kind: Any) -> None:
    torch.manual_seed(0)
    plain = kind(I, D, N, K, num_layers=2, dtype=torch.float64)
    slotted = kind(I, D, N, K, num_layers=2, dtype=torch.float64, input_slots=True)
    slotted.load_state_dict(plain.state_dict())
    input = double(T, B, I)
    assert_near(plain(input)[0], slotted(input.unsqueeze(2))[0])


@layers
def test_order_of_slots_does_not_matter_and_an_empty_one_is_like_null(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(I, D, N, K, dtype=torch.float64, input_slots=True)
    input = double(T, B, S, I)
    output = layer(input)[0]
    assert_near(layer(input[:, :, [2, 0, 3, 1]])[0], output)
    assert not torch.allclose(layer(input[:, :, :-1])[0], output)


@layers
def test_slots_unbatched_batch_first_and_packed_agree(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(I, D, N, K, bidirectional=True, dtype=torch.float64, input_slots=True)
    other = kind(
        I, D, N, K, bidirectional=True, batch_first=True, dtype=torch.float64, input_slots=True
    )
    other.load_state_dict(layer.state_dict())
    input = double(T, B, S, I)
    output, _ = layer(input)
    assert output.shape == (T, B, 2 * D)
    assert_near(layer(input[:, 1])[0], output[:, 1])
    assert_near(other(input.transpose(0, 1))[0], output.transpose(0, 1))
    packed = pack_sequence([input[:4, 0], input[:, 1], input[:2, 2]], enforce_sorted=False)
    result, hx = layer(packed)
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(result)
    assert lengths.tolist() == [4, T, 2]
    for b, length in enumerate(lengths.tolist()):
        alone, alone_hx = layer(input[:length, b])
        assert_near(padded[:length, b], alone)
        for got, want in zip(as_tuple(hx), as_tuple(alone_hx), strict=True):
            assert_near(got[:, b], want)


@layers
@pytest.mark.parametrize("shape", [(T, I), (T, B, S, I, 1), (I,)])
def test_slots_of_the_wrong_rank_are_refused(kind: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Expected input to be 3D or 4D"):
        kind(I, D, N, K, input_slots=True)(torch.zeros(shape))


@cells
def test_cell_with_slots_takes_one_or_many(kind: Any) -> None:
    torch.manual_seed(0)
    cell = kind(I, D, N, K, dtype=torch.float64, input_slots=True)
    input = double(B, S, I)
    many, one = as_tuple(cell(input)), as_tuple(cell(input[1]))
    for got, want in zip(one, many, strict=True):
        assert_near(got, want[1])
    with pytest.raises(ValueError, match="Expected input to be 2D or 3D, got 1D"):
        cell(input[0, 0])


@layers
def test_trace_of_slots_has_their_weights(kind: Any) -> None:
    layer = kind(I, D, N, K, num_layers=2, input_slots=True)
    with rims.trace(layer) as trace:
        layer(torch.randn(T, B, S, I))
    assert trace.input_attention["cells.0"].shape == (T, B, N, 1 + S)
    assert trace.input_attention["cells.1"].shape == (T, B, N, 2)
    # rounding of a softmax in float32
    sums = trace.input_attention["cells.0"].sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)


@layers
def test_learned_initial_state_is_used_at_the_start_and_after_resets(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(I, D, N, K, num_layers=2, dtype=torch.float64, learned_initial_state=True)
    zeros = kind(I, D, N, K, num_layers=2, dtype=torch.float64)
    zeros.load_state_dict(
        {n: p for n, p in layer.state_dict().items() if ".initial_" not in n}, strict=True
    )
    input = double(T, B, I)
    assert torch.equal(layer(input)[0], zeros(input)[0])  # it starts at zero

    starts = [[torch.nn.init.normal_(start) for start in cell.initial] for cell in layer.cells]
    given = tuple(
        torch.stack([start[i].expand(B, -1) for start in starts]) for i in range(len(starts[0]))
    )
    expected = zeros(input, given if len(given) > 1 else given[0])[0]
    assert_near(layer(input)[0], expected)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[3, 1] = True
    output = layer(input, reset=reset)[0]
    assert_near(output[:, [0, 2]], expected[:, [0, 2]])
    assert_near(output[3:, 1], layer(input[3:, 1])[0])

    output.sum().backward()
    for cell in layer.cells:
        assert all(start.grad is not None and start.grad.any() for start in cell.initial)


@layers
def test_explicit_state_overrides_the_learned_one(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(I, D, N, K, dtype=torch.float64, learned_initial_state=True)
    for start in layer.cells[0].initial:
        torch.nn.init.ones_(start)
    input = double(T, B, I)
    hx = torch.zeros(1, B, D, dtype=torch.float64)
    given = (hx, hx) if kind is rims.RIM_LSTM else hx
    assert not torch.allclose(layer(input, given)[0], layer(input)[0])


@cells
def test_reading_kept_states_differs_only_through_inactive_mechanisms(kind: Any) -> None:
    torch.manual_seed(0)
    for k, same in ((N, True), (K, False)):
        candidate = kind(I, D, N, k, dtype=torch.float64)
        kept = kind(I, D, N, k, dtype=torch.float64, comm_reads="state")
        kept.load_state_dict(candidate.state_dict())
        state = tuple(double(B, size) for size in candidate.state_sizes)
        input = double(B, I)
        one, other = candidate.step(input, state).state[0], kept.step(input, state).state[0]
        assert torch.equal(one, other) is same


@cells
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"comm_reads": "nothing"}, "comm_reads must be 'candidate' or 'state'; got 'nothing'"),
        ({"num_input_heads": 3}, "num_input_heads must divide input_value_size=8; got 3"),
        ({"num_input_heads": 0}, "num_input_heads must be at least 1; got 0"),
    ],
)
def test_wrong_options_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(I, D, N, K, **options)


@layers
@pytest.mark.parametrize("name", ["input_slots", "use_inactive", "blocked_grad"])
def test_flags_must_be_bool(kind: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a bool"):
        kind(I, D, N, K, **{name: 1})
