"""``torch.ops.rims.scan``: its contract, and what compiled and exported graphs make of a layer."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch.export import Dim
from torch.library import opcheck

import rims
from rims.scan import scan_path
from rims.scan.paths import Path
from rims.scan.problem import Weights
from scan_cases import (
    Case,
    LayerKind,
    Results,
    assert_near,
    both_cells,
    cases,
    cotangents,
    double,
    fast_paths,
    layer_results,
    leaf,
    make_case,
    results,
)
from selection import short

DYNAMO: Any = torch._dynamo  # most of it has no types
OPS: Any = torch.ops.rims


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(0)
    DYNAMO.reset()
    yield
    DYNAMO.reset()


#: Where each kind takes many seconds.
lstm_alone = pytest.mark.parametrize("kind", short([rims.RIM_LSTM, rims.RIM_GRU], 0))
gru_alone = pytest.mark.parametrize("kind", short([rims.RIM_LSTM, rims.RIM_GRU], 1))
#: Each kind and each path once.
in_turn = pytest.mark.parametrize(
    ("path", "kind"), short(product(["torch", "native"], [rims.RIM_LSTM, rims.RIM_GRU]), 1, 2)
)


def make(kind: LayerKind, **options: Any) -> Any:
    return kind(5, 12, 4, 2, dtype=torch.float64, **options)


# --- the operator by itself


def arguments(case: Case, path: Path, *, save: bool) -> tuple[Any, ...]:
    """What the operator takes for a case."""
    cell = case.cell
    has_fresh = case.reset is not None and bool(cell.initial)
    fresh = cell.initial_state(case.input[0]) if has_fresh else ()
    parts = [*case.state, None][:2] + [*fresh, None, None][:2]
    steering: tuple[Any, ...] = (
        cell.k,
        cell.num_comm_heads,
        cell.comm_reads == "state",
        path,
        save,
    )
    if (cell.input_gate, cell.competition) != ("null", "null"):  # programs of earlier versions
        steering = (*steering, cell.input_gate, cell.competition)  # have neither
    return (case.input, *parts, Weights.of(cell).given(), case.reset, case.valid, *steering)


def with_leaves(case: Case) -> Case:
    return case._replace(input=leaf(case.input), state=tuple(leaf(part) for part in case.state))


def of_operator(path: Path, case: Case) -> Results:
    """As :func:`scan_cases.results`, by the operator, and the gradient of squared gradients."""
    case = with_leaves(case)
    output, h, c, active, *_ = OPS.scan(*arguments(case, path, save=True))
    ends = [output, h, c][: 1 + len(case.state)]
    names, parameters = zip(*case.cell.named_parameters(), strict=True)
    wanted = [case.input, *case.state, *parameters]
    options: Any = {"allow_unused": True, "materialize_grads": True}
    plain = torch.autograd.grad(ends, wanted, cotangents(ends), retain_graph=True, **options)
    kept = torch.autograd.grad(ends, wanted, cotangents(ends), create_graph=True, **options)
    for one, other in zip(plain, kept, strict=True):
        torch.testing.assert_close(one, other)
    labels = ["input", *(f"state {i}" for i in range(len(case.state))), *names]
    values = {"output": output, "active": active}
    values |= {f"last {i}": part for i, part in enumerate(ends[1:])}
    values |= {f"gradient of {n}": g for n, g in zip(labels, plain, strict=True)}
    return {name: value.detach() for name, value in values.items()}


@fast_paths
@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=cases())
def test_operator_equals_the_reference(path: Path, case: Case) -> None:
    assert_near(of_operator(path, case), results("reference", case))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=cases(kernels=False))
def test_operator_equals_the_reference_in_options_that_kernels_lack(case: Case) -> None:
    assert_near(of_operator("torch", case), results("reference", case))


#: Every value of each argument once at least, with two of each other one.
CONTRACTS = short(
    product(
        ["torch", "native"],
        [rims.RIM_LSTMCell, rims.RIM_GRUCell],
        [{}, {"resets": True, "learned_initial_state": True}],
        [{}, {"bias": False, "padding": True}],
    ),
    *(0, 7, 10, 13),
)


@pytest.mark.parametrize(("path", "kind", "options", "more"), CONTRACTS)
def test_operator_keeps_its_contract(path: Path, kind: Any, options: Any, more: Any) -> None:
    """Its schema is true, its shapes are right without data, and AOTAutograd finds its gradient."""
    case = make_case(kind, (5, 3, 4, 2), 3, 2, **options, **more)
    given = arguments(with_leaves(case), path, save=True)
    # a learned state is handed in expanded over the batch; the check wants leaves
    leaves = (leaf(g) if isinstance(g, Tensor) and g.is_floating_point() else g for g in given)
    opcheck(OPS.scan.default, tuple(leaves))
    with torch.no_grad():
        plain = arguments(case, path, save=False)
        checks = ["test_schema", "test_faketensor"]
        opcheck(OPS.scan.default, plain, test_utils=checks)


@fast_paths
@both_cells
@pytest.mark.parametrize("input_needs_grad", [True, False])
def test_gradient_operator_keeps_its_contract(
    path: Path, kind: Any, input_needs_grad: bool
) -> None:
    case = make_case(kind, (5, 3, 4, 2), 3, 2, resets=True, learned_initial_state=True)
    with torch.no_grad():
        given = arguments(case, path, save=True)
        output, h, c, active, *kept = OPS.scan(*given)
        grads = cotangents([output, h, c])
        every = (*grads, output, active, *kept, input_needs_grad, *given)
        opcheck(OPS.scan_backward.default, every, test_utils=["test_schema", "test_faketensor"])
        d_input, *_ = OPS.scan_backward(*every)
        assert d_input.shape == (case.input.shape if input_needs_grad else (0,))


# --- torch.compile


class Graphs:
    """A backend that runs graphs as they are and counts their nodes, forward and backward."""

    def __init__(self) -> None:
        self.forward: list[list[str]] = []
        self.backward: list[list[str]] = []
        self.backend = aot_autograd(
            fw_compiler=self._keep(self.forward), bw_compiler=self._keep(self.backward)
        )

    @staticmethod
    def _keep(graphs: list[list[str]]) -> Any:
        def compiler(module: Any, example: Any) -> Any:
            calls = [node for node in module.graph.nodes if node.op == "call_function"]
            names = [str(node.target) for node in calls]
            graphs.append([name for name in names if "getitem" not in name])
            run: Any = lambda args: module.forward(*args)  # noqa: E731
            run._boxed_call = True  # takes one list of arguments
            return run

        return compiler


@in_turn
def test_compiled_layer_is_one_node_each_way(path: Path, kind: LayerKind) -> None:
    layer, graphs = make(kind), Graphs()
    compiled: Any = torch.compile(layer, fullgraph=True, backend=graphs.backend)
    compiled.named_parameters = layer.named_parameters
    for steps in (3, 9):  # the graph of a longer sequence is no longer
        input = double(steps, 2, 5)
        got = layer_results(path, compiled, input)
        assert_near(got, layer_results(path, layer, input))
    for graph in graphs.forward:
        assert graph.count("rims.scan.default") == 1
        assert len(graph) < 20  # zeros, stacks and views around it
    assert len(graphs.backward) == len(graphs.forward)
    for graph in graphs.backward:
        assert graph.count("rims.scan_backward.default") == 1
        assert len(graph) < 20


@pytest.mark.parametrize(
    ("path", "kind"), short(product(["torch", "native"], [rims.RIM_LSTM, rims.RIM_GRU]), 2)
)
def test_compiled_options_equal_the_reference(path: Path, kind: LayerKind) -> None:
    options: dict[str, Any] = {"use_inactive": False, "blocked_grad": True}
    layer = make(kind, num_layers=2, bidirectional=True, learned_initial_state=True, **options)
    graphs = Graphs()
    compiled: Any = torch.compile(layer, fullgraph=True, backend=graphs.backend)
    compiled.named_parameters = layer.named_parameters
    input, reset = double(4, 3, 5), torch.rand(4, 3) < 0.3
    got = layer_results(path, compiled, input, reset=reset)
    assert_near(got, layer_results("reference", layer, input, reset=reset))
    (forward,) = graphs.forward
    assert forward.count("rims.scan.default") == 4


@lstm_alone
def test_compiled_layer_follows_the_way_asked_for(kind: LayerKind) -> None:
    layer, graphs = make(kind), Graphs()
    compiled: Any = torch.compile(layer, fullgraph=True, backend=graphs.backend)
    input = double(1, 2, 5)  # of one step: the loop is compiled
    with scan_path("torch"):
        expected, _ = compiled(input)
    with scan_path("reference"):
        got, _ = compiled(input)
    torch.testing.assert_close(got, expected)
    assert [graph.count("rims.scan.default") for graph in graphs.forward] == [1, 0]


@lstm_alone
def test_compiled_under_autocast_equals_eager(kind: LayerKind) -> None:
    layer: Any = kind(5, 12, 3, 3)
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    input = torch.randn(4, 3, 5)
    found = []
    for run in (layer, compiled):
        x = leaf(input)
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = run(x)
        found.append([output, *torch.autograd.grad(output.float().sum(), [x, *layer.parameters()])])
    for got, expected in zip(found[1], found[0], strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected)


@gru_alone
def test_compiled_without_gradients_keeps_nothing(kind: LayerKind) -> None:
    layer, graphs = make(kind), Graphs()
    compiled: Any = torch.compile(layer, fullgraph=True, backend=graphs.backend)
    input = double(3, 2, 5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(input)[0], layer(input)[0])
    assert graphs.backward == []


@gru_alone
@pytest.mark.long
def test_compiled_transforms_equal_eager_ones(kind: LayerKind) -> None:
    layer, inputs = make(kind), double(3, 2, 2, 5)  # short: the loop is compiled

    def slopes(inputs: Tensor) -> Tensor:
        slope: Tensor = torch.func.vmap(torch.func.grad(lambda x: layer(x)[0].square().sum()))(
            inputs
        )
        return slope

    compiled: Any = torch.compile(slopes, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), slopes(inputs))


@lstm_alone
def test_compiled_loop_over_options_without_a_fast_way(kind: LayerKind) -> None:
    layer, counter = make(kind, num_input_heads=2), CompileCounter()
    compiled: Any = torch.compile(layer, fullgraph=True, backend=counter)
    input = double(2, 3, 5)
    torch.testing.assert_close(compiled(input)[0], layer(input)[0])
    assert counter.frame_count == 1


# --- torch.export


@gru_alone
def test_exported_layer_survives_a_file(kind: LayerKind) -> None:
    layer = make(kind, num_layers=2, bidirectional=True).eval()
    shapes = ({0: Dim("steps"), 1: Dim("batch")},)
    program = torch.export.export(layer, (double(4, 3, 5),), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded: Any = torch.export.load(file).module()
    for steps, batch in ((4, 3), (7, 2), (40, 65)):
        input = double(steps, batch, 5)
        torch.testing.assert_close(loaded(input)[0], layer(input)[0])


@lstm_alone
def test_exported_layer_is_trained(kind: LayerKind) -> None:
    layer, input = make(kind), double(4, 3, 5)
    program: Any = torch.export.export(layer, (input,)).module()
    with scan_path("reference"):
        expected = torch.autograd.grad(layer(input)[0].sum(), list(layer.parameters()))
    got = torch.autograd.grad(program(input)[0].sum(), list(program.parameters()))
    names = [name for name, _ in layer.named_parameters()]
    assert [name for name, _ in program.named_parameters()] == names
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
