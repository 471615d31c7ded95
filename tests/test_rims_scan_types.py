"""Number types on every path: single precision, bfloat16 and float16, and autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from layer_cases import both
from rims.scan import scan, scan_path
from rims.scan.paths import Path
from scan_cases import (
    Case,
    LayerKind,
    Results,
    all_paths,
    assert_equal,
    both_cells,
    fast_paths,
    flat,
    leaf,
    make_case,
    results,
)

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def converted(case: Case, dtype: torch.dtype) -> Case:
    """The same numbers in another type; exact where it is wider."""
    cell = type(case.cell)(
        case.cell.input_size,
        case.cell.hidden_size,
        case.cell.num_rims,
        case.cell.k,
        dtype=dtype,
        learned_initial_state=bool(case.cell.initial),
    )
    cell.load_state_dict(case.cell.state_dict())
    return case._replace(
        cell=cell, input=case.input.to(dtype), state=tuple(p.to(dtype) for p in case.state)
    )


def margins(case: Case) -> Tensor:
    """(T, B): by how much the least active mechanism outdoes the best idle one."""
    with scan_path("reference"):
        did = scan(case.cell, case.input, case.state, reset=case.reset, record=True)
    assert did.input_attention is not None
    score = did.input_attention[..., 1].logit()
    worst = score.masked_fill(~did.active, torch.inf).amin(-1)
    best = score.masked_fill(did.active, -torch.inf).amax(-1)
    return worst - best


def assert_within(got: Results, expected: Results, bound: float) -> None:
    """Errors up to ``bound`` times the largest number of a tensor."""
    for name, value in expected.items():
        assert largest(got[name].double() - value) <= bound * max(1.0, largest(value)), name


def largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max())


@all_paths
@both_cells
@pytest.mark.parametrize("unit", [7, 16, 50])
def test_single_precision_is_near_double(path: Path, kind: Any, unit: int) -> None:
    torch.manual_seed(unit)
    steps, batch = 6, 40
    options: dict[str, Any] = {"resets": True, "learned_initial_state": True}
    single = make_case(kind, (5, unit, 6, 3), steps, batch, dtype=torch.float32, **options)
    exact = converted(single, torch.float64)  # from the same weights and inputs
    # A state is bounded, and what it is made of are sums of at most 4 d products (a mechanism
    # reads so many values of the input) of numbers about one with weights of about
    # 1 / sqrt(terms). Each sum errs by at most terms * eps, each step adds as much again. The two
    # can be compared as long as they choose alike: where no margin is as small as this error.
    bound = steps * 4 * unit * torch.finfo(torch.float32).eps
    clear = (margins(exact) > bound).all(0)  # (B,)
    assert clear.sum() > batch / 2
    # Samples do not meet, so those left out must not reach the gradients of weights either.
    got = results(path, single, clear.unsqueeze(-1).float())
    expected = results("reference", exact, clear.unsqueeze(-1).double())
    assert torch.equal(got["active"][:, clear], expected["active"][:, clear])
    for name in ("output", *(n for n in expected if n.startswith("last"))):
        got[name], expected[name] = got[name][..., clear, :], expected[name][..., clear, :]
    del got["active"], expected["active"]
    # gradients of weights are sums over all steps and samples
    assert_within(got, expected, bound)


@fast_paths
@both_cells
@HALF
def test_narrow_types_are_computed_in_single_precision(
    path: Path, kind: Any, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    # No learned state: its gradient is summed over samples after they were rounded.
    narrow = make_case(kind, (5, 7, 4, 2), 5, 6, dtype=dtype, resets=True)
    wide = converted(narrow, torch.float32)
    got, expected = results(path, narrow), results_as(path, wide, dtype)
    # Widening is exact, so all that a narrow type adds is one rounding of every result.
    assert {value.dtype for name, value in got.items() if name != "active"} == {dtype}
    assert_equal(got, expected)


def results_as(path: Path, case: Case, dtype: torch.dtype) -> Results:
    """The results of ``case`` rounded to ``dtype``, from gradients which that type can hold."""
    wide = case.input.dtype
    case = case._replace(input=leaf(case.input), state=tuple(leaf(part) for part in case.state))
    did = case.run(path)
    ends = [did.output, *did.state]
    source = torch.Generator().manual_seed(23)
    grads = [
        torch.randn(end.shape, generator=source, dtype=torch.float64).to(dtype).to(wide)
        for end in ends
    ]
    names, parameters = zip(*case.cell.named_parameters(), strict=True)
    found = torch.autograd.grad(ends, [case.input, *case.state, *parameters], grads)
    states = [f"state {i}" for i in range(len(case.state))]
    rounded = {"output": did.output} | {f"last {i}": part for i, part in enumerate(did.state)}
    gradients = zip(["input", *states, *names], found, strict=True)
    rounded |= {f"gradient of {name}": gradient for name, gradient in gradients}
    return {name: part.to(dtype) for name, part in rounded.items()} | {"active": did.active}


@HALF
@both
def test_narrow_types_on_the_default_path_are_near_double(
    kind: LayerKind, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer: Any = kind(5, 12, 3, 3, dtype=dtype)  # all active: a choice could differ
    exact: Any = kind(5, 12, 3, 3, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    input = torch.randn(6, 4, 5, dtype=dtype)
    expected, _ = exact(input.double())
    # Results are rounded once, by eps / 2 of their size; single precision before adds little.
    bound = torch.finfo(dtype).eps / 2 + 1e-5
    assert largest(layer(input)[0].double() - expected) <= bound * max(1.0, largest(expected))


# --- autocast


@fast_paths
@both
@HALF
@pytest.mark.parametrize("inside", [True, False])
def test_autocast_changes_types_as_the_reference_does(
    path: Path, kind: LayerKind, dtype: torch.dtype, inside: bool
) -> None:
    torch.manual_seed(0)
    layer: Any = kind(5, 12, 3, 3, num_layers=2)
    input = torch.randn(6, 4, 5)
    plain = autocast_run("reference", layer, input, None, True)
    expected = autocast_run("reference", layer, input, dtype, inside)
    got = autocast_run(path, layer, input, dtype, inside)
    assert [value.dtype for value in got] == [value.dtype for value in expected]
    for value, full in zip(got, plain, strict=True):
        # Inputs, weights and what one layer hands to the next are rounded, relative to their size
        # by eps / 2 each; over 12 steps of the two layers the sums of those stay below this.
        error = largest(value.float() - full)
        assert error <= 8 * torch.finfo(dtype).eps * max(1.0, largest(full))


def autocast_run(
    path: Path, layer: Any, input: Tensor, dtype: torch.dtype | None, inside: bool
) -> list[Tensor]:
    """Results and gradients; the way back ``inside`` autocast, which torch advises against."""
    input = leaf(input)
    with scan_path(path):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            output, last = layer(input)
            ends = [output, *flat(last)]
            if inside:
                found = differentiate(ends, [input, *layer.parameters()])
        if not inside:
            found = differentiate(ends, [input, *layer.parameters()])
    return [*(end.detach() for end in ends), *found]


def differentiate(ends: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(ends, wanted, [torch.ones_like(end) for end in ends]))


@both
def test_double_precision_is_left_alone_by_autocast(kind: LayerKind) -> None:
    torch.manual_seed(0)
    layer: Any = kind(5, 12, 4, 2, dtype=torch.float64)
    input = torch.randn(6, 4, 5, dtype=torch.float64)
    expected, _ = layer(input)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = layer(input)
    assert torch.equal(got, expected)
