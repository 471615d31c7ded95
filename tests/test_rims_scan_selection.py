"""Who is active on every path: ties, NaN and infinity, exactly k, and what idle ones keep."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import rims
from rims.scan.paths import Path
from scan_cases import (
    Case,
    all_paths,
    assert_near,
    both_cells,
    cases,
    fast_paths,
    make_case,
    results,
)

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


@all_paths
@PROPERTY
@given(case=cases())
def test_exactly_k_change_and_the_others_keep_every_bit(path: Path, case: Case) -> None:
    # the whole sequence a step at a time, to see every state: also c, which a layer does not show
    state = case.state
    for t in range(len(case.input)):
        flags = [None if flag is None else flag[[t]] for flag in (case.reset, case.valid)]
        one = case._replace(input=case.input[[t]], state=state, reset=flags[0], valid=flags[1])
        did = one.run(path)
        if case.reset is not None:
            fresh = case.cell.initial_state(case.input[t])
            flag = case.reset[t, :, None]
            state = tuple(torch.where(flag, f, s) for f, s in zip(fresh, state, strict=True))
        real = torch.ones(len(case.input[t])) if case.valid is None else case.valid[t]
        assert did.active[0].sum(-1).tolist() == (case.cell.k * real).tolist()
        idle = ~did.active[0]
        for old, new in zip(state, did.state, strict=True):
            same = (old == new).reshape(*idle.shape, -1)
            assert same[idle].all()
            assert not same[~idle].all(-1).any()
        state = did.state


@all_paths
@both_cells
@pytest.mark.parametrize("num_rims", [1, 2, 3, 5, 8, 9, 17])
def test_a_state_of_zeros_ties_all_mechanisms(path: Path, kind: Any, num_rims: int) -> None:
    torch.manual_seed(0)
    for k in {1, (num_rims + 1) // 2, num_rims}:
        case = make_case(kind, (5, 3, num_rims, k), 1, 3)
        for sign in (1.0, -1.0):  # -0.0 is no smaller than 0.0
            state = tuple(part * (0.0 * sign) for part in case.state)
            active = case._replace(state=state).run(path).active
            assert torch.equal(active, (torch.arange(num_rims) < k).expand(1, 3, -1))


#: Parameters that begin with an axis over mechanisms.
PER_MECHANISM = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "query_weight"]


@all_paths
@both_cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [1, 3, 8, 17])
@pytest.mark.parametrize(("num_rims", "k"), [(3, 1), (5, 2), (11, 5)])
def test_of_equal_mechanisms_the_first_are_active(
    path: Path, kind: Any, dtype: torch.dtype, unit: int, num_rims: int, k: int
) -> None:
    torch.manual_seed(unit)
    options: dict[str, Any] = {"input_key_size": 16, "learned_initial_state": True, "dtype": dtype}
    case = make_case(kind, (7, unit, num_rims, k), 4, 5, **options)
    cell = case.cell
    # Whole numbers, and a scale of a quarter: scores are exact in whatever order they are summed.
    with torch.no_grad():
        for weight in (cell.query_weight, cell.key_weight):
            weight.copy_(torch.randint(-3, 4, weight.shape))
        for name, parameter in cell.named_parameters():
            if name.split(".")[-1] in PER_MECHANISM:
                parameter.copy_(parameter[:1].clone().expand_as(parameter))
        for start in cell.initial:
            start.copy_(torch.randint(-3, 4, (unit,)).repeat(num_rims))
    input = torch.randint(-3, 4, case.input.shape).to(dtype)
    # every step begins anew, so every step ties all mechanisms
    case = case._replace(input=input, reset=torch.ones(4, 5, dtype=torch.bool))
    assert torch.equal(case.run(path).active, (torch.arange(num_rims) < k).expand(4, 5, -1))


def rows_of(values: dict[str, Tensor], index: list[int]) -> dict[str, Tensor]:
    """What belongs to some samples only: everything but the gradients of parameters."""
    sequences = ("output", "active", "gradient of input")
    return {
        name: value[:, index] if name in sequences else value[index]
        for name, value in values.items()
        if name in sequences or name.startswith(("last", "gradient of state"))
    }


@all_paths
@both_cells
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["input", "state"])
def test_a_spoiled_sample_reaches_no_other(path: Path, kind: Any, bad: float, where: str) -> None:
    torch.manual_seed(0)
    # more than a tile of rows and not a whole number of them, with lanes to spare in every array
    case = make_case(kind, (5, 3, 5, 2), 4, 7, num_comm_heads=2, comm_key_size=3)
    expected = results(path, case)
    spoiled = case._replace(
        input=case.input.clone(), state=tuple(part.clone() for part in case.state)
    )
    if where == "input":
        spoiled.input[1, 2, 1] = bad
    else:
        spoiled.state[-1][2, 4] = bad
    got = results(path, spoiled)
    others = [0, 1, 3, 4, 5, 6]
    assert torch.equal(got["active"].sum(-1), torch.full((4, 7), 2))
    for name, value in rows_of(got, others).items():
        assert torch.equal(value, rows_of(expected, others)[name]), name
    assert not torch.equal(got["output"][:, 2], expected["output"][:, 2])


def spoiled_mechanisms(kind: Any, bad: float) -> Case:
    """A batch in which mechanisms 0; 4; 1, 3; 0, 2, 4; none hold ``bad``."""
    torch.manual_seed(0)
    case = make_case(kind, (5, 3, 5, 2), 3, 5)
    h = case.state[0].clone()
    for b, mechanisms in enumerate([[0], [4], [1, 3], [0, 2, 4], []]):
        for m in mechanisms:
            h[b, 3 * m + 1] = bad
    return case._replace(state=(h, *case.state[1:]))


@all_paths
@both_cells
def test_nan_scores_count_as_largest(path: Path, kind: Any) -> None:
    case = spoiled_mechanisms(kind, math.nan)
    got, expected = results(path, case), results("reference", case)
    first = [row.nonzero()[:, 0].tolist() for row in got["active"][0]]
    # of several NaN the first are taken
    assert [0 in first[0], 4 in first[1], first[2], first[3]] == [True, True, [1, 3], [0, 2]]
    for name, value in rows_of(expected, [0, 1, 2, 3, 4]).items():
        # Autograd takes an idle mechanism's gradient times zero, which leaves NaN in it.
        spared = value.isnan() & name.startswith("gradient")
        torch.testing.assert_close(
            got[name].masked_fill(spared, 0), value.masked_fill(spared, 0), equal_nan=True
        )


@fast_paths
@both_cells
def test_huge_states_are_those_of_the_reference(path: Path, kind: Any) -> None:
    case = spoiled_mechanisms(kind, 1e100)
    got, expected = results(path, case), results("reference", case)
    everyone = [0, 1, 2, 3, 4]
    assert_near(rows_of(got, everyone), rows_of(expected, everyone))


@all_paths
@both_cells
def test_padding_is_never_computed_with(path: Path, kind: Any) -> None:
    torch.manual_seed(0)
    case = make_case(kind, (5, 3, 4, 2), 6, 3, padding=True)
    assert case.valid is not None
    expected = results(path, case)
    other = case.input + 100.0 * ~case.valid.unsqueeze(-1)
    got = results(path, case._replace(input=other))
    for name, value in rows_of(expected, [0, 1, 2]).items():
        assert torch.equal(value, rows_of(got, [0, 1, 2])[name]), name
    assert not expected["active"][~case.valid].any()
    assert not expected["gradient of input"][~case.valid].any()


@fast_paths
def test_large_scores_do_not_overflow(path: Path) -> None:
    """Weights of attention are those of exact arithmetic where e to the power of a score is not."""
    torch.manual_seed(0)
    case = make_case(rims.RIM_LSTMCell, (3, 4, 3, 2), 3, 5)
    with torch.no_grad():
        case.cell.get_parameter("comm_query_weight").mul_(1e3)
        case.cell.get_parameter("comm_key_weight").mul_(1e3)
        case.cell.query_weight.mul_(1e4)
    assert case.run(path).output.isfinite().all()
    assert_near(results(path, case), results("reference", case))
