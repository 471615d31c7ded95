"""What tools ask of layers and cells: what is pickled, operations, checkpoints of cells, opacus."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import rims
from layer_cases import B, D, I, Kind, N, T, both, make, pair


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@both
def test_a_pickled_layer_names_three_classes(kind: Kind) -> None:
    files = []
    for layer in pair(kind, num_layers=2):
        files.append(io.BytesIO())
        torch.save(layer, files[-1])
        files[-1].seek(0)
    theirs, ours = map(torch.serialization.get_unsafe_globals_in_checkpoint, files)
    assert len(theirs) == 1
    classes = [kind, kind.cell_type, nn.ModuleList]
    assert set(ours) == {f"{c.__module__}.{c.__qualname__}" for c in classes}
    files[1].seek(0)
    with torch.serialization.safe_globals(classes):  # type: ignore[arg-type]
        loaded = torch.load(files[1], weights_only=True)
    input = torch.randn(T, B, I)
    assert torch.equal(loaded(input)[0], layer(input)[0])


@both
@pytest.mark.parametrize("options", [{}, {"num_input_heads": 2, "input_value_size": 6}])
def test_operations_are_counted(kind: Kind, options: dict[str, int]) -> None:
    layer = make(kind, **options)
    cell, d = layer.cells[0], D // N
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.randn(T, B, I))
    keys, values = cell.key_weight.shape[1], cell.input_value_size
    heads, comm_keys, comm_values = cell.num_comm_heads, cell.comm_key_size, cell.comm_value_size
    products = {
        "keys and values of the input": I * (keys + values),
        "queries, scores, what is read": D * keys + N * keys + N * values,
        "gates": N * cell.weight_hh.shape[1] * (values + d),
        "communication": D * heads * (2 * comm_keys + comm_values),
        "who reads whom": heads * N * N * (comm_keys + comm_values),
        "output and gate": 2 * D * heads * comm_values,
    }
    assert counter.get_total_flops() == 2 * T * B * sum(products.values())


@pytest.mark.parametrize("where", ["layer", "cell"])
@both
def test_opacus_is_told_to_refuse(kind: Kind, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what opacus 1.6 offers for that, ``register_module_validator``."""
    validators: Any = ModuleType("opacus.validators")
    errors: Any = ModuleType("opacus.validators.errors")
    registered: dict[type, Callable[[nn.Module], list[Exception]]] = {}
    validators.register_module_validator = lambda kind: partial(registered.__setitem__, kind)
    errors.UnsupportedModuleError = type("UnsupportedModuleError", (Exception,), {})
    make(kind)  # without opacus nothing happens
    monkeypatch.setitem(sys.modules, validators.__name__, validators)
    monkeypatch.setitem(sys.modules, errors.__name__, errors)
    module: nn.Module = make(kind) if where == "layer" else kind.cell_type(I, D, N, 2)
    # what opacus looks at: the modules with parameters of their own
    trained = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    assert trained
    for part in trained:
        (error,) = registered[type(part)](part)
        assert type(error) is errors.UnsupportedModuleError
        assert "opacus computes no per-sample gradients" in str(error)


class Checkpointed(nn.Module):
    """As ``checkpoint_wrapper`` of torch.distributed does with a module of a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args: Any, **named: Any) -> Any:
        return checkpoint(self.module, *args, use_reentrant=False, **named)


@both
def test_activation_checkpoint_of_every_cell_changes_nothing(kind: Kind) -> None:
    layer = make(kind, num_layers=2, bidirectional=True, comm_dropout=0.3)
    input, results = torch.randn(T, B, I), []
    wraps: list[Callable[[nn.Module], nn.Module]] = [lambda cell: cell, Checkpointed]
    for wrap in wraps:
        wrapped = copy.deepcopy(layer)
        wrapped.cells = nn.ModuleList(wrap(cell) for cell in wrapped.cells)
        torch.manual_seed(1)
        output: Tensor = wrapped(input)[0]
        output.square().sum().backward()  # type: ignore[no-untyped-call]
        results.append([output, *(p.grad for p in wrapped.parameters())])
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)


@both
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "learned_initial_state": True},
        {"num_layers": 2, "use_inactive": False, "blocked_grad": True, "dropout": 0.1},
        {"num_input_heads": 2, "input_dropout": 0.1, "comm_dropout": 0.1},
    ],
)
def test_no_sequence_at_all_has_results_without_numbers(kind: Kind, options: Any) -> None:
    layer, flags = make(kind, **options), torch.zeros(T, 0, dtype=torch.bool)
    for given in ({}, {"reset": flags}, {"mask": ~flags}):
        input = torch.randn(T, 0, I, requires_grad=True)
        with rims.trace(layer) as trace:
            output, _ = layer(input, **given)
        output.sum().backward()
        assert output.shape == (T, 0, D * layer.num_directions)
        assert trace.active["cells.0"].shape == (T, 0, N)
        assert all(p.grad is None or not p.grad.any() for p in layer.parameters())
