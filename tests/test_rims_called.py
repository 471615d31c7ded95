"""Tools that act on calls of modules: every weight belongs to a cell, and a layer calls its cells.

nn.LSTM and nn.GRU are the control: what works with them works here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.utils import parametrize, prune, spectral_norm

import rims
from layer_cases import B, D, I, Kind, T, both, make, pair, states
from rims.parameters import Parameters
from rims.scan import scan_path
from scan_cases import all_paths

#: Every layer and hx takes part: stacked, both directions, a start that is learned.
WHOLE: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def own_parameters(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every parameter by its owner."""
    return [
        (part, name)
        for part in module.modules()
        for name, value in part._parameters.items()
        if value is not None
    ]


def train(layer: nn.Module, steps: int = 2) -> Tensor:
    """Some steps of gradient descent; returns the output before them."""
    input = torch.randn(T, B, I)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)  # before a call: that gathers shards
    before: Tensor = layer(input)[0].detach()
    for _ in range(steps):
        optimizer.zero_grad()
        layer(input)[0].square().sum().backward()
        optimizer.step()
    layer(input)
    return before


# --- weights that are computed anew in every call


def half(module: nn.Module, name: str) -> None:
    prune.l1_unstructured(module, name, 0.5)  # type: ignore[no-untyped-call]


def one(module: nn.Module, name: str) -> None:
    spectral_norm(module, name)


@pytest.mark.parametrize("change", [half, one])
@both
def test_every_weight_is_trained_under_pruning_and_norms(
    kind: Kind, change: Callable[[nn.Module, str], None]
) -> None:
    for whole in pair(kind):
        matrices = [name for _, name in own_parameters(whole) if "weight" in name]
        assert len(matrices) >= 2
        for name in matrices:
            layer = copy.deepcopy(whole)
            owner = next(part for part, own in own_parameters(layer) if own == name)
            change(owner, name)
            before = {n: p.detach().clone() for n, p in layer.named_parameters()}
            train(layer)
            trained = [n for n, p in layer.named_parameters() if not torch.equal(p, before[n])]
            assert any(n.endswith(f"{name}_orig") for n in trained), name


@all_paths
@both
def test_a_pruned_layer_is_one_with_zeros(path: Any, kind: Kind) -> None:
    layer = make(kind, **WHOLE)
    zeros = copy.deepcopy(layer)
    named = [(part, name) for part, name in own_parameters(layer) if "weight" in name]
    prune.global_unstructured(named, pruning_method=prune.L1Unstructured, amount=0.3)
    for (part, name), (other, _) in zip(
        named, [each for each in own_parameters(zeros) if "weight" in each[1]], strict=True
    ):
        with torch.no_grad():
            getattr(other, name).mul_(part.get_buffer(f"{name}_mask"))
    input = torch.randn(T, B, I)
    expected = zeros(input)[0]
    with scan_path(path):
        torch.testing.assert_close(layer(input)[0], expected, rtol=1e-5, atol=1e-6)


class Counted(nn.Module):
    """A parametrization that changes nothing."""

    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * 1


@all_paths
@both
def test_every_weight_is_computed_once_for_a_whole_sequence(path: Any, kind: Kind) -> None:
    layer = make(kind, learned_initial_state=True)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 1] = True
    expected = layer(torch.ones(T, B, I), reset=reset)[0]
    counts = [Counted() for _ in own_parameters(layer)]
    for (part, name), count in zip(own_parameters(layer), counts, strict=True):
        parametrize.register_parametrization(part, name, count, unsafe=True)
        count.calls = 0
    with scan_path(path):
        output = layer(torch.ones(T, B, I), reset=reset)[0]
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    assert [count.calls for count in counts] == [1] * len(counts)


class LowRank(nn.Module):
    """A weight beside which a product of two thin ones is trained."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        *lead, rows, cols = weight.shape
        self.up = nn.Parameter(torch.zeros(*lead, rows, 1))
        self.down = nn.Parameter(torch.randn(*lead, 1, cols))

    def forward(self, weight: Tensor) -> Tensor:
        return weight.detach() + (self.up @ self.down).mT.contiguous().mT  # of another layout


@all_paths
@both
def test_thin_matrices_beside_frozen_weights_are_trained(path: Any, kind: Kind) -> None:
    layer = make(kind)
    matrices = [(part, name) for part, name in own_parameters(layer) if "weight" in name]
    for part, name in matrices:
        low_rank = LowRank(getattr(part, name))
        parametrize.register_parametrization(part, name, low_rank, unsafe=True)
    input, found = torch.randn(T, B, I), []
    wanted = [p for n, p in layer.named_parameters() if n.endswith(".up")]
    assert len(wanted) == len(matrices)
    for way in (path, "reference"):
        with scan_path(way):
            found.append(torch.autograd.grad(layer(input)[0].square().sum(), wanted))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert any(grad.count_nonzero() for grad in found[0])


@both
def test_a_weight_of_another_type_is_refused_as_by_torch(kind: Kind) -> None:
    layer = make(kind)
    layer.cells[0].comm_value_weight.data = layer.cells[0].comm_value_weight.data.double()
    with pytest.raises(RuntimeError, match=r"Float.*Double|Double.*Float|same dtype"):
        layer(torch.randn(T, B, I))


# --- weights that are there only while their owner is called


def offload(module: nn.Module) -> None:
    """As accelerate's ``cpu_offload`` does: each module's own weights come and go with its call."""
    for part in module.modules():
        values = {n: p.detach() for n, p in part._parameters.items() if p is not None}

        def fetch(owner: nn.Module, args: Any, values: Any = values) -> None:
            for name, value in values.items():
                setattr(owner, name, nn.Parameter(value))

        def drop(owner: nn.Module, args: Any, result: Any = None, values: Any = values) -> None:
            for name, value in values.items():
                setattr(owner, name, nn.Parameter(value.to("meta")))

        drop(part, ())
        part.register_forward_pre_hook(fetch)
        part.register_forward_hook(drop)


def calls(kind: Kind, layer: Any) -> Iterator[Tensor]:
    """Outputs of what a layer can be called with; of torch's too."""
    torch.manual_seed(1)
    input = torch.randn(T, B, I)
    yield layer(input)[0]
    yield layer(input, states(kind, 4, B, D))[0]
    yield layer(nn.utils.rnn.pack_sequence([input[:5, 0], input[:2, 1]]))[0].data
    if isinstance(layer, rims.base_layer.RIMLayer):
        flags = torch.zeros(T, B, dtype=torch.bool)
        flags[3] = True
        yield layer(input, reset=flags)[0]
        yield layer(input, mask=~flags.cumsum(0).bool())[0]
        with rims.trace(layer) as trace:
            yield layer(input)[0]
        yield from trace.communication.values()
        yield layer(rims.RepeatedInput(input[0], torch.zeros(T, B, dtype=torch.int64)))[0]


@all_paths
@both
def test_weights_are_needed_only_during_calls_of_their_owner(path: Any, kind: Kind) -> None:
    theirs, ours = pair(kind, **WHOLE)
    learned = make(kind, **WHOLE, learned_initial_state=True)
    for layer in (theirs, ours, learned):
        with scan_path(path):
            expected = list(calls(kind, layer))
            offload(layer)
            assert all(p.is_meta for p in layer.parameters())
            for got, want in zip(calls(kind, layer), expected, strict=True):
                assert torch.equal(got, want)


def hooked_calls(cell: nn.Module) -> list[str]:
    seen: list[str] = []
    cell.register_forward_pre_hook(lambda module, args: seen.append("before"))
    cell.register_forward_hook(lambda module, args, result: seen.append("after"))
    cell.register_full_backward_hook(lambda module, *grads: seen.append("back"))
    return seen


@all_paths
@both
def test_hooks_of_a_cell_run_once_around_a_sequence(path: Any, kind: Kind) -> None:
    layer = make(kind, **WHOLE)
    plain, input = copy.deepcopy(layer), torch.randn(T, B, I, requires_grad=True)
    seen = [hooked_calls(cell) for cell in layer.cells]
    with scan_path(path):
        output, _ = layer(input)
        output.square().sum().backward()
        expected, _ = plain(input)
        expected.square().sum().backward()
    assert seen == [["before", "after", "back"]] * 4
    assert torch.equal(output, expected)
    for got, want in zip(layer.parameters(), plain.parameters(), strict=True):
        assert torch.equal(got.grad, want.grad)


@pytest.mark.parametrize("is_repeated", [False, True])
@all_paths
@both
def test_a_pre_hook_changes_what_a_cell_reads(path: Any, kind: Kind, is_repeated: bool) -> None:
    layer = make(kind)
    given = rims.RepeatedInput(torch.randn(2, I), torch.randint(2, (T, B)))
    input = given.expand()
    with scan_path(path):
        expected = layer(2 * input)[0]
        layer.cells[0].register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))
        assert torch.equal(layer(given if is_repeated else input)[0], expected)


# --- shards


@pytest.fixture
def mesh() -> Iterator[Any]:
    """One process as a group of processes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@both
def test_sharded_module_by_module_trains_as_whole(kind: Kind, mesh: Any) -> None:
    learned = make(kind, **WHOLE, learned_initial_state=True)
    for layer in (*pair(kind, **WHOLE), learned):
        plain = copy.deepcopy(layer)
        owners = {part for part, _ in own_parameters(layer)}
        for part in [part for part in layer.modules() if part in owners][::-1]:
            fully_shard(part, mesh=mesh)
        for module in (layer, plain):
            torch.manual_seed(2)
            train(module)
        for part in owners:  # the last call left what it had gathered
            cast(Any, part).reshard()
        for got, want in zip(layer.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(got.full_tensor(), want)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")  # of a Linear of torch
@both
def test_sharded_in_half_precision_reads_what_was_converted(kind: Kind, mesh: Any) -> None:
    # Weights are single outside of a call, and half inside, where the input has been converted too.
    layers = pair(kind)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for layer in layers:
        model = nn.Sequential(nn.Linear(I, I), layer)
        for part in {part for part, _ in own_parameters(model)}:
            fully_shard(part, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        output = model(torch.randn(T, B, I))[0]
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())


# --- graphs of torch.fx


class Model(nn.Module):
    """A layer and a cell in a model, with everything a layer takes."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.before = nn.Linear(I, I)
        self.layer = make(kind)
        self.cell = kind.cell_type(D, 6, 2, 1)

    def forward(self, input: Tensor, hx: Tensor, reset: Tensor) -> Any:
        lstm = isinstance(self.layer, rims.RIM_LSTM)
        state = (hx, hx) if lstm else hx
        output, _ = self.layer(self.before(input), state, reset=reset)
        first = self.cell(output[0])
        return self.cell(output[1], first)


@both
def test_layers_and_cells_are_leaves_of_symbolic_graphs(kind: Kind) -> None:
    model = Model(kind)
    graph = torch.fx.symbolic_trace(model)
    leaves = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert leaves == ["before", "layer", "cell", "cell"]
    for steps in (2, T):
        given = torch.randn(steps, B, I), torch.randn(1, B, D), torch.rand(steps, B) < 0.5
        torch.testing.assert_close(graph(*given), model(*given), rtol=0, atol=0)


@both
def test_a_layer_alone_has_no_symbolic_graph_as_in_torch(kind: Kind) -> None:
    for layer in pair(kind):
        with pytest.raises(torch.fx.proxy.TraceError):
            torch.fx.symbolic_trace(layer)


# --- copies


@both
def test_averages_of_weights_are_averages(kind: Kind) -> None:
    for layer in pair(kind):
        averaged = torch.optim.swa_utils.AveragedModel(layer)
        averaged.update_parameters(layer)
        first = copy.deepcopy(layer)
        train(layer)
        averaged.update_parameters(layer)
        rows = zip(averaged.parameters(), first.parameters(), layer.parameters(), strict=True)
        for got, one, two in rows:
            torch.testing.assert_close(got, (one + two) / 2)
        assert averaged(torch.randn(T, B, I))[0].shape == (T, B, D)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*:DeprecationWarning")
@both
def test_dynamic_quantization_leaves_layers_alone(kind: Kind) -> None:
    model = nn.Sequential(nn.Linear(I, I), make(kind))
    quantized: Any = torch.ao.quantization.quantize_dynamic(model)  # type: ignore[no-untyped-call]
    assert type(quantized[0]) is not nn.Linear
    assert type(quantized[1]) is kind
    input = torch.randn(T, B, I)
    assert torch.equal(quantized[1](input)[0], model[1](input)[0])


# --- what there is to read


@both
def test_a_cell_has_all_its_parameters_itself(kind: Kind) -> None:
    for options in ({}, {"bias": False}, {"learned_initial_state": True}):
        cell: Any = make(kind, **options).cells[0]
        assert list(cell.children()) == []
        own = {name for name, _ in cell.named_parameters()}
        read = Parameters.of(cell)._asdict()
        assert own == {name for name, value in read.items() if value is not None}
        assert all(read[name] is value for name, value in cell.named_parameters())


@both
def test_one_step_reads_every_weight_once(kind: Kind) -> None:
    cell: Any = make(kind).cells[0]
    counts = [Counted() for _ in own_parameters(cell)]
    for (part, name), count in zip(own_parameters(cell), counts, strict=True):
        parametrize.register_parametrization(part, name, count, unsafe=True)
        count.calls = 0
    cell(torch.randn(B, I), states(kind, B, D))
    assert [count.calls for count in counts] == [1] * len(counts)
