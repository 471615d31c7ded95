"""Layers that read repeated inputs: the same numbers as of the inputs written out."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import rims
from rims.scan.input_side import InputSide
from rims.scan.paths import Path
from scan_cases import LayerKind, all_paths, both_sides, chunks_of, fast_paths, input_side

I, D, N, K = 7, 12, 4, 2  # noqa: E741
T, B, U = 11, 5, 3

both_layers = pytest.mark.parametrize("kind", [rims.RIM_LSTM, rims.RIM_GRU])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(kind: LayerKind, **options: Any) -> rims.RIM_LSTM | rims.RIM_GRU:
    layer = kind(I, D, N, K, dtype=torch.float64, learned_initial_state=True, **options)
    for name, parameter in layer.named_parameters():
        if "initial" in name:
            torch.nn.init.normal_(parameter)
    return layer


def make_rows() -> Tensor:
    return torch.randn(U, I, dtype=torch.float64, requires_grad=True)


def results(layer: Any, rows: Tensor, input: Any, **flags: Tensor) -> list[Tensor]:
    """Output, and the gradients of the rows and of all parameters."""
    layer.zero_grad()
    rows.grad = None
    output, _ = layer(input, **flags)
    output.sin().sum().backward()
    gradients = [p.grad for p in (rows, *layer.parameters()) if p.grad is not None]
    assert len(gradients) == 1 + len(list(layer.parameters()))
    return [output.detach(), *(gradient.clone() for gradient in gradients)]


def check(layer: Any, place: Tensor, **flags: Tensor) -> None:
    rows = make_rows()
    expected = results(layer, rows, rows[place], **flags)
    got = results(layer, rows, rims.RepeatedInput(rows, place), **flags)
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@all_paths
@both_layers
def test_repeated_input_equals_rows_at_their_places(kind: LayerKind, path: Path) -> None:
    with rims.scan_path(path):
        check(make(kind), torch.randint(U, (T, B)), reset=torch.rand(T, B) < 0.3)


@fast_paths
@both_sides
@both_layers
def test_repeated_input_over_several_chunks(
    kind: LayerKind, side: type[InputSide], path: Path
) -> None:
    with rims.scan_path(path), chunks_of(4 * B), input_side(side):
        check(make(kind), torch.randint(U, (T, B)), reset=torch.rand(T, B) < 0.3)


@both_layers
def test_repeated_input_of_layers_and_directions(kind: LayerKind) -> None:
    check(make(kind, num_layers=2, bidirectional=True), torch.randint(U, (T, B)))


@both_layers
def test_repeated_input_batch_first_unbatched_and_masked(kind: LayerKind) -> None:
    check(make(kind, batch_first=True), torch.randint(U, (B, T)))
    check(make(kind), torch.randint(U, (T,)))
    check(make(kind), torch.randint(U, (T, B)), mask=torch.rand(T, B) < 0.7)


@both_layers
def test_repeated_input_without_gradients(kind: LayerKind) -> None:
    layer, rows, place = make(kind), make_rows(), torch.randint(U, (T, B))
    with torch.no_grad():
        expected, got = layer(rows[place])[0], layer(rims.RepeatedInput(rows, place))[0]
    torch.testing.assert_close(expected, got, rtol=1e-9, atol=1e-9)


@both_layers
def test_rows_that_no_step_reads_have_gradient_zero(kind: LayerKind) -> None:
    rows = make_rows()
    make(kind)(rims.RepeatedInput(rows, torch.ones(T, B, dtype=torch.long)))[0].sum().backward()
    assert rows.grad is not None
    assert rows.grad[1].abs().sum() > 0
    assert not rows.grad[[0, 2]].any()


@both_layers
def test_second_derivative_of_repeated_input(kind: LayerKind) -> None:
    layer, rows, place = make(kind), make_rows(), torch.randint(U, (3, 2))

    def second(input: Any) -> Tensor:
        (first,) = torch.autograd.grad(layer(input)[0].sin().sum(), rows, create_graph=True)
        return torch.autograd.grad(first.square().sum(), rows)[0]

    expected, got = second(rows[place]), second(rims.RepeatedInput(rows, place))
    torch.testing.assert_close(expected, got, rtol=1e-9, atol=1e-9)


@both_layers
def test_repeated_input_under_autocast(kind: LayerKind) -> None:
    layer, rows, place = make(kind).float(), torch.randn(U, I), torch.randint(U, (T, B))
    with torch.autocast("cpu"):
        expected, got = layer(rows[place])[0], layer(rims.RepeatedInput(rows, place))[0]
    assert expected.dtype == got.dtype
    # Of distinct rows alone it is another product, whose bfloat16 numbers may be rounded up where
    # they were rounded down; so may those of the two or three that follow.
    bound = 4 * torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(got, expected, rtol=bound, atol=bound)


# --- hooks of a cell


@all_paths
@both_layers
@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode])
def test_a_pre_hook_changes_repeated_input_in_place(kind: LayerKind, path: Path, mode: Any) -> None:
    def doubled(module: Any, args: Any) -> None:
        args[0].mul_(2)

    layer, rows, place = make(kind), make_rows(), torch.randint(U, (T, B))
    with rims.scan_path(path), mode():
        expected = layer(2 * rows[place])[0]
        layer.cells[0].register_forward_pre_hook(doubled)
        assert torch.equal(layer(rims.RepeatedInput(rows, place))[0], expected)


@all_paths
@both_layers
def test_a_backward_hook_sees_the_gradient_of_repeated_input(kind: LayerKind, path: Path) -> None:
    layer, rows, place = make(kind), make_rows(), torch.randint(U, (T, B))
    input = rows[place].detach().requires_grad_()
    seen: list[Any] = []
    with rims.scan_path(path):
        (expected,) = torch.autograd.grad(layer(input)[0].square().sum(), input)
        layer.cells[0].register_full_backward_hook(lambda module, grads, _: seen.append(grads))
        layer(rims.RepeatedInput(rows, place))[0].square().sum().backward()
    ((grad, *_),) = seen
    torch.testing.assert_close(grad, expected)


def test_repeated_input_of_the_wrong_size_is_refused_as_any() -> None:
    wrong = rims.RepeatedInput(torch.randn(U, I + 1), torch.randint(U, (T, B)))
    with pytest.raises(RuntimeError, match=f"Expected {I}, got {I + 1}"):
        rims.RIM_LSTM(I, D, N, K)(wrong)
