"""Gradients where the graph around a sequence is unusual: every path as the readable loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import rims
from layer_cases import assert_near
from rims.scan.paths import Path

paths = pytest.mark.parametrize("path", ["torch", "native"])


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


@paths
def test_differentiable_gradients_through_two_sequences(
    path: Path, layer: Any, input: Tensor
) -> None:
    def gradients() -> Any:
        first, h = layer(input[:2])
        second, _ = layer(input[2:], h)
        loss = first.sum() + second.square().sum()
        return torch.autograd.grad(loss, list(layer.parameters()), create_graph=True)

    compare(path, gradients)


@paths
def test_differentiable_gradients_where_the_state_comes_of_the_input(
    path: Path, layer: Any, input: Tensor
) -> None:
    to_state = torch.randn(6, 8, dtype=torch.float64)

    def gradients() -> Any:
        output, _ = layer(input, (input.mean(0) @ to_state)[None])
        return torch.autograd.grad(output.square().sum(), input, create_graph=True)

    compare(path, gradients)


@paths
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
