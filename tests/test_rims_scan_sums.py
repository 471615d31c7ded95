"""Gradients of the loop's weights: sums over rows, however these are shared out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rims.scan.graph import operator
from rims.scan.problem import Weights
from scan_cases import (
    CELLS,
    assert_equal,
    assert_near,
    both_cells,
    chunks_of,
    fast_paths,
    make_case,
    needs_numba,
    results,
    threads,
)
from selection import short
from tolerances import assert_rounds


@needs_numba
@both_cells
@pytest.mark.parametrize("rows", [200, 10**6])
def test_groups_of_several_blocks_and_a_small_last_one(kind: Any, rows: int) -> None:
    """On one thread 290 samples are ten blocks in four groups; the last has two samples."""
    torch.manual_seed(0)
    case = make_case(kind, (3, 5, 3, 2), 4, 290, resets=True, padding=True)
    with threads(1), chunks_of(rows):
        got = results("native", case)
        assert_near(got, results("reference", case))
        assert_equal(results("native", case), got)


@fast_paths
@both_cells
def test_weights_in_another_order_in_memory(path: Any, kind: Any) -> None:
    torch.manual_seed(0)
    case = make_case(kind, (3, 4, 3, 2), 5, 6, resets=True)
    for parameter in case.cell.parameters():
        dims = tuple(range(parameter.dim()))
        turned = (*dims[1:], dims[0])
        back = (dims[-1], *dims[:-1])
        parameter.data = parameter.data.permute(turned).contiguous().permute(back)
    assert not case.cell.weight_hh.is_contiguous()
    assert_near(results(path, case), results("reference", case))


@fast_paths
@pytest.mark.parametrize("kind", short(CELLS, 1))
def test_float32_gradients_of_a_long_sequence_are_near_those_of_double(
    path: Any, kind: Any
) -> None:
    """Of a loss whose terms have one sign, so that sums grow, and what they lose with them."""
    torch.manual_seed(0)
    steps, batch = 800, 16
    exact = make_case(kind, (3, 4, 3, 3), steps, batch)
    single = make_case(kind, (3, 4, 3, 3), steps, batch, dtype=torch.float32)
    # Numbers that both types hold, so that only arithmetic differs.
    single.cell.load_state_dict(exact.cell.state_dict())
    exact.cell.load_state_dict(single.cell.state_dict())
    given = single.input, single.state
    exact = exact._replace(input=given[0].double(), state=tuple(s.double() for s in given[1]))
    grads = []
    for case in (single, exact):
        parameters = list(case.cell.parameters())
        grads.append(torch.autograd.grad(case.run(path).output.sum(), parameters))
    for got, want in zip(*grads, strict=True):
        assert_rounds(got, want, steps * batch)  # a row less would be seen


@fast_paths
@both_cells
def test_gradients_of_an_empty_batch_are_zero(path: Any, kind: Any) -> None:
    """Exported programs meet one; eager code takes the readable loop for it."""
    case = make_case(kind, (3, 4, 3, 2), 5, 2)
    weights = [weight.detach().requires_grad_() for weight in Weights.of(case.cell).given()]
    h, c = case.state[0][:0], case.state[1][:0] if len(case.state) == 2 else None
    given = (case.input[:, :0], h, c, None, None, weights, None, None, 2, 4, False, path, True)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        output, *_ = operator.scan_op(*given)
        found = torch.autograd.grad(output.sum(), weights)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(not gradient.any() for gradient in found)
