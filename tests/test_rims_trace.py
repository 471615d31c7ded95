"""Recording which mechanisms were active and who read whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import rims
from rims.scan import scan_path

#: Steps, batch, features.
T, B, I = 7, 3, 11  # noqa: E741
#: hidden_size, num_rims, k, heads.
D, N, K, M = 10, 5, 2, 4

both = pytest.mark.parametrize("kind", [rims.RIM_LSTM, rims.RIM_GRU])
Kind = type[rims.RIM_LSTM] | type[rims.RIM_GRU]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(kind: Kind, **options: Any) -> Any:
    return kind(I, D, N, K, **options)


class Agent(nn.Module):
    """Two recurrent parts in different places of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.core = rims.RIM_LSTM(I, D, N, K, num_layers=2)
        self.heads = nn.ModuleDict({"value": rims.RIM_GRU(D, 6, 3, 1)})

    def forward(self, input: Tensor) -> Any:
        return self.heads["value"](self.core(input)[0])


@both
def test_trace_shapes_and_exactly_k(kind: Kind) -> None:
    layer = make(kind, num_layers=2, bidirectional=True)
    with rims.trace(layer) as trace:
        layer(torch.randn(T, B, I))
    names = [f"cells.{i}" for i in range(4)]
    for recorded in (trace.active, trace.input_attention, trace.communication):
        assert list(recorded) == names
    for name in names:
        assert trace.active[name].shape == (T, B, N)
        assert trace.active[name].dtype == torch.bool
        assert (trace.active[name].sum(-1) == K).all()
        assert trace.input_attention[name].shape == (T, B, N, 2)
        assert trace.communication[name].shape == (T, B, M, N, N)
        for weights in (trace.input_attention[name], trace.communication[name]):
            # float32 rounding of a sum of at most five weights
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@both
def test_trace_tells_what_changed(kind: Kind) -> None:
    layer = make(kind)
    state: Any = None
    previous = torch.zeros(B, D)
    with rims.trace(layer) as trace:
        for x in torch.randn(T, 1, B, I):
            output, state = layer(x, state)
            changed = (output[0] != previous).reshape(B, N, D // N).any(-1)
            assert torch.equal(trace.active["cells.0"][-1], changed)
            previous = output[0]


@both
def test_trace_joins_calls_along_time(kind: Kind) -> None:
    layer = make(kind)
    input = torch.randn(T, B, I)
    with rims.trace(layer) as whole:
        layer(input)
    with rims.trace(layer) as stepped:
        state: Any = None
        for x in (input[:3], input[3:6], input[6:]):
            _, state = layer(x, state)
    assert torch.equal(stepped.active["cells.0"], whole.active["cells.0"])
    for name in ("input_attention", "communication"):
        # single steps are computed in another order than long sequences
        got, expected = getattr(stepped, name)["cells.0"], getattr(whole, name)["cells.0"]
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_trace_names_layers_by_their_path() -> None:
    agent = Agent()
    with rims.trace(agent) as trace:
        agent(torch.randn(T, B, I))
    assert {name: tuple(a.shape) for name, a in trace.active.items()} == {
        "core.cells.0": (T, B, 5),
        "core.cells.1": (T, B, 5),
        "heads.value.cells.0": (T, B, 3),
    }
    modules = dict(agent.named_modules())
    assert all(name in modules for name in trace.active)


def test_trace_records_only_the_model_given() -> None:
    agent = Agent()
    with rims.trace(agent.heads) as trace:
        agent(torch.randn(T, B, I))
    assert list(trace.active) == ["value.cells.0"]


@both
def test_trace_records_nothing_outside(kind: Kind) -> None:
    layer = make(kind)
    layer(torch.randn(T, B, I))
    with rims.trace(layer) as trace:
        assert trace.active == {}
        layer(torch.randn(2, B, I))
    layer(torch.randn(T, B, I))
    assert trace.active["cells.0"].shape == (2, B, N)
    with rims.trace(layer) as other:
        pass
    assert other.active == other.input_attention == other.communication == {}


def test_trace_of_a_model_without_layers_is_empty() -> None:
    linear = nn.Linear(3, 2)
    with rims.trace(linear) as trace:
        linear(torch.zeros(5, 3))
    assert trace.active == {}


def with_slope(layer: Any, input: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of its sum."""
    output, _ = layer(input)
    (slope,) = torch.autograd.grad(output.sum(), input)
    return output, slope


@both
def test_trace_is_detached_and_changes_no_result(kind: Kind) -> None:
    layer = make(kind, num_layers=2)
    input = torch.randn(T, B, I, requires_grad=True)
    plain = with_slope(layer, input)
    with rims.trace(layer) as trace:
        traced = with_slope(layer, input)
    for got, expected in zip(traced, plain, strict=True):
        assert torch.equal(got, expected)
    with scan_path("reference"), rims.trace(layer) as read:  # the loop itself knows both attentions
        layer(input)
    for name in ("input_attention", "communication"):
        torch.testing.assert_close(
            getattr(trace, name)["cells.1"], getattr(read, name)["cells.1"], rtol=1e-5, atol=1e-6
        )
    before = torch.cat([torch.zeros(1, B, D), plain[0][:-1]])
    changed = (plain[0] != before).reshape(T, B, N, D // N).any(-1)
    assert torch.equal(trace.active["cells.1"], changed)
    for recorded in (trace.active, trace.input_attention, trace.communication):
        assert not any(tensor.requires_grad for tensor in recorded.values())


@both
def test_trace_of_the_backward_direction_is_in_order_of_time(kind: Kind) -> None:
    layer = make(kind, bidirectional=True)
    alone = make(kind)
    alone.cells[0].load_state_dict(layer.cells[1].state_dict())
    input = torch.randn(T, B, I)
    with rims.trace(layer) as trace:
        output, _ = layer(input)
    with rims.trace(alone) as reversed_trace:
        expected, _ = alone(input.flip(0))
    assert torch.equal(output[..., D:], expected.flip(0))
    for name in ("active", "input_attention", "communication"):
        got = getattr(trace, name)["cells.1"]
        assert torch.equal(got, getattr(reversed_trace, name)["cells.0"].flip(0))
        assert not torch.equal(got, got.flip(0))


@both
def test_trace_of_packed_has_nobody_active_in_the_padding(kind: Kind) -> None:
    layer = make(kind, bidirectional=True)
    packed = pack_sequence([torch.randn(n, I) for n in (5, 3, 2)])
    with rims.trace(layer) as trace:
        layer(packed)
    expected = [[K * (t < n) for n in (5, 3, 2)] for t in range(5)]
    for name in ("cells.0", "cells.1"):
        assert trace.active[name].sum(-1).tolist() == expected


@both
def test_trace_ends_with_an_exception(kind: Kind) -> None:
    layer = make(kind)

    def fail() -> None:
        with rims.trace(layer) as trace:
            traces.append(trace)
            layer(torch.randn(2, B, I))
            raise KeyError("stop")

    traces: list[rims.Trace] = []
    with pytest.raises(KeyError, match="stop"):
        fail()
    assert layer.recorders == []
    layer(torch.randn(T, B, I))
    assert traces[0].active["cells.0"].shape == (2, B, N)


def test_trace_goes_on_after_one_inside() -> None:
    layer = make(rims.RIM_LSTM)
    with rims.trace(layer) as outer:
        with rims.trace(layer):
            layer(torch.randn(2, B, I))
        layer(torch.randn(3, B, I))
    # at least what ran while it alone was open
    assert outer.active["cells.0"].shape[0] == 5


def checkpointed(layer: Any, input: Tensor, use_reentrant: bool) -> Tensor:
    output, _ = checkpoint(layer, input, use_reentrant=use_reentrant)
    return output  # type: ignore[no-any-return]


@both
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("open_on_the_way_back", [True, False])
@pytest.mark.parametrize("options", [{}, {"comm_dropout": 0.3}], ids=["fast", "loop"])
def test_trace_of_a_checkpointed_layer_records_a_sequence_once(
    kind: Kind, use_reentrant: bool, open_on_the_way_back: bool, options: dict[str, Any]
) -> None:
    layer, input = make(kind, **options), torch.randn(T, B, I, requires_grad=True)
    torch.manual_seed(1)
    (expected,) = torch.autograd.grad(layer(input)[0].square().sum(), input)
    torch.manual_seed(1)
    with rims.trace(layer) as trace:
        loss = checkpointed(layer, input, use_reentrant).square().sum()
        if open_on_the_way_back:
            loss.backward()  # type: ignore[no-untyped-call]
    if not open_on_the_way_back:
        loss.backward()  # type: ignore[no-untyped-call]
    assert input.grad is not None
    assert torch.equal(input.grad, expected)
    assert trace.active["cells.0"].shape == (T, B, N)
    # control: a second forward is a second sequence
    with rims.trace(layer) as twice:
        layer(input)
        layer(input)
    assert twice.active["cells.0"].shape == (2 * T, B, N)


@both
def test_trace_inside_vmap_is_refused_in_one_line(kind: Kind) -> None:
    layer, input = make(kind), torch.randn(T, B, I)

    def run(sequence: Tensor) -> Tensor:
        output: Tensor = layer(sequence)[0]
        return output

    with rims.trace(layer) as trace:
        with pytest.raises(RuntimeError, match=r"rims.trace: .*vmap") as caught:
            torch.vmap(run, in_dims=1)(input)
        assert "\n" not in str(caught.value)
        # the gradient of one whole batch can be recorded
        torch.func.grad(lambda x: run(x).sum())(input)
    assert trace.active["cells.0"].shape == (T, B, N)
    assert trace.usage["cells.0"].share.shape == (N,)
