"""Choices beside the paper's: gate of the input, competition, communication, tied mechanisms.

``tests/test_rims_options.py`` compares all of them with the oracle of a step.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

import rims
from cell_cases import Kind, both, call, make, random_input, random_state
from rims import RIM_GRUCell, RIM_LSTMCell
from rims.attention import read_input, select
from rims.functional import threshold_softmax, threshold_softmax_gradient
from rims.parameters import Parameters
from tolerances import assert_near

layers = pytest.mark.parametrize("kind", [rims.RIM_LSTM, rims.RIM_GRU])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# --- the gate of the input


@pytest.mark.parametrize("competition", ["null", "mechanisms"])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("elements", [1, 3])
def test_straight_through_has_the_value_of_none_and_both_gradients(
    competition: Any, heads: int, elements: int
) -> None:
    """u = v with v the ungated read; dL/dv as without a gate, dL/dg = v . dL/du as with it."""
    cell = make(RIM_GRUCell, input_slots=True, num_input_heads=heads, input_value_size=6)
    p = Parameters.of(cell)
    x, h = double(2, elements, 7), double(2, 5, 3)
    read = {
        gate: read_input(p, x, h, num_heads=heads, gate=gate, competition=competition, k=2).read
        for gate in ("null", "none", "straight_through")
    }
    assert torch.equal(read["straight_through"], read["none"])

    cotangent = torch.randn_like(read["none"])
    names = ("query_weight", "key_weight", "value_weight")
    wanted = [cell.get_parameter(name) for name in names]
    grad = partial(torch.autograd.grad, retain_graph=True, materialize_grads=True)
    got = grad(read["straight_through"], wanted, cotangent, allow_unused=True)
    plain = grad(read["none"], wanted, cotangent, allow_unused=True)
    # of the gate alone: what is read without one is a constant
    v, d_v = (part.reshape(2, 5, heads, -1) for part in (read["none"].detach(), cotangent))
    d_gate = (v * d_v).sum(-1).mT  # (B, M, N)
    query = torch.einsum("bnd,ndk->bnk", h, p.query_weight).reshape(2, 5, heads, -1)
    key = (x @ p.key_weight).reshape(2, elements, heads, -1)
    odds = (torch.einsum("bnmk,bsmk->bmns", query, key) / 64**0.5).logsumexp(-1)
    gate = odds.sigmoid() if competition == "null" else threshold_softmax(odds, 2)
    of_gate = grad(gate, wanted, d_gate, allow_unused=True)
    for ours, own, through in zip(got, plain, of_gate, strict=True):
        assert_near(ours, own + through)
    assert of_gate[0].any()


@both
def test_what_is_not_gated_is_the_gated_read_divided_by_the_gate(kind: Kind) -> None:
    cell = make(kind, input_slots=True)
    p, x, h = Parameters.of(cell), double(3, 4, 7), double(3, 5, 3)
    gated = read_input(p, x, h)
    plain = read_input(p, x, h, gate="none")
    assert_near(plain.read, gated.read / (1 - gated.weights[..., :1]))
    assert torch.equal(plain.score, gated.score)
    assert torch.equal(plain.weights, gated.weights)
    values = x[:, :1] @ p.value_weight
    assert_near(read_input(p, x[:, :1], h, gate="none").read, values.expand(3, 5, 12))


@both
@pytest.mark.parametrize("gate", ["none", "straight_through"])
def test_selection_does_not_depend_on_the_gate(kind: Kind, gate: str) -> None:
    plain, other = make(kind), make(kind, input_gate=gate)
    other.load_state_dict(plain.state_dict())
    input, state = random_input(plain, 9), random_state(plain, 9)
    assert torch.equal(plain.step(input, state).active, other.step(input, state).active)
    assert not torch.equal(plain.step(input, state).state[0], other.step(input, state).state[0])


@layers
def test_only_without_a_gate_have_queries_and_keys_no_gradient(kind: Any) -> None:
    for gate in ("null", "none", "straight_through"):
        layer = kind(7, 15, 5, 2, dtype=torch.float64, input_gate=gate)
        for path in ("reference", None):
            layer.zero_grad()
            with rims.scan_path(path):
                layer(double(4, 3, 7))[0].square().sum().backward()
            (cell,) = layer.rim_cells
            for parameter in (cell.query_weight, cell.key_weight):
                assert isinstance(parameter.grad, Tensor)  # zeros: a gradient that is summed up
                assert bool(parameter.grad.any()) is (gate != "none")


@pytest.mark.parametrize("kind", [RIM_LSTMCell, RIM_GRUCell])
def test_all_active_without_gate_and_communication_are_cells_of_torch(kind: Any) -> None:
    cell = make(kind, 7, 15, 5, 5, input_gate="none", num_comm_heads=0)
    theirs = nn.LSTMCell if kind is RIM_LSTMCell else nn.GRUCell
    input, state = random_input(cell, 4), random_state(cell, 4)
    new = call(cell, input, state)
    for m in range(5):
        own: Any = theirs(12, 3, dtype=torch.float64)
        own.load_state_dict(
            {name: cell.get_parameter(name)[m] for name, _ in own.named_parameters()}
        )
        part = slice(3 * m, 3 * m + 3)
        before = tuple(s[:, part] for s in state)
        got = own(input @ cell.value_weight, before if len(before) > 1 else before[0])
        for ours, expected in zip(new, got if len(before) > 1 else (got,), strict=True):
            assert_near(ours[:, part], expected)


# --- competition across mechanisms


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.integers(1, 7), k=st.integers(1, 7), scale=st.sampled_from([0.0, 1.0, 9.0]))
def test_gradient_of_the_threshold_softmax(size: int, k: int, scale: float) -> None:
    scores = (double(3, 2, size) * scale).requires_grad_()
    grad = torch.randn_like(scores)
    (expected,) = torch.autograd.grad(threshold_softmax(scores, k), scores, grad)
    assert_near(threshold_softmax_gradient(grad, scores.detach(), k), expected)


@layers
def test_shares_sum_to_one_and_idle_mechanisms_read_nothing(kind: Any) -> None:
    layer = kind(7, 18, 6, 3, competition="mechanisms", dtype=torch.float64)
    hx = double(1, 2, 18)
    with rims.trace(layer) as trace:
        layer(double(5, 2, 7), (hx, hx) if kind is rims.RIM_LSTM else hx)
    null, shares = trace.input_attention["cells.0"].unbind(-1)
    assert not null.any()
    torch.testing.assert_close(shares.sum(-1), torch.ones(5, 2).double(), rtol=0, atol=1e-3)
    assert not shares[~trace.active["cells.0"]].any()
    assert (trace.active["cells.0"].sum(-1) == 3).all()


# --- communication


@layers
def test_without_communication_there_are_no_parameters_of_it(kind: Any) -> None:
    layer = kind(7, 15, 5, 2, num_layers=2, num_comm_heads=0, dtype=torch.float64)
    assert not any("comm_" in name for name in layer.state_dict())
    assert "num_comm_heads=0" in repr(layer)
    layer.reset_parameters()
    other = kind(7, 15, 5, 2, num_layers=2, num_comm_heads=0, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    input = double(4, 3, 7)
    with rims.trace(layer) as trace:
        output, _ = layer(input)
    assert torch.equal(other(input)[0], output)
    assert trace.communication["cells.1"].shape == (4, 3, 0, 5, 5)
    with_it = kind(7, 15, 5, 2, num_layers=2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="comm_query_weight"):
        with_it.load_state_dict(layer.state_dict())


@both
def test_without_communication_mechanisms_do_not_see_each_other(kind: Kind) -> None:
    cell = make(kind, 7, 15, 5, 5, num_comm_heads=0)
    input, state = random_input(cell, 4), random_state(cell, 4)
    changed = tuple(torch.cat([s[:, :12], double(4, 3)], dim=1) for s in state)
    for one, other in zip(call(cell, input, state), call(cell, input, changed), strict=True):
        assert_near(one[:, :12], other[:, :12])
        assert not torch.allclose(one[:, 12:], other[:, 12:])


def test_a_convex_update_keeps_the_state_of_a_gru_within_one() -> None:
    cell = make(RIM_GRUCell, comm_update="convex")
    additive = make(RIM_GRUCell)
    additive.load_state_dict(cell.state_dict())
    largest = []
    for one in (cell, additive):
        with torch.no_grad():
            one.get_parameter("comm_output_weight").mul_(50)
        state = call(one, random_input(one, 8))
        for _ in range(20):
            state = call(one, random_input(one, 8), state)
        largest.append(state[0].abs().max().item())
    assert largest[0] <= 1 < largest[1]


@both
def test_only_the_gate_of_the_communication_starts_elsewhere(kind: Kind) -> None:
    torch.manual_seed(1)
    plain = make(kind)
    torch.manual_seed(1)
    moved = make(kind, comm_gate_bias=-2)
    for name, parameter in plain.named_parameters():
        shift = -2 if name == "comm_gate_bias" else 0
        assert torch.equal(moved.get_parameter(name), parameter + shift)
    moved.reset_parameters()
    assert -3 < moved.get_parameter("comm_gate_bias").mean() < -1
    assert moved.extra_repr() == "7, 15, 5, 2, comm_gate_bias=-2.0"


# --- ties


def test_a_margin_makes_every_mechanism_active_that_is_as_good() -> None:
    score = torch.tensor([[0.0, 2.0, 0.03, -1.0], [math.nan, 2.0, 1.9, -1.0]])
    assert select(score, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    # sigma: 0.5, 0.88, 0.507, 0.27; where the k-th is NaN nothing is as good
    assert select(score, 2, margin=0.01)[0].tolist() == [True, True, True, False]
    assert select(score, 2, margin=0.005)[0].tolist() == [False, True, True, False]
    assert select(score, 2, margin=1.0).tolist()[0] == [True] * 4
    assert select(score[1:], 1, margin=0.5).tolist() == [[True, False, False, False]]
    # softmax: 0.10, 0.75, 0.105, 0.04
    assert select(score, 2, competition="mechanisms", margin=0.01)[0, 0]
    assert not select(score, 2, competition="mechanisms", margin=0.001)[0, 0]


@layers
def test_with_a_margin_a_state_of_zeros_activates_all(kind: Any) -> None:
    layer = kind(7, 15, 5, 2, tie_margin=0.01)
    exact = kind(7, 15, 5, 2)
    exact.load_state_dict(layer.state_dict())
    input = torch.randn(6, 3, 7)
    with rims.trace(layer) as trace, rims.trace(exact) as other:
        layer(input)
        exact(input)
    assert trace.active["cells.0"][0].all()
    assert (trace.active["cells.0"].sum(-1) >= 2).all()
    assert (other.active["cells.0"].sum(-1) == 2).all()
    assert str(trace)


# --- gradients, checks, files of earlier versions


@both
@pytest.mark.parametrize(
    ("k", "options"),
    [
        # An idle mechanism is read without gradient, so where they communicate all are active.
        (4, {"input_gate": "none"}),
        (4, {"comm_update": "convex"}),
        (2, {"num_comm_heads": 0}),
        (2, {"num_comm_heads": 0, "competition": "mechanisms"}),
        (1, {"num_comm_heads": 0, "competition": "mechanisms"}),
        (2, {"num_comm_heads": 0, "tie_margin": 0.1}),
    ],
    ids=str,
)
def test_gradients_are_those_of_the_values(kind: Kind, k: int, options: dict[str, Any]) -> None:
    small: dict[str, Any] = {"input_key_size": 2, "comm_key_size": 2, "comm_value_size": 2}
    small["num_comm_heads"] = 2
    cell = make(kind, 3, 8, 4, k, **(small | options))
    names = [name for name, _ in cell.named_parameters()]
    input, state = random_input(cell, 2).requires_grad_(), random_state(cell, 2)

    def values(x: Tensor, h: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        before = (h, *state[1:])
        given = dict(zip(names, weights, strict=True))
        new = functional_call(cell, given, (x, before if len(before) > 1 else h))
        return (new,) if isinstance(new, Tensor) else tuple(new)

    torch.autograd.gradcheck(values, (input, state[0].requires_grad_(), *cell.parameters()))


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"input_gate": "one"},
            "input_gate must be 'null', 'none' or 'straight_through'; got 'one'",
        ),
        ({"competition": True}, "competition must be 'null' or 'mechanisms'; got True"),
        ({"comm_update": "mixed"}, "comm_update must be 'additive' or 'convex'; got 'mixed'"),
        ({"num_comm_heads": -1}, "num_comm_heads must be at least 0; got -1"),
        ({"tie_margin": -0.1}, "tie_margin must be a finite number of at least 0; got -0.1"),
        ({"tie_margin": math.nan}, "tie_margin must be a finite number of at least 0; got nan"),
        ({"comm_gate_bias": math.inf}, "comm_gate_bias must be a finite number; got inf"),
        ({"comm_gate_bias": "low"}, "comm_gate_bias must be a finite number; got 'low'"),
        ({"comm_gate_bias": -2, "bias": False}, "comm_gate_bias=-2 needs bias=True"),
    ],
)
def test_wrong_choices_are_refused_in_one_line(
    kind: Kind, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{kind.__name__}: {message}") as error:
        make(kind, **options)
    assert "\n" not in str(error.value)


@both
def test_cells_of_earlier_versions_compute_what_they_did(kind: Kind) -> None:
    cell, input = make(kind), random_input(make(kind), 3)
    expected = call(cell, input)
    # Pickled whole, they have no attribute of a choice.
    for name in ("input_gate", "competition", "comm_update", "tie_margin", "comm_gate_start"):
        del vars(cell)[name]
    assert all(map(torch.equal, call(cell, input), expected))
    assert cell.extra_repr() == "7, 15, 5, 2"
    # A choice has no parameters: their weights fit.
    for options in ({"input_gate": "straight_through"}, {"competition": "mechanisms"}):
        make(kind, **options, comm_update="convex").load_state_dict(cell.state_dict())
