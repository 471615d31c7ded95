"""What autograd can be asked for on every path: higher derivatives, parts, transforms, reuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import save_on_cpu
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import rims
from layer_cases import both
from rims.scan import scan_path
from rims.scan.input_side import InputSide
from rims.scan.paths import Path
from scan_cases import (
    Case,
    LayerKind,
    Results,
    all_paths,
    assert_equal,
    assert_near,
    both_cells,
    both_sides,
    cases,
    cotangents,
    double,
    fast_paths,
    flat,
    input_side,
    layer_results,
    leaf,
    make_case,
    results,
)

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(kind: LayerKind, **options: Any) -> Any:
    return kind(5, 12, 4, 2, dtype=torch.float64, **options)


# --- higher derivatives


def penalty(path: Path, case: Case) -> Results:
    """First derivatives kept differentiable, and the gradient of the sum of their squares."""
    case = case._replace(input=leaf(case.input), state=tuple(leaf(part) for part in case.state))
    did = case.run(path)
    ends = [did.output, *did.state]
    named = dict(case.cell.named_parameters())
    wanted = [case.input, *case.state, *named.values()]
    options: Any = {"allow_unused": True, "materialize_grads": True}
    slopes = torch.autograd.grad(ends, wanted, cotangents(ends), create_graph=True, **options)
    squares = torch.stack([(slope**2).sum() for slope in slopes]).sum()
    seconds = torch.autograd.grad(squares, wanted, **options)
    names = ["input", *(f"state {i}" for i in range(len(case.state))), *named]
    first = {f"first of {n}": s.detach() for n, s in zip(names, slopes, strict=True)}
    return first | {f"second of {n}": s for n, s in zip(names, seconds, strict=True)}


@fast_paths
@PROPERTY
@given(case=cases())
def test_second_derivatives_equal_those_of_the_reference(path: Path, case: Case) -> None:
    assert_near(penalty(path, case), penalty("reference", case), 1e-8)


@fast_paths
@both_cells
def test_derivatives_are_those_of_finite_differences(path: Path, kind: Any) -> None:
    # all active: choices, and the published stop of gradients, bar a numerical check otherwise
    case = make_case(kind, (2, 2, 3, 3), 3, 2, resets=True, input_key_size=3, comm_key_size=2)
    names, parameters = zip(*case.cell.named_parameters(), strict=True)
    leaves = [leaf(t) for t in (case.input, *case.state, *parameters)]
    count = len(case.state)

    def outputs(input: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(names, rest[count:], strict=True))
        with scan_path(path):
            did = functional_scan(case, weights, input, rest[:count])
        return (did.output, *did.state)

    assert gradcheck(outputs, leaves, fast_mode=True)
    assert gradgradcheck(outputs, leaves, fast_mode=True)


def functional_scan(
    case: Case, weights: dict[str, Tensor], input: Tensor, state: tuple[Tensor, ...]
) -> Any:
    """A scan with other weights in place of the cell's own."""

    class Runner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = case.cell

        def forward(self) -> Any:
            return rims.scan.scan(self.cell, input, state, reset=case.reset, valid=case.valid)

    return functional_call(Runner(), {f"cell.{n}": w for n, w in weights.items()}, ())


# --- transforms


@both
def test_torch_func_gradient_is_that_of_autograd(kind: LayerKind) -> None:
    layer, input = make(kind), double(6, 3, 5)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        output: Tensor = functional_call(layer, parameters, (input,))[0]
        return (output**2).sum()

    got, of_input = grad(loss, argnums=(0, 1))(parameters, input)
    leaves = [leaf(input), *layer.parameters()]
    expected = torch.autograd.grad((layer(leaves[0])[0] ** 2).sum(), leaves)
    names = ["input", *parameters]
    assert_near({"input": of_input, **got}, dict(zip(names, expected, strict=True)))


@both
def test_vmap_is_a_loop(kind: LayerKind) -> None:
    layer, inputs = make(kind, num_layers=2), double(4, 6, 3, 5)
    expected = torch.stack([layer(input)[0] for input in inputs])
    torch.testing.assert_close(vmap(lambda input: layer(input)[0])(inputs), expected)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own
@both
def test_forward_derivatives_agree_with_backward_ones(kind: LayerKind) -> None:
    layer, input, tangent = make(kind), double(6, 3, 5), double(6, 3, 5)
    with_tangents: Any = jvp  # its types forget that without aux there are two results
    output, by_func = with_tangents(lambda input: layer(input)[0], (input,), (tangent,))
    levels: Any = forward_ad  # has no types
    with levels.dual_level():
        dual, _ = layer(levels.make_dual(input, tangent))
        by_level = levels.unpack_dual(dual).tangent
    cotangent = double(*output.shape)
    backward = torch.autograd.grad(layer(x := leaf(input))[0], x, cotangent)[0]
    for change in (by_func, by_level):
        torch.testing.assert_close((change * cotangent).sum(), (backward * tangent).sum())


# --- parts, and doing it twice


@fast_paths
@both_cells
@pytest.mark.parametrize("wanted", ["input", "state 0", "weight_hh", "bias_ih", "initial_h", "all"])
def test_only_what_is_asked_for_gets_a_gradient(path: Path, kind: Any, wanted: str) -> None:
    case = make_case(kind, (5, 3, 4, 2), 6, 3, resets=True, learned_initial_state=True)
    full = results(path, case)
    leaves = {"input": case.input} | {f"state {i}": part for i, part in enumerate(case.state)}
    leaves |= dict(case.cell.named_parameters())
    for name, tensor in leaves.items():
        tensor.requires_grad_(name == wanted or wanted == "all")
    did = case.run(path)
    ends = [did.output, *did.state]
    torch.autograd.backward(ends, cotangents(ends))
    for name, tensor in leaves.items():
        if tensor.requires_grad:
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad, full[f"gradient of {name}"])
        else:
            assert tensor.grad is None


@all_paths
@both
def test_nothing_asked_for_is_nothing_kept(path: Path, kind: LayerKind) -> None:
    layer, input = make(kind), double(6, 3, 5)
    with scan_path(path):
        expected, _ = layer(input)
        assert expected.requires_grad
        with torch.no_grad():
            assert torch.equal(layer(input)[0], expected)
        with torch.inference_mode():
            assert torch.equal(layer(input)[0], expected)
        frozen, _ = layer.requires_grad_(False)(input)
    assert torch.equal(frozen, expected)
    assert not frozen.requires_grad


@fast_paths
@both_cells
def test_only_one_of_the_results_is_used(path: Path, kind: Any) -> None:
    case = make_case(kind, (5, 3, 4, 2), 6, 3)
    for index in range(1 + len(case.state)):
        found = []
        for way in ("reference", path):
            input = leaf(case.input)
            did = case._replace(input=input).run(way)
            end = [did.output, *did.state][index]
            found.append(torch.autograd.grad(end, input, cotangents([end])[0])[0])
        torch.testing.assert_close(*found)


@fast_paths
@both_cells
def test_backward_twice_gives_the_same_bits(path: Path, kind: Any) -> None:
    case = make_case(kind, (5, 3, 4, 2), 6, 9, resets=True, padding=True)
    wanted = [leaf(case.input), *case.cell.parameters()]
    did = case._replace(input=wanted[0]).run(path)
    ends = [did.output, *did.state]
    grads = cotangents(ends)
    given = [g.clone() for g in grads]
    values = [end.detach().clone() for end in ends]
    first = [g.clone() for g in torch.autograd.grad(ends, wanted, grads, retain_graph=True)]
    # Another sequence in between may not disturb what was kept for this one.
    results(path, case._replace(input=2 * case.input))
    second = torch.autograd.grad(ends, wanted, grads, retain_graph=True)
    for one, other in zip([*first, *values, *given], [*second, *ends, *grads], strict=True):
        assert torch.equal(one, other)


@fast_paths
@both
def test_two_forwards_before_their_backwards(path: Path, kind: LayerKind) -> None:
    layer, inputs = make(kind), double(2, 6, 3, 5)
    expected = [layer_results("reference", layer, input)["gradient of input"] for input in inputs]
    leaves = [leaf(input) for input in inputs]
    with scan_path(path):
        runs = [layer(input) for input in leaves]
    for (output, last), x, gradient in reversed(list(zip(runs, leaves, expected, strict=True))):
        ends = [output, *flat(last)]
        torch.autograd.backward(ends, cotangents(ends))
        torch.testing.assert_close(x.grad, gradient)


@fast_paths
@both
def test_chunks_of_a_sequence_join_into_one_gradient(path: Path, kind: LayerKind) -> None:
    layer, input = make(kind), double(6, 3, 5)
    expected = layer_results("reference", layer, input)
    x, outputs, hx = leaf(input), [], None
    with scan_path(path):
        for first, last in ((0, 1), (1, 4), (4, 6)):
            output, hx = layer(x[first:last], hx)
            outputs.append(output)
    ends = [torch.cat(outputs), *flat(hx)]
    (got,) = torch.autograd.grad(ends, x, cotangents(ends))
    torch.testing.assert_close(got, expected["gradient of input"])


@fast_paths
@both
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_change_no_bit(path: Path, kind: LayerKind, use_reentrant: bool) -> None:
    layer, input = make(kind, num_layers=2), double(6, 3, 5)
    found = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=use_reentrant)):
        layer.zero_grad()
        x = leaf(input)
        with scan_path(path):
            output, _ = run(x)
            torch.autograd.backward(output, cotangents([output]))
        found.append([output, x.grad, *(p.grad.clone() for p in layer.parameters())])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


@fast_paths
@both_sides
@both_cells
def test_what_is_kept_may_be_moved_away_meanwhile(
    path: Path, side: type[InputSide], kind: Any
) -> None:
    case = make_case(kind, (5, 3, 4, 2), 6, 3, resets=True)
    with input_side(side):
        expected = results(path, case)
        with save_on_cpu():
            assert_equal(results(path, case), expected)


# --- memory


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "every other": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "offset": lambda t: torch.cat([t[:1], t])[1:],
}


@fast_paths
@both_cells
@pytest.mark.parametrize("strides", list(STRIDES))
def test_any_strides_give_the_same_numbers(path: Path, kind: Any, strides: str) -> None:
    case = make_case(kind, (5, 3, 4, 2), 6, 3, resets=True, padding=True)
    expected = results("reference", case)
    move = STRIDES[strides]
    for parameter in case.cell.parameters():
        parameter.data = move(parameter.data)
    assert case.reset is not None
    assert case.valid is not None
    other = Case(
        case.cell,
        move(case.input),
        tuple(map(move, case.state)),
        move(case.reset),
        move(case.valid),
    )
    wanted = [other.input.requires_grad_(), *(part.requires_grad_() for part in other.state)]
    did = other.run(path)
    ends = [did.output, *did.state]
    found = torch.autograd.grad(ends, wanted, [move(g) for g in cotangents(ends)])
    got = {"output": did.output.detach(), "gradient of input": found[0]}
    got |= {f"gradient of state {i}": gradient for i, gradient in enumerate(found[1:])}
    assert_near(got, {name: expected[name] for name in got})


@fast_paths
@both_cells
def test_one_sample_for_all(path: Path, kind: Any) -> None:
    case = make_case(kind, (5, 3, 4, 2), 6, 1, resets=True, padding=True)
    assert case.reset is not None
    assert case.valid is not None
    wide = Case(
        case.cell,
        case.input.expand(6, 5, 5),
        tuple(part.expand(5, -1) for part in case.state),
        case.reset.expand(6, 5),
        case.valid.expand(6, 5),
    )
    assert_near(results(path, wide), results("reference", wide))
    # the gradient of a sum is one number for all
    found = []
    for way in ("reference", path):
        input = wide.input.detach().requires_grad_()
        found.append(torch.autograd.grad(wide._replace(input=input).run(way).output.sum(), input))
    torch.testing.assert_close(*found)


@fast_paths
@both
@pytest.mark.parametrize("changed", ["input", "hx", "weight"])
def test_what_changed_since_the_forward_is_noticed(
    path: Path, kind: LayerKind, changed: str
) -> None:
    layer, input = make(kind), double(6, 3, 5)
    start = double(1, 3, 12)
    hx = (start, double(1, 3, 12)) if kind is rims.RIM_LSTM else start
    with scan_path(path):
        output, _ = layer(input, hx)
    with torch.no_grad():
        {"input": input, "hx": start, "weight": layer.cells[0].weight_hh}[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@fast_paths
@both
def test_results_may_be_changed_in_place(path: Path, kind: LayerKind) -> None:
    layer, input = make(kind), leaf(double(6, 3, 5))
    gradients = []
    for way in ("reference", path):
        with scan_path(way):
            output, last = layer(input)
        output.relu_()
        for part in flat(last):
            part.mul_(2)
        total = torch.stack([output.square().sum(), *(part.sum() for part in flat(last))]).sum()
        gradients.append(torch.autograd.grad(total, input)[0])
    torch.testing.assert_close(*gradients)


@all_paths
@both_cells
@pytest.mark.parametrize("with_gradients", [True, False])
def test_last_states_have_memory_of_their_own(path: Path, kind: Any, with_gradients: bool) -> None:
    case = make_case(kind, (5, 3, 4, 2), 3, 2)
    with torch.set_grad_enabled(with_gradients):
        did = case.run(path)
    places = {part.untyped_storage().data_ptr() for part in (did.output, *did.state)}
    assert len(places) == 1 + len(did.state)
