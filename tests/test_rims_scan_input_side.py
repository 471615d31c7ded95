"""The two orders of the input side's products: the same numbers, and which one is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rims
from rims.scan.input_side import Apart, InputSide, Joined, choose
from rims.scan.paths import Path
from rims.scan.problem import Weights
from scan_cases import (
    assert_near,
    both_cells,
    both_sides,
    chunks_of,
    fast_paths,
    input_side,
    make_case,
    results,
)


@fast_paths
@both_sides
@both_cells
@pytest.mark.parametrize("rows", [10**6, 6])
def test_both_orders_agree_with_the_reference(
    path: Path, side: type[InputSide], kind: Any, rows: int
) -> None:
    torch.manual_seed(0)
    sizes = (7, 6, 4, 2)
    case = make_case(
        kind, sizes, 5, 3, resets=True, padding=True, input_key_size=5, input_value_size=9
    )
    with input_side(side), chunks_of(rows):
        assert_near(results(path, case), results("reference", case))


@both_sides
@both_cells
def test_without_gradients_both_orders_agree_too(side: type[InputSide], kind: Any) -> None:
    torch.manual_seed(0)
    case = make_case(kind, (7, 6, 4, 2), 5, 3)
    with torch.no_grad(), input_side(side), chunks_of(6):
        got, expected = case.run("torch").output, case.run("reference").output
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("sizes", "rows", "save", "input_needs_grad", "expected"),
    [
        ((600, 300, 6, 4), 6400, True, False, Apart),
        ((64, 64, 4, 3), 512, True, False, Joined),
        ((64, 64, 4, 3), 512, True, True, Joined),
        ((64, 64, 4, 3), 3, True, False, Apart),  # the weights' own product would not pay
        ((64, 64, 4, 3), 512, False, False, Joined),
        ((512, 600, 6, 4), 51200, True, False, Joined),
        ((512, 600, 6, 4), 51200, True, True, Apart),  # through all units of the layer
    ],
)
def test_fewer_multiplications_decide(
    sizes: tuple[int, int, int, int],
    rows: int,
    save: bool,
    input_needs_grad: bool,
    expected: type[InputSide],
) -> None:
    w = Weights.of(rims.RIM_LSTM(*sizes, device="meta").rim_cells[0])
    assert choose(w, rows, save, input_needs_grad) is expected


def test_whether_the_input_needs_a_gradient_changes_the_order_and_no_result() -> None:
    torch.manual_seed(0)
    layer = rims.RIM_LSTM(128, 64, 4, 2, dtype=torch.float64)
    w, input = Weights.of(layer.rim_cells[0]), torch.randn(64, 32, 128, dtype=torch.float64)
    assert [choose(w, 2048, True, needs) for needs in (False, True)] == [Joined, Apart]
    found = []
    for needs in (False, True):
        layer.zero_grad()
        output, _ = layer(input.requires_grad_(needs))
        output.sin().sum().backward()
        found.append([output.detach(), *(p.grad for p in layer.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
