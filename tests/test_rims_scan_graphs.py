"""Gradients where the graph around a sequence is unusual: every path as the readable loop."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import rims
from rims.scan import paths
from rims.scan.paths import Path
from rims.scan.recurrence import Recurrence
from scan_cases import needs_numba
from tolerances import assert_near

each_path = pytest.mark.parametrize("path", ["torch", "native"])


@pytest.fixture
def layer() -> Any:
    torch.manual_seed(0)
    return rims.RIM_GRU(6, 8, 4, 2, dtype=torch.float64)


@pytest.fixture
def input(layer: Any) -> Tensor:
    return torch.randn(5, 3, 6, dtype=torch.float64, requires_grad=True)


def compare(path: Path, gradients: Any) -> None:
    with rims.scan_path("reference"):
        expected = gradients()
    with rims.scan_path(path):
        got = gradients()
    for ours, theirs in zip(got, expected, strict=True):
        assert_near(ours, theirs)


@each_path
def test_differentiable_gradients_through_two_sequences(
    path: Path, layer: Any, input: Tensor
) -> None:
    def gradients() -> Any:
        first, h = layer(input[:2])
        second, _ = layer(input[2:], h)
        loss = first.sum() + second.square().sum()
        return torch.autograd.grad(loss, list(layer.parameters()), create_graph=True)

    compare(path, gradients)


@each_path
def test_differentiable_gradients_where_the_state_comes_of_the_input(
    path: Path, layer: Any, input: Tensor
) -> None:
    to_state = torch.randn(6, 8, dtype=torch.float64)

    def gradients() -> Any:
        output, _ = layer(input, (input.mean(0) @ to_state)[None])
        return torch.autograd.grad(output.square().sum(), input, create_graph=True)

    compare(path, gradients)


@each_path
def test_parameters_given_new_memory_before_going_back(
    path: Path, layer: Any, input: Tensor
) -> None:
    with rims.scan_path(path):
        (expected,) = torch.autograd.grad(layer(input)[0].square().sum(), input)
        output, _ = layer(input)
        for parameter in layer.parameters():
            parameter.data = parameter.data.clone()
        # would be found in the memory that was given back
        _rubbish = [torch.full((4, 24), torch.nan, dtype=torch.float64) for _ in range(100)]
        (got,) = torch.autograd.grad(output.square().sum(), input)
    assert_near(got, expected)


def recurrences(monkeypatch: pytest.MonkeyPatch) -> list[Recurrence]:
    """Every native recurrence that is made from now on."""
    kind = paths.recurrence("native", torch.zeros(()), "forward")
    made: list[Recurrence] = []

    class Counted(kind):  # type: ignore[misc,valid-type]
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(paths, "recurrence", lambda *_: Counted)
    return made


@needs_numba
def test_weights_are_packed_once_for_both_ways(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, input = recurrences(monkeypatch), torch.randn(200, 16, 6, dtype=torch.float64)
    loss = layer(input)[0].square().sum()
    first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    assert len(made) == 1
    second = torch.autograd.grad(loss, list(layer.parameters()))
    assert len(made) == 2
    assert all(map(torch.equal, first, second))


@needs_numba
def test_single_steps_keep_no_packed_weights(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, input = recurrences(monkeypatch), torch.randn(1, 1, 6, dtype=torch.float64)
    output = layer(input)[0]
    alive = weakref.ref(made.pop())
    assert alive() is None
    output.sum().backward()
    assert len(made) == 1


@needs_numba
def test_parameters_given_other_values_before_going_back(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, input = recurrences(monkeypatch), torch.randn(200, 16, 6, dtype=torch.float64)
    output, _ = layer(input)
    for parameter in layer.parameters():
        parameter.data = 2 * parameter.data
    output.sum().backward()
    assert len(made) == 2  # what had been packed of the old ones was not used


def test_another_default_device(layer: Any, input: Tensor) -> None:
    expected, _ = layer(input)
    with torch.device("meta"):
        output, _ = layer(input)
    assert_near(output, expected)


def test_jacobian_of_many_outputs_at_once(layer: Any, input: Tensor) -> None:
    def last(x: Tensor) -> Any:
        return layer(x)[0].sum(0)

    jacobian: Any = torch.autograd.functional.jacobian
    assert_near(jacobian(last, input, vectorize=True), jacobian(last, input))


def test_traced_by_dispatch_computes_on_other_input(layer: Any, input: Tensor) -> None:
    traced: Any = make_fx(lambda x: layer(x)[0])(input)
    other = torch.randn_like(input)
    assert_near(traced(other), layer(other)[0])


def test_exported_without_gradients_has_gradients(layer: Any, input: Tensor) -> None:
    with torch.no_grad():
        program = torch.export.export(layer, (input,)).module()
    (got,) = torch.autograd.grad(program(input)[0].square().sum(), input)
    (expected,) = torch.autograd.grad(layer(input)[0].square().sum(), input)
    assert_near(got, expected)
