"""Cells and layers of rims.jax as modules of Flax NNX, and weights that go to torch and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import rims
from fixtures import files, read, weights
from jax_cases import assert_near, quick_jit, to_jax, x64  # noqa: F401  (fixture)
from layer_cases import former
from rims.jax import (
    RIM_GRU,
    RIM_LSTM,
    CellSpec,
    RIMGRUCell,
    RIMLSTMCell,
    from_authors,
    from_torch,
    init,
    scan,
    to_torch,
)
from rims.jax.parameters import NAMES, shapes
from rims.parameters import Parameters as of_torch
from selection import short

#: What is kept short of rims.jax: agreement, published arrays, machine code.
pytestmark = pytest.mark.long

CELLS: list[Any] = [RIMLSTMCell, RIMGRUCell]
LAYERS: list[Any] = [RIM_LSTM, RIM_GRU]


def inputs(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), shape)


# --- nnx.RNN


@pytest.mark.parametrize("kind", short(CELLS, 1))
def test_a_cell_in_nnx_rnn_computes_the_sequence(kind: Any) -> None:
    cell = kind(3, 8, 4, 2, learned_initial_state=True, rngs=nnx.Rngs(0))
    cell.initial_h.set_value(jnp.arange(8.0))
    input = inputs(5, 6, 3)
    carry, output = nnx.RNN(cell, time_major=True, return_carry=True)(input)
    did = scan(cell.parameters, input)
    assert_near(output, did.output, tolerance=1e-5)
    h = carry[1] if kind is RIMLSTMCell else carry
    assert_near(h, did.state[0], tolerance=1e-5)
    if kind is RIMLSTMCell:  # (c, h), as Flax has it
        assert_near(carry[0], did.state[1], tolerance=1e-5)


@pytest.mark.long
def test_a_cell_takes_any_batch_and_slots() -> None:
    cell = RIMLSTMCell(3, 8, 4, 2, input_slots=True, proj_size=4, rngs=nnx.Rngs(0))
    assert cell.num_feature_axes == 2
    carry = cell.initialize_carry((2, 6, 5, 3))
    (c, h), output = cell(carry, inputs(2, 6, 5, 3))
    assert c.shape == (2, 6, 8)
    assert h.shape == output.shape == (2, 6, 4)
    assert nnx.RNN(cell)(inputs(2, 4, 5, 3)).shape == (2, 4, 4)


def test_carries_can_be_drawn() -> None:
    cell = RIMGRUCell(3, 8, 4, 2, rngs=nnx.Rngs(0))
    drawn = cell.initialize_carry((5, 3), nnx.Rngs(0), nnx.initializers.normal())
    assert drawn.shape == (5, 8)
    assert len(np.unique(drawn)) > 1
    with pytest.raises(ValueError, match="carry_init needs rngs"):
        cell.initialize_carry((5, 3), None, nnx.initializers.normal())


@pytest.mark.long
def test_types_of_computing_and_of_parameters() -> None:
    cell = RIMLSTMCell(3, 8, 4, 2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert nnx.RNN(cell)(inputs(2, 4, 3)).dtype == jnp.bfloat16
    layer = RIM_GRU(3, 8, 4, 2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert layer(inputs(4, 9, 3))[0].dtype == jnp.bfloat16
    graph, params = nnx.split(layer)
    grads = jax.grad(lambda p: nnx.merge(graph, p)(inputs(4, 9, 3))[0].sum().astype(float))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


# --- dropout


@pytest.mark.parametrize(
    "options", short([{"input_dropout": 0.5}, {"comm_dropout": 0.5}, {"dropout": 0.5}], 0)
)
@pytest.mark.long
def test_dropout_acts_in_training_only(options: dict[str, float]) -> None:
    layer = RIM_GRU(3, 8, 4, 2, num_layers=2, rngs=nnx.Rngs(0), **options)  # type: ignore[arg-type]
    plain = RIM_GRU(3, 8, 4, 2, num_layers=2, rngs=nnx.Rngs(0))
    nnx.update(plain, nnx.state(layer, nnx.Param))
    run = nnx.jit(lambda layer, input: layer(input)[0])
    first, second = run(layer, inputs(4, 9, 3)), run(layer, inputs(4, 9, 3))
    assert (first != second).any()
    layer.eval()  # type: ignore[no-untyped-call]
    assert_near(run(layer, inputs(4, 9, 3)), plain(inputs(4, 9, 3))[0], tolerance=1e-5)


def test_dropout_of_everything_read_leaves_nothing_of_the_input() -> None:
    layer = RIM_GRU(3, 8, 4, 2, input_dropout=1.0, rngs=nnx.Rngs(0))
    one, other = inputs(1, 2, 3), -inputs(1, 2, 3)  # from zeros the same are active
    assert np.array_equal(layer(one)[0], layer(other)[0])
    layer.eval()  # type: ignore[no-untyped-call]
    assert not np.array_equal(layer(one)[0], layer(other)[0])


# --- weights


@pytest.mark.parametrize(
    "dtype", short([torch.float32, torch.float64, torch.bfloat16, torch.float16], 1, 2)
)
@pytest.mark.usefixtures("x64")
def test_weights_go_there_and_back_bit_for_bit(dtype: torch.dtype) -> None:
    modules: list[Any] = [
        rims.RIM_LSTMCell(3, 8, 4, 2, proj_size=4, learned_initial_state=True, dtype=dtype),
        rims.RIM_GRUCell(3, 8, 4, 2, bias=False, dtype=dtype),
        rims.RIM_LSTM(3, [8, 6], [4, 3], [2, 1], num_layers=2, bidirectional=True, dtype=dtype),
    ]
    for module in modules:
        converted = from_torch(module)
        back = to_torch(converted)
        assert set(back) == set(module.state_dict())
        for name, tensor in module.state_dict().items():
            assert back[name].dtype == dtype
            assert torch.equal(back[name].view(torch.uint8), tensor.view(torch.uint8))
        again = to_torch(from_torch(back, into=converted))
        assert all(torch.equal(again[name], back[name]) for name in back)


def test_a_trained_model_gives_the_same_outputs_there_and_back() -> None:
    torch.manual_seed(0)
    layer = rims.RIM_LSTM(3, 8, 4, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    input = torch.randn(5, 9, 3)
    for _ in range(3):
        optimizer.zero_grad()
        layer(input)[0].square().mean().backward()
        optimizer.step()
    converted = from_torch(layer)
    assert_near(converted(to_jax(input))[0], layer(input)[0], tolerance=1e-5)

    graph, params = nnx.split(converted)
    slope = quick_jit(jax.grad(lambda p: (nnx.merge(graph, p)(to_jax(input))[0] ** 2).mean()))
    trained = nnx.merge(graph, jax.tree.map(lambda p, g: p - 0.5 * g, params, slope(params)))
    before = layer(input)[0].detach().clone()
    layer.load_state_dict(to_torch(trained))
    assert_near(layer(input)[0], trained(to_jax(input))[0], tolerance=1e-5)
    assert (layer(input)[0] != before).any()


def test_tensors_are_copies() -> None:
    cell = RIMGRUCell(3, 8, 4, 2, rngs=nnx.Rngs(0))
    to_torch(cell)["weight_hh"].zero_()
    assert (cell.parameters.weight_hh != 0).all()


def test_options_come_along() -> None:
    source = rims.RIM_LSTM(
        *(3, [8, 12], [4, 3], [2, 1]),
        num_layers=2,
        batch_first=True,
        bidirectional=True,
        use_inactive=False,
        blocked_grad=True,
        input_value_size=8,  # the default of the first layer, not of the second
        comm_reads="state",
        init_from_unit_size=True,
    )
    layer = from_torch(source)
    for name in ("num_layers", "batch_first", "bidirectional", "use_inactive", "blocked_grad"):
        assert getattr(layer, name) == getattr(source, name)
    specs = [cell.spec for cell in layer.cells]
    assert [spec.hidden_size for spec in specs] == [8, 8, 12, 12]
    assert {(spec.read_size, spec.comm_reads, spec.init_from_unit_size) for spec in specs} == {
        (8, "state", True)
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_gate": "none"}, "rims.jax does not compute input_gate='none'; use the torch"),
        ({"competition": "mechanisms"}, "rims.jax does not compute competition='mechanisms'"),
        ({"comm_update": "convex"}, "rims.jax does not compute comm_update='convex'"),
        ({"tie_margin": 0.01}, "rims.jax does not compute tie_margin=0.01"),
        ({"num_comm_heads": 0}, "rims.jax does not compute num_comm_heads=0"),
    ],
)
def test_options_of_the_torch_layers_alone_are_refused_by_name(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^RIMGRUCell: {message}"):
        RIMGRUCell(3, 8, 4, 2, rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match=f"^RIMLSTMCell: {message}"):
        from_torch(rims.RIM_LSTM(3, 8, 4, 2, **options))


def test_the_gate_of_the_communication_starts_at_its_bias() -> None:
    plain, moved = (
        RIMGRUCell(3, 8, 4, 2, comm_gate_bias=bias, rngs=nnx.Rngs(0)).parameters
        for bias in (0.0, -2.0)
    )
    assert plain.comm_gate_bias is not None
    shifted = dataclasses.replace(plain, comm_gate_bias=plain.comm_gate_bias - 2, spec=moved.spec)
    for name, array in moved.arrays().items():
        assert (array == shifted.arrays()[name]).all(), name


def test_parameters_have_the_names_of_the_torch_cell() -> None:
    assert set(NAMES) == set(of_torch._fields)
    spec = CellSpec(kind="lstm", input_size=3, hidden_size=8, num_rims=4, k=2, proj_size=4)
    cell = rims.RIM_LSTMCell(3, 8, 4, 2, proj_size=4)
    assert shapes(spec) == {name: tuple(p.shape) for name, p in cell.named_parameters()}


def test_a_state_dict_of_former_versions_is_read() -> None:
    trained = rims.RIM_LSTM(3, 8, 4, 2, num_layers=2)
    layer = RIM_LSTM(3, 8, 4, 2, num_layers=2, rngs=nnx.Rngs(0))
    from_torch(former(trained.state_dict()), into=layer)
    back = to_torch(layer)
    assert all(torch.equal(back[name], value) for name, value in trained.state_dict().items())


def test_double_weights_need_the_mode_for_them() -> None:
    with pytest.raises(ValueError, match="enable_x64"):
        from_torch(rims.RIM_GRUCell(3, 8, 4, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("weight_hh"), "weight_hh is missing"),
        (lambda state: state.update(other=torch.zeros(1)), "unknown entry other"),
        (lambda state: state.update(weight_hh=torch.zeros(2)), "weight_hh must have shape"),
    ],
)
def test_a_state_dict_that_does_not_fit_changes_nothing(change: Any, message: str) -> None:
    cell = RIMGRUCell(3, 8, 4, 2, rngs=nnx.Rngs(0))
    before = to_torch(cell)
    state = rims.RIM_GRUCell(3, 8, 4, 2).state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        from_torch(state, into=cell)
    assert all(torch.equal(tensor, before[name]) for name, tensor in to_torch(cell).items())
    with pytest.raises(ValueError, match="needs into="):
        from_torch(state)


@pytest.mark.parametrize("path", files("rims_lstm_i8_*.npz"))
def test_arrays_of_the_authors_are_checked(path: Path) -> None:
    arrays = weights(read(path))
    spec = CellSpec(kind="lstm", input_size=8, hidden_size=12, num_rims=3, k=2)
    with pytest.raises(ValueError, match="unknown entry other"):
        from_authors(spec, {**arrays, "other": np.zeros(1)})
    arrays.pop("cell.weight_hh")
    with pytest.raises(ValueError, match="weight_hh is missing"):
        from_authors(spec, arrays)


def test_parameters_are_drawn_by_the_laws_of_torch() -> None:
    spec = CellSpec(
        kind="lstm", input_size=7, hidden_size=32, num_rims=2, k=1, learned_initial_state=True
    )
    drawn = to_torch(init(jax.random.key(0), spec))
    cell = rims.RIM_LSTMCell(7, 32, 2, 1, learned_initial_state=True)
    for name, parameter in cell.named_parameters():
        largest = parameter.detach().abs().max()
        assert drawn[name].shape == parameter.shape
        # Of as many uniform draws the largest are near the bound in both.
        torch.testing.assert_close(drawn[name].abs().max(), largest, rtol=0.25, atol=0)


# --- mistakes


@pytest.mark.parametrize("kind", LAYERS)
def test_mistakes_are_told(kind: Any) -> None:
    layer = kind(3, 8, 4, 2, bidirectional=True, rngs=nnx.Rngs(0))
    for given, message in [
        ({"input": inputs(3)}, "axes"),
        ({"input": inputs(4, 2, 5)}, "I=3"),
        ({"reset": jnp.zeros((2, 4), bool)}, "reset must be bool"),
        ({"mask": jnp.array([[True], [False], [True], [True]])}, "up to a sequence's end"),
        ({"mask": jnp.ones((4, 1), bool), "reset": jnp.ones((4, 1), bool)}, "combined"),
        ({"hx": (jnp.zeros((1, 1, 8)),) * 2 if kind is RIM_LSTM else jnp.zeros((1, 1, 8))}, "h_0"),
    ]:
        flags: dict[str, Any] = {"input": inputs(4, 1, 3)} | cast(dict[str, Any], given)
        with pytest.raises(ValueError, match=message):
            layer(flags.pop("input"), **flags)


def test_a_layer_of_one_warns_of_dropout_between_layers() -> None:
    with pytest.warns(UserWarning, match="only one layer"):
        RIM_LSTM(3, 8, 4, 2, dropout=0.5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="hx must be a pair"):
        RIM_LSTM(3, 8, 4, 2, rngs=nnx.Rngs(0))(inputs(4, 1, 3), jnp.zeros((1, 1, 8)))  # type: ignore[arg-type]
