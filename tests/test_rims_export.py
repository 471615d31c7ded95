"""Layers and cells through torch.compile, torch.export, torch.jit.trace and ONNX."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch._dynamo.testing import CompileCounter
from torch.export import Dim
from torch.nn.utils.rnn import pack_sequence

import rims
from rims.step import RIMCell
from selection import short
from tolerances import assert_near

Kind = type[rims.RIM_LSTM] | type[rims.RIM_GRU]
CellKind = type[rims.RIM_LSTMCell] | type[rims.RIM_GRUCell]
AnyKind = Kind | CellKind
CELLS: list[CellKind] = [rims.RIM_LSTMCell, rims.RIM_GRUCell]
LAYERS: list[Kind] = [rims.RIM_LSTM, rims.RIM_GRU]
lstm_first = pytest.mark.parametrize("kind", short(LAYERS, 0))
gru_first = pytest.mark.parametrize("kind", short(LAYERS, 1))
both_cells = pytest.mark.parametrize("kind", CELLS)
all_kinds = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
#: Where each takes many seconds: one cell; the others only in the long tests.
kinds_in_turn = pytest.mark.parametrize("kind", short([*LAYERS, *CELLS], -1))

#: Ways to read, compete and communicate beside the defaults.
CHOICES: list[dict[str, Any]] = [
    {"input_gate": "straight_through", "competition": "mechanisms", "comm_update": "convex"},
    {"competition": "mechanisms"},
    {"input_gate": "none", "num_comm_heads": 0},
    {"tie_margin": 0.05},
]

DYNAMO: Any = torch._dynamo  # most of it has no types

#: Steps (every one is compiled anew, so few), batch, features.
T, B, I = 2, 3, 7  # noqa: E741
#: hidden_size, num_rims, k.
D, N, K = 10, 5, 2


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(0)
    DYNAMO.reset()
    yield
    DYNAMO.reset()


def make(kind: AnyKind, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    return kind(I, D, N, K, dtype=dtype, **options)


def arguments(
    kind: AnyKind,
    *,
    steps: int = T,
    batch: int = B,
    zero_state: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Any]:
    """An input and a state; a state of zeros ties all mechanisms."""
    is_cell = issubclass(kind, RIMCell)
    input = torch.randn(*(() if is_cell else (steps,)), batch, I, dtype=dtype)
    shape = (batch, D) if is_cell else (1, batch, D)
    h, c = torch.randn(2, *shape, dtype=dtype) * (not zero_state)
    return input, (h, c) if "LSTM" in kind.__name__ else h


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors(part)]


def active(module: Any, input: Tensor, hx: Any) -> list[Any]:
    if isinstance(module, RIMCell):
        marked: list[Any] = module.step(
            input, hx if isinstance(hx, tuple) else (hx,)
        ).active.tolist()
        return marked
    with rims.trace(module) as trace:
        module(input, hx)
    return trace.active["cells.0"].tolist()


def assert_same(ours: Any, other: Any, *given: Any) -> None:
    for got, expected in zip(tensors(other(*given)), tensors(ours(*given)), strict=True):
        assert_near(got, expected)


def assert_same_with_gradients(module: Any, compiled: Any, input: Tensor, hx: Any) -> None:
    runs: list[list[Tensor]] = []
    for run in (module, compiled):
        x = input.clone().requires_grad_()
        state = [part.clone().requires_grad_() for part in tensors(hx)]
        results = tensors(run(x, tuple(state) if isinstance(hx, tuple) else state[0]))
        loss = torch.stack([(result**2).sum() for result in results]).sum()
        wanted = [x, *state, *module.parameters()]
        runs.append([*results, *torch.autograd.grad(loss, wanted)])
    for got, expected in zip(runs[1], runs[0], strict=True):
        assert_near(got, expected)


# --- torch.compile


@kinds_in_turn
def test_compiled_as_one_graph_equals_eager(kind: AnyKind) -> None:
    module = make(kind)
    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
    for zero_state in (False, True):
        given = arguments(kind, zero_state=zero_state)
        assert_same_with_gradients(module, compiled, *given)


@lstm_first
def test_compiled_with_options_equals_eager(kind: Kind) -> None:
    options: dict[str, Any] = {"batch_first": True, "use_inactive": False, "blocked_grad": True}
    module = make(kind, num_layers=2, bidirectional=True, **options)
    compiled: Any = torch.compile(module, fullgraph=True, backend="eager")
    input = torch.randn(B, T, I, dtype=torch.float64)
    reset = torch.tensor([[False, True], [True, False], [False, False]])
    for got, expected in zip(
        tensors(compiled(input, reset=reset)), tensors(module(input, reset=reset)), strict=True
    ):
        assert_near(got, expected)
    assert not torch.equal(module(input)[0], module(input, reset=reset)[0])


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_compiled_with_choices_equals_eager(options: dict[str, Any]) -> None:
    layer = make(rims.RIM_GRU, **options)
    input = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = [one(input)[0] for one in (layer, compiled)]
    assert_near(*found)
    wanted = [input, *layer.parameters()]
    gradients = [torch.autograd.grad(one.square().sum(), wanted) for one in found]
    for got, expected in zip(*gradients, strict=True):
        assert_near(got, expected)


@gru_first
def test_compiled_takes_any_length_and_batch(kind: Kind) -> None:
    module = make(kind)
    counter = CompileCounter()
    compiled: Any = torch.compile(module, backend=counter)
    # A graph for every length; beyond the limit of graphs dynamo runs the module as it is.
    with DYNAMO.config.patch(recompile_limit=2):
        for steps, batch in ((2, 3), (3, 3), (1, 1), (4, 2)):
            assert_same(module, compiled, *arguments(kind, steps=steps, batch=batch))
    assert counter.frame_count >= 2


#: Dynamo looks at what it hands from one graph to the next.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not:UserWarning")
@lstm_first
def test_compiled_takes_packed_sequences(kind: Kind) -> None:
    module = make(kind)
    counter = CompileCounter()
    compiled: Any = torch.compile(module, backend=counter)
    packed = pack_sequence([torch.randn(n, I, dtype=torch.float64) for n in (2, 1)])
    got, expected = compiled(packed)[0], module(packed)[0]
    assert counter.frame_count >= 1
    assert_near(got.data, expected.data)
    assert torch.equal(got.batch_sizes, expected.batch_sizes)


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="inductor needs a C++ compiler",
)
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # inside inductor
def test_compiled_by_inductor_equals_eager() -> None:
    cell = make(rims.RIM_GRUCell)
    compiled: Any = torch.compile(cell, fullgraph=True, dynamic=False)
    assert_same_with_gradients(cell, compiled, *arguments(rims.RIM_GRUCell))


# --- torch.export


def shapes_of(kind: AnyKind) -> Any:
    """Every batch axis is dynamic: of the input, and of the state."""
    axis = {0 if issubclass(kind, RIMCell) else 1: Dim("batch")}
    return axis, (axis, axis) if "LSTM" in kind.__name__ else axis


@pytest.mark.parametrize("kind", short([*LAYERS, *CELLS], 0, 3))
def test_exported_program_takes_any_batch(kind: AnyKind) -> None:
    module = make(kind)
    program = torch.export.export(module, arguments(kind), dynamic_shapes=shapes_of(kind))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch, zero_state in ((3, False), (2, True), (6, False)):
        given = arguments(kind, batch=batch, zero_state=zero_state)
        assert_same(module, loaded, *given)


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning")
@gru_first
def test_exported_layer_takes_any_length_which_torchs_does_not(kind: Kind) -> None:
    shapes = ({0: Dim("steps"), 1: Dim("batch")},)
    module = make(kind)
    program = torch.export.export(module, arguments(kind)[:1], dynamic_shapes=shapes)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("rims.scan.default") == 1
    assert len(called) < 30  # what prepares the state and takes the result apart, but no steps
    loaded = program.module()
    for steps, batch in ((T, B), (1, 5), (9, 2), (40, 1)):
        assert_same(module, loaded, arguments(kind, steps=steps, batch=batch)[0])

    theirs: Any = nn.LSTM if kind is rims.RIM_LSTM else nn.GRU
    layer = theirs(I, D, dtype=torch.float64)
    with pytest.raises(UserError, match="specialized it to be a constant"):
        torch.export.export(layer, arguments(kind)[:1], dynamic_shapes=({0: Dim("steps")},))


# --- torch.jit.trace


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",  # sizes become constants
    "ignore:`torch.jit:DeprecationWarning",
)
@all_kinds
def test_jit_trace_does_not_bake_the_selection_in(kind: AnyKind) -> None:
    module = make(kind)
    example = arguments(kind)
    jit: Any = torch.jit
    traced = jit.trace(module, example)
    selections = [active(module, *example)]
    for zero_state in (False, False, True):
        given = arguments(kind, zero_state=zero_state)
        assert_same(module, traced, *given)
        selections.append(active(module, *given))
    assert all(selection != selections[0] for selection in selections[1:])


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:`torch.jit:DeprecationWarning",
)
@lstm_first
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}])
def test_jit_trace_returns_states_in_the_form_of_eager_mode(
    kind: Kind, options: dict[str, Any]
) -> None:
    theirs: Any = nn.LSTM if kind is rims.RIM_LSTM else nn.GRU
    jit: Any = torch.jit
    input = torch.randn(T, B, I)
    for layer in (theirs(I, D, **options), kind(I, D, N, K, **options)):
        _, eager = layer(input)
        _, traced = jit.trace(layer, input)(input)
        assert type(traced) is type(eager)
        for got, expected in zip(tensors(traced), tensors(eager), strict=True):
            assert got.shape == expected.shape == (2, B, D)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


# --- ONNX


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
@kinds_in_turn
def test_onnx_equals_eager(kind: AnyKind) -> None:
    assert_onnx_equals_eager(kind)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.parametrize("options", short(CHOICES, 0), ids=str)
def test_onnx_of_choices_equals_eager(options: dict[str, Any]) -> None:
    assert_onnx_equals_eager(rims.RIM_GRUCell, **options)


def assert_onnx_equals_eager(kind: AnyKind, **choices: Any) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="running an ONNX model needs onnxruntime")
    module = make(kind, torch.float32, **choices).eval()
    example = arguments(kind, dtype=torch.float32)
    program = torch.onnx.export(module, example, dynamo=True, verbose=False)
    assert program is not None
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    selections = [active(module, *example)]
    for zero_state in (False, True, True):
        given = arguments(kind, zero_state=zero_state, dtype=torch.float32)
        arrays = [tensor.numpy() for tensor in tensors(given)]
        got = session.run(None, dict(zip(names, arrays, strict=True)))
        for array, expected in zip(got, tensors(module(*given)), strict=True):
            # float32, two steps, other kernels
            np.testing.assert_allclose(array, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
        selections.append(active(module, *given))
    assert selections[1] != selections[0]
