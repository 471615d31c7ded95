"""Torch's tools on layers and cells: torch.func, checkpoints, saving, memory."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import rims
from oracles import rim_step
from rims.step import RIMCell
from tolerances import assert_near

Kind = type[rims.RIM_LSTM] | type[rims.RIM_GRU]
CellKind = type[rims.RIM_LSTMCell] | type[rims.RIM_GRUCell]
AnyKind = Kind | CellKind
CELLS: list[CellKind] = [rims.RIM_LSTMCell, rims.RIM_GRUCell]
LAYERS: list[Kind] = [rims.RIM_LSTM, rims.RIM_GRU]
both = pytest.mark.parametrize("kind", LAYERS)
both_cells = pytest.mark.parametrize("kind", CELLS)
all_kinds = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])

#: Steps, batch, features.
T, B, I = 4, 3, 11  # noqa: E741
#: hidden_size, num_rims, k.
D, N, K = 10, 5, 2


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(kind: AnyKind, **options: Any) -> Any:
    return kind(I, D, N, K, dtype=torch.float64, **options)


def input_of(kind: AnyKind, *lead: int) -> Tensor:
    steps = () if issubclass(kind, RIMCell) else (T,)
    return torch.randn(*lead, *steps, B, I, dtype=torch.float64)


def first(result: Any) -> Tensor:
    """The output of a layer, ``h`` of a cell."""
    while not isinstance(result, Tensor):
        result = result[0]
    return result


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


# --- torch.func


@all_kinds
def test_func_grad_is_the_gradient(kind: AnyKind) -> None:
    module, input = make(kind), input_of(kind)
    expected = gradients(module, (first(module(input)) ** 2).sum())

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return (first(functional_call(module, parameters, (input,))) ** 2).sum()

    parameters = {name: p.detach() for name, p in module.named_parameters()}
    got = grad(loss)(parameters, input)
    assert set(got) == set(expected)
    for name, value in got.items():
        assert_near(value, expected[name])
    # with other parameters: functional_call really uses those given
    other = {name: 2 * p for name, p in parameters.items()}
    assert not torch.allclose(loss(other, input), loss(parameters, input))


@all_kinds
def test_vmap_over_inputs_is_a_loop(kind: AnyKind) -> None:
    module, inputs = make(kind), input_of(kind, 6)
    expected = torch.stack([first(module(input)) for input in inputs])
    assert_near(vmap(lambda input: first(module(input)))(inputs), expected)


@all_kinds
def test_vmap_over_parameters_is_an_ensemble(kind: AnyKind) -> None:
    members, input = [make(kind) for _ in range(4)], input_of(kind)
    parameters, buffers = stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return first(functional_call(skeleton, (parameters, buffers), (input,)))

    expected = torch.stack([first(member(input)) for member in members])
    assert not torch.allclose(expected[0], expected[1])
    assert_near(vmap(run)(parameters, buffers), expected)


@both_cells
def test_gradient_of_every_sample_by_vmap(kind: CellKind) -> None:
    cell, inputs = make(kind), torch.randn(5, I, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return (first(functional_call(cell, parameters, (input,))) ** 2).sum()

    parameters = {name: p.detach() for name, p in cell.named_parameters()}
    got = vmap(grad(loss), in_dims=(None, 0))(parameters, inputs)
    for i, input in enumerate(inputs):
        for name, value in gradients(cell, (first(cell(input)) ** 2).sum()).items():
            assert_near(got[name][i], value)


@both
def test_gradient_of_every_sequence_by_vmap(kind: Kind) -> None:
    layer, input = make(kind, num_layers=2), input_of(kind)

    def loss(parameters: dict[str, Tensor], sequence: Tensor) -> Tensor:
        return (first(functional_call(layer, parameters, (sequence,))) ** 2).sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    got = vmap(grad(loss), in_dims=(None, 1))(parameters, input)
    for i in range(B):
        for name, value in gradients(layer, (first(layer(input[:, i])) ** 2).sum()).items():
            assert_near(got[name][i], value)


# --- checkpoints and second derivatives


@all_kinds
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpoint_changes_nothing(kind: AnyKind, use_reentrant: bool) -> None:
    module = make(kind, input_dropout=0.3, comm_dropout=0.3)
    results = []
    for checkpointed in (False, True):
        input = input_of(kind).fill_(0.5).requires_grad_()
        torch.manual_seed(1)  # the same dropout, which recomputing must draw again
        if checkpointed:
            output = first(checkpoint(module, input, use_reentrant=use_reentrant))
        else:
            output = first(module(input))
        module.zero_grad()
        torch.autograd.backward((output**2).sum())
        results.append([output, input.grad, *(p.grad.clone() for p in module.parameters())])
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)


@both_cells
@pytest.mark.parametrize("k", [1, 2, N])
def test_second_derivative_equals_that_of_the_equations(kind: CellKind, k: int) -> None:
    cell: Any = kind(3, D, N, k, dtype=torch.float64, input_key_size=3, num_comm_heads=2)
    input = torch.randn(2, 3, dtype=torch.float64)
    state = [torch.randn(2, D, dtype=torch.float64) for _ in cell.state_sizes]

    def penalty(step: Callable[[Tensor, tuple[Tensor, ...]], Any]) -> list[Tensor]:
        """Gradients of the squared gradient, as a gradient penalty takes them."""
        wanted = [t.clone().requires_grad_() for t in (input, *state)]
        h = step(wanted[0], tuple(wanted[1:])).state[0]
        slopes = derivatives((h**2).sum(), wanted, create_graph=True)
        return derivatives(sum_of_squares(slopes), [*wanted, *cell.parameters()])

    got, expected = penalty(cell.step), penalty(partial(rim_step, cell))
    # of the input, every state and every parameter but the two that only shift the result
    assert sum(bool(e.count_nonzero()) for e in expected) >= len(expected) - 2
    for a, b in zip(got, expected, strict=True):
        assert_near(a, b)


def derivatives(loss: Tensor, wanted: list[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    found = torch.autograd.grad(
        loss, wanted, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return list(found)


def sum_of_squares(parts: list[Tensor]) -> Tensor:
    return torch.stack([(part**2).sum() for part in parts]).sum()


# --- saving and copying


@all_kinds
def test_state_dict_survives_a_file_without_pickled_code(kind: AnyKind) -> None:
    source, target, input = make(kind), make(kind), input_of(kind)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(first(target(input)), first(source(input)))


@all_kinds
def test_strict_loading_refuses_missing_and_unknown_names(kind: AnyKind) -> None:
    target = make(kind)
    state = target.state_dict()
    name = next(iter(state))
    with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
        target.load_state_dict({n: value for n, value in state.items() if n != name})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*stranger"):
        target.load_state_dict({**state, "stranger": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
        target.load_state_dict({**state, name: torch.zeros(1)})


@all_kinds
def test_assigned_state_dict_is_trained_in_place(kind: AnyKind) -> None:
    source, target = make(kind), make(kind)
    torch.autograd.backward(first(target(input_of(kind))).sum())
    target.load_state_dict(source.state_dict(), assign=True)
    for ours, given in zip(target.parameters(), source.parameters(), strict=True):
        assert isinstance(ours, nn.Parameter)
        assert ours.requires_grad
        assert ours.data_ptr() == given.data_ptr()
    torch.autograd.backward(first(target(input_of(kind))).sum())
    assert all(p.grad is not None for p in target.parameters())


@both_cells
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda cell: pickle.loads(pickle.dumps(cell))]
)
def test_cell_copies_after_a_backward_are_independent(
    kind: CellKind, duplicate: Callable[[Any], Any]
) -> None:
    cell, input = make(kind), input_of(kind)
    torch.autograd.backward(first(cell(input)).sum())
    other = duplicate(cell)
    expected = first(cell(input))
    assert torch.equal(first(other(input)), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert torch.equal(first(cell(input)), expected)
    assert not torch.equal(first(other(input)), expected)


@all_kinds
def test_share_memory_moves_every_parameter_and_no_number(kind: AnyKind) -> None:
    module, input = make(kind), input_of(kind)
    expected = first(module(input))
    assert not any(p.is_shared() for p in module.parameters())
    assert module.share_memory() is module
    assert all(p.is_shared() for p in module.parameters())
    assert torch.equal(first(module(input)), expected)


# --- what code asks of an nn.LSTM about its weights


@both
def test_all_weights_lists_the_parameters_of_every_direction(kind: Kind) -> None:
    theirs: Any = nn.LSTM if kind is rims.RIM_LSTM else nn.GRU
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
    for layer in (theirs(I, D, **options), make(kind, **options)):
        lists = layer.all_weights
        assert len(lists) == 4
        flat = [id(weight) for weights in lists for weight in weights]
        assert flat == [id(parameter) for parameter in layer.parameters()]


@both
def test_code_computing_a_plain_lstm_from_the_weights_is_refused(kind: Kind) -> None:
    # Such code zips the names in _all_weights with getattr. A RIM has no such names.
    theirs: Any = nn.LSTM if kind is rims.RIM_LSTM else nn.GRU
    assert isinstance(theirs(I, D)._all_weights[0][0], str)
    for name in ("_all_weights", "_flat_weights", "weight_ih_l0"):
        with pytest.raises(AttributeError, match=f"{kind.__name__}.*{name}"):
            getattr(make(kind), name)


# --- length


@both
def test_three_thousand_steps_have_finite_gradients(kind: Kind) -> None:
    layer: Any = kind(3, 4, 2, 1, num_comm_heads=1, comm_key_size=2, comm_value_size=2)
    input = torch.randn(3000, 1, 3).requires_grad_()
    output, _ = layer(input)
    (output**2).mean().backward()
    assert output.isfinite().all()
    for name, parameter in [("input", input), *layer.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


def kept_for_backward(layer: nn.Module, steps: int) -> int:
    """Bytes of all the storages autograd holds after a forward, weights not counted."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(torch.randn(steps, B, I, dtype=torch.float64).requires_grad_())[0]
    assert output.requires_grad  # alive up to here, so no address was used twice
    return sum(size for address, size in sizes.items() if address not in weights)


@both
@pytest.mark.parametrize("bidirectional", [False, True])
def test_memory_grows_linearly_with_length(kind: Kind, bidirectional: bool) -> None:
    layer = make(kind, bidirectional=bidirectional)
    short, middle, long = (kept_for_backward(layer, steps) for steps in (20, 40, 80))
    # Each step keeps the same, up to what the first and last steps have otherwise.
    per_step = (middle - short) / 20
    assert per_step > 8 * B * D
    assert long - middle == pytest.approx(40 * per_step, rel=0.01)
