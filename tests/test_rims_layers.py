"""What a layer does with its cells: dropout, sizes per layer, numbers, parameters, copies."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

import rims
from layer_cases import (
    B,
    D,
    I,
    K,
    Kind,
    N,
    T,
    both,
    cells_of,
    make,
    shapes,
    torch_may_remark,
    with_projection,
)
from rims.step import RIMCell
from tolerances import assert_near


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- dropout between layers


@both
def test_dropout_acts_between_layers_in_training_only(kind: Kind) -> None:
    # Dropping all of layer 0 equals running layer 1 on zeros.
    layer = make(kind, num_layers=2, dropout=1.0, dtype=torch.float64)
    second = kind(D, D, N, K, dtype=torch.float64)
    second.cells[0].load_state_dict(cells_of(layer)[1].state_dict())
    input = torch.randn(T, B, I, dtype=torch.float64)
    expected, _ = second(torch.zeros(T, B, D, dtype=torch.float64))
    assert_near(layer(input)[0], expected)
    plain = make(kind, num_layers=2, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(input)[0], plain(input)[0])
    assert not torch.equal(plain(input)[0], expected)


@both
def test_dropout_is_drawn_anew_and_not_on_the_output(kind: Kind) -> None:
    layer = make(kind, num_layers=2, dropout=0.5)
    input = torch.randn(T, B, I)
    with rims.trace(layer) as trace:
        one, two = layer(input)[0], layer(input)[0]
    assert not torch.equal(one, two)
    first = trace.active["cells.0"]
    assert torch.equal(first[:T], first[T:])  # layer 0 is before the dropout
    active = trace.active["cells.1"][:T].repeat_interleave(D // N, dim=-1)
    assert (one[active] != 0).all()


@both
def test_dropout_with_one_layer_warns_like_torch(kind: Kind) -> None:
    for constructor in pair_of_constructors(kind):
        with pytest.warns(UserWarning, match=r"dropout.*0\.5"):
            constructor(dropout=0.5)


def pair_of_constructors(kind: Kind) -> tuple[Any, Any]:
    theirs = nn.LSTM if kind is rims.RIM_LSTM else nn.GRU
    return partial(theirs, I, D), partial(kind, I, D, N, K)


@pytest.mark.parametrize(
    "kind",
    [
        rims.RIM_LSTM,
        rims.RIM_GRU,
    ],
)
def test_dropout_warning_points_at_the_caller(kind: Kind) -> None:
    with pytest.warns(UserWarning, match="dropout") as caught:
        kind(I, D, N, K, dropout=0.5)
    assert caught[0].filename == __file__


# --- sizes per layer, and what passes between layers


@both
def test_sizes_per_layer(kind: Kind) -> None:
    layer: Any = kind(I, (6, 10), (3, 5), (1, 2), num_layers=2, bidirectional=True)
    assert [(c.input_size, c.hidden_size, c.num_rims, c.k) for c in cells_of(layer)] == [
        (I, 6, 3, 1),
        (I, 6, 3, 1),
        (12, 10, 5, 2),
        (12, 10, 5, 2),
    ]
    input = torch.randn(T, B, I)
    output, state = layer(input)
    per_layer = [(2, B, 6), (2, B, 10)]
    assert shapes(output) == (T, B, 20)
    assert shapes(state) == ([per_layer] * 2 if kind is rims.RIM_LSTM else per_layer)
    again, _ = layer(input, state)
    assert shapes(again) == (T, B, 20)
    assert not torch.equal(again, output)
    unbatched = shapes(layer(input[:, 0])[1])
    single = [(2, 6), (2, 10)]
    assert unbatched == ([single] * 2 if kind is rims.RIM_LSTM else single)
    wrong: Any = tuple(torch.zeros(2, B, 6) for _ in range(2))
    with pytest.raises(RuntimeError, match=r"Expected h_0 size \[\(2, 3, 6\), \(2, 3, 10\)\], got"):
        layer(input, (wrong, wrong) if kind is rims.RIM_LSTM else wrong)


@both
@pytest.mark.parametrize("use_inactive", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_two_layers_are_one_after_the_other(
    kind: Kind, use_inactive: bool, bidirectional: bool
) -> None:
    sizes: dict[str, Any] = {"bidirectional": bidirectional, "dtype": torch.float64}
    stacked: Any = kind(
        I, (6, 10), (3, 5), (1, 2), num_layers=2, use_inactive=use_inactive, **sizes
    )
    directions = 2 if bidirectional else 1
    first: Any = kind(I, 6, 3, 1, **sizes)
    second: Any = kind(6 * directions, 10, 5, 2, **sizes)
    for i, cell in enumerate(cells_of(stacked)):
        part = first if i < directions else second
        part.cells[i % directions].load_state_dict(cell.state_dict())
    input = torch.randn(T, B, I, dtype=torch.float64)
    with rims.trace(first) as trace:
        between, _ = first(input)
    active = torch.cat([trace.active[f"cells.{i}"] for i in range(directions)], dim=-1)
    if not use_inactive:
        between = between * active.repeat_interleave(2, dim=-1)
    assert_near(stacked(input)[0], second(between)[0])


@both
def test_blocked_grad_changes_gradients_only(kind: Kind) -> None:
    free = make(kind, num_layers=2, dtype=torch.float64)
    blocked = make(kind, num_layers=2, blocked_grad=True, dtype=torch.float64)
    blocked.load_state_dict(free.state_dict())
    input = torch.randn(1, B, I, dtype=torch.float64)
    gradients, outputs = [], []
    for layer in (free, blocked):
        h = torch.randn(2, B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        h.requires_grad_()
        hx = (h, torch.zeros_like(h)) if kind is rims.RIM_LSTM else h
        with rims.trace(layer) as trace:
            output, _ = layer(input, hx)
        outputs.append(output)
        gradients.append(torch.autograd.grad((output**2).sum(), h)[0][0].reshape(B, N, D // N))
    idle = ~trace.active["cells.0"][0]
    assert torch.equal(outputs[0], outputs[1])
    assert (gradients[0][idle] != 0).any(-1).all()
    assert gradients[1][idle].count_nonzero() == 0
    assert_near(gradients[1][~idle], gradients[0][~idle])


@both
def test_use_inactive_false_hides_idle_states_from_the_next_layer(kind: Kind) -> None:
    layer = make(kind, num_layers=2, use_inactive=False, dtype=torch.float64)
    input = torch.randn(1, 1, I, dtype=torch.float64)
    h = torch.randn(2, 1, D, dtype=torch.float64).requires_grad_()
    hx = (h, torch.zeros_like(h)) if kind is rims.RIM_LSTM else h
    with rims.trace(layer) as trace:
        output, _ = layer(input, hx)
    (gradient,) = torch.autograd.grad((output**2).sum(), h)
    idle = ~trace.active["cells.0"][0, 0]
    assert gradient[0, 0].reshape(N, D // N)[idle].count_nonzero() == 0


# --- numbers


@torch_may_remark
@with_projection
@pytest.mark.parametrize("bidirectional", [False, True])
def test_without_attention_it_is_torch_per_mechanism(
    kind: Kind, proj_size: int, bidirectional: bool
) -> None:
    """All active, no query and no communication: every mechanism is an nn.LSTM of x W^v / 2."""
    options: dict[str, Any] = {"bidirectional": bidirectional, "dtype": torch.float64}
    if kind is rims.RIM_LSTM:
        options["proj_size"] = proj_size
    layer: Any = kind(I, D, N, N, **options)
    input = torch.randn(T, B, I, dtype=torch.float64)
    outputs, finals = [], []
    for direction, cell in enumerate(cells_of(layer)):
        with torch.no_grad():
            for name in (
                "query_weight",
                "comm_output_weight",
                "comm_output_bias",
            ):
                cell.get_parameter(name).zero_()
        read = 0.5 * input @ cell.value_weight
        columns, ends = [], []
        for m in range(N):
            reference = one_mechanism(cell, m)
            output, state = reference(read.flip(0) if direction else read)
            columns.append(output.flip(0) if direction else output)
            ends.append(state if kind is rims.RIM_LSTM else (state,))
        outputs.append(torch.cat(columns, dim=-1))
        finals.append([torch.cat(parts, dim=-1) for parts in zip(*ends, strict=True)])
    output, state = layer(input)
    assert_near(output, torch.cat(outputs, dim=-1))
    states = state if kind is rims.RIM_LSTM else (state,)
    for got, expected in zip(states, zip(*finals, strict=True), strict=True):
        assert_near(got, torch.cat(expected))


def one_mechanism(cell: RIMCell, m: int) -> Any:
    """Torch's layer with the weights of mechanism ``m``."""
    reads, size = cell.weight_ih.shape[-1], cell.hidden_size // cell.num_rims
    reference: nn.Module = (
        nn.LSTM(reads, size, proj_size=cell.proj_size // cell.num_rims, dtype=torch.float64)
        if isinstance(cell, rims.RIM_LSTMCell)
        else nn.GRU(reads, size, dtype=torch.float64)
    )
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(cell.get_parameter(name.removesuffix("_l0"))[m])
    return reference


@both
def test_gradient_is_numerically_right_where_all_are_active(kind: Kind) -> None:
    layer: Any = kind(
        3, 4, 2, 2, num_layers=2, bidirectional=True, dtype=torch.float64,
        input_key_size=3, num_comm_heads=2, comm_key_size=2, comm_value_size=3,
    )  # fmt: skip
    names, _ = zip(*layer.named_parameters(), strict=True)
    input = torch.randn(2, 1, 3, dtype=torch.float64).requires_grad_()
    h, c = (torch.randn(4, 1, 4, dtype=torch.float64).requires_grad_() for _ in range(2))

    def run(input: Tensor, h: Tensor, c: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, parameters, strict=True))
        hx = (h, c) if kind is rims.RIM_LSTM else h + c
        output, state = torch.func.functional_call(layer, given, (input, hx))
        return (output, *state) if kind is rims.RIM_LSTM else (output, state)

    # fast mode: one random direction, as there are hundreds of parameters
    assert gradcheck(run, (input, h, c, *layer.parameters()), fast_mode=True)


@both
def test_second_derivative_is_numerically_right_where_all_are_active(kind: Kind) -> None:
    layer: Any = kind(3, 4, 2, 2, dtype=torch.float64)
    input = torch.randn(2, 1, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], (input,))


@both
def test_long_sequence_stays_finite(kind: Kind) -> None:
    layer = make(kind)
    output, _ = layer(torch.randn(300, B, I))
    (output[-1] ** 2).sum().backward()
    assert output.isfinite().all()
    if kind is rims.RIM_LSTM:  # an LSTM's h is below 1, and an update below 1 is added
        assert output.abs().max() < 2
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name
