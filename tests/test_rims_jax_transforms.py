"""What JAX does to functions works on RIM cells: jit, vmap, grad, scan, checkpoint, short types."""

from __future__ import annotations

import dataclasses
import math
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import Array, lax

from jax_cases import assert_near, both_ways, quick_jit, x64  # noqa: F401  (fixture)
from rims.functional import topk_mask as of_torch
from rims.jax import CellSpec, Parameters, init, initial_state, scan, step
from rims.jax.functional import topk_mask
from selection import short

#: What is kept short of rims.jax: agreement, published arrays, machine code.
pytestmark = pytest.mark.long

SPEC = CellSpec(
    kind="lstm", input_size=3, hidden_size=8, num_rims=4, k=2, comm_key_size=2, comm_value_size=2
)


def parameters(spec: CellSpec = SPEC, dtype: Any = jnp.float32) -> Parameters:
    return init(jax.random.key(0), spec, dtype)


def inputs(*shape: int) -> Array:
    return jax.random.normal(jax.random.key(1), (*shape, 3))


def loss(p: Parameters, input: Array, fast: bool) -> Array:
    return (scan(p, input, fast=fast).output ** 2).sum()


# --- selection


@pytest.mark.parametrize("k", [1, 2, 4])
def test_ties_go_to_the_lowest_index(k: int) -> None:
    assert topk_mask(jnp.zeros(4), k).tolist() == [i < k for i in range(4)]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0, 3.0, 2.0, 3.0], [False, True, False, True]),
        ([2.0, 1.0, 2.0, 2.0], [True, False, True, False]),
        ([0.0, math.nan, math.inf, 5.0], [False, True, True, False]),
        ([math.nan, math.nan, math.nan, 5.0], [True, True, False, False]),
        ([-math.inf, -math.inf, -math.inf, 0.0], [True, False, False, True]),
        ([-0.0, 0.0, 0.0, -1.0], [True, True, False, False]),
    ],
)
def test_selection(scores: list[float], expected: list[bool]) -> None:
    assert topk_mask(jnp.array(scores), 2).tolist() == expected
    turned = topk_mask(jnp.array(scores)[:, None], 2, axis=0)
    assert turned[:, 0].tolist() == expected


def test_selection_is_that_of_torch() -> None:
    scores = np.random.default_rng(0).integers(-2, 3, (200, 5)).astype(np.float32)  # many ties
    for k in range(1, 6):
        expected = of_torch(torch.from_numpy(scores), k).numpy()
        assert np.array_equal(topk_mask(jnp.asarray(scores), k), expected)


@both_ways
def test_a_state_of_zeros_activates_the_first(fast: bool) -> None:
    did = scan(parameters(), inputs(1, 5), fast=fast)
    assert did.active[0].tolist() == [[True, True, False, False]] * 5


@both_ways
def test_inactive_mechanisms_stay_bit_for_bit(fast: bool) -> None:
    state = tuple(jax.random.normal(jax.random.key(i), (5, 8)) for i in (2, 3))
    did = scan(parameters(), inputs(1, 5), state, fast=fast)
    idle = np.repeat(~np.asarray(did.active[0]), 2, axis=-1)
    for new, old in zip(did.state, state, strict=True):
        assert np.array_equal(np.asarray(new)[idle], np.asarray(old)[idle])
        assert (np.asarray(new)[~idle] != np.asarray(old)[~idle]).all()


# --- transformations


@pytest.mark.usefixtures("x64")
@both_ways
@pytest.mark.long
def test_vmap_over_models_and_checkpoint_agree_with_plain_calls(fast: bool) -> None:
    models = [init(jax.random.key(i), SPEC, jnp.float64) for i in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    input = inputs(4, 3)
    gradient = jax.grad(loss)
    expected = [gradient(model, input, fast) for model in models]
    got = jax.vmap(gradient, in_axes=(0, None, None))(stacked, input, fast)
    again = jax.grad(jax.checkpoint(loss, static_argnums=2))(models[0], input, fast)
    for name, array in got.arrays().items():
        for i in range(2):
            assert_near(array[i], expected[i].arrays()[name])
        assert_near(again.arrays()[name], expected[0].arrays()[name])


@pytest.mark.usefixtures("x64")
@pytest.mark.long
def test_gradients_are_those_of_finite_differences() -> None:
    # With all mechanisms active nothing is selected and no gradient stopped.
    p = parameters(dataclasses.replace(SPEC, k=4), jnp.float64)
    input = inputs(3, 2)
    keys = jax.random.split(jax.random.key(5), len(p.arrays()))
    pairs = zip(p.arrays().items(), keys, strict=True)
    direction = {name: jax.random.normal(key, a.shape) for (name, a), key in pairs}

    def along(eps: float) -> Array:
        arrays: Any = {name: a + eps * direction[name] for name, a in p.arrays().items()}
        return loss(dataclasses.replace(p, **arrays), input, True)

    gradient = jax.grad(loss)(p, input, True).arrays()
    by_rule = sum((gradient[name] * direction[name]).sum() for name in direction)
    assert_near((along(1e-6) - along(-1e-6)) / 2e-6, by_rule, tolerance=1e-6)


@pytest.mark.usefixtures("x64")
def test_a_loop_of_ones_own_over_the_step_is_the_sequence() -> None:
    p, input = parameters(dtype=jnp.float64), inputs(6, 3)

    def one(state: Any, x: Array) -> Any:
        new = step(p, x, state).state
        return new, new[0]

    last, output = lax.scan(one, initial_state(p, (3,)), input)
    did = scan(p, input)
    assert_near(did.output, output)
    for got, expected in zip(did.state, last, strict=True):
        assert_near(got, expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.long
def test_forward_mode_takes_the_plain_loop() -> None:
    p, input = parameters(dtype=jnp.float64), inputs(3, 2)

    def along(eps: Any, fast: bool) -> Array:
        return loss(jax.tree.map(lambda a: (1 + eps) * a, p), input, fast)

    _, tangent = jax.jvp(lambda e: along(e, False), (0.0,), (1.0,))
    assert_near(tangent, jax.grad(along)(0.0, True))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda e: along(e, True), (0.0,), (1.0,))


@pytest.mark.parametrize(
    ("dtype", "fast"), short(product([jnp.bfloat16, jnp.float16], [True, False]), 0)
)
@pytest.mark.long
def test_short_types(dtype: Any, fast: bool) -> None:
    p, input = parameters(), inputs(4, 8)
    exact = scan(p, input, fast=False).output
    short = p.astype(dtype)
    run = quick_jit(jax.value_and_grad(lambda p, x: loss(p, x, fast)))
    value, gradient = run(short, input.astype(dtype))
    output = scan(short, input.astype(dtype), fast=fast).output
    assert output.dtype == value.dtype == gradient.weight_hh.dtype == dtype
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))
    # A near-tie may fall otherwise in some sample; most of them keep to eight bits.
    near = jnp.isclose(output.astype(jnp.float32), exact, rtol=0.05, atol=0.02)
    assert near.mean() > 0.9


def test_recorded_attentions_are_distributions() -> None:
    did = scan(parameters(), inputs(4, 3), record=True)
    assert did.input_attention is not None
    assert did.communication is not None
    assert did.input_attention.shape == (4, 3, 4, 2)
    assert did.communication.shape == (4, 3, 4, 4, 4)
    for weights in (did.input_attention, did.communication):
        assert_near(weights.sum(-1), np.ones(weights.shape[:-1]), tolerance=1e-5)


# --- mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": inputs(4)}, "input must be"),
        ({"input": jnp.zeros((0, 3, 3))}, "at least one step"),
        ({"input": jnp.zeros((4, 3, 2))}, "I=3"),
        ({"state": jnp.zeros((3, 8))}, "state must be a tuple"),
        ({"state": (jnp.zeros((3, 8)),)}, "state must be a tuple"),
        ({"reset": jnp.zeros((3, 4), bool)}, "reset must be bool"),
        ({"mask": jnp.zeros((4, 3))}, "mask must be bool"),
        ({"fast": True, "record": True}, "recording attentions"),
    ],
)
def test_mistakes_are_told(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"input": inputs(4, 3)} | change
    with pytest.raises(ValueError, match=message):
        scan(parameters(), given.pop("input"), **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 5}, "k must lie in"),
        ({"kind": "rnn"}, "kind must be"),
        ({"kind": "gru", "proj_size": 4}, "proj_size"),
        ({"num_rims": 3}, "num_rims must divide"),
        ({"comm_dropout": 2.0}, "comm_dropout"),
    ],
)
def test_specs_that_make_no_cell(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **change)


# --- no sequence at all


@pytest.mark.parametrize("fast", [None, False, True])
@pytest.mark.parametrize("flag", ["", "reset", "mask"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_an_empty_batch_has_results_and_gradients_without_numbers(
    kind: Any, flag: str, fast: bool | None
) -> None:
    p = parameters(dataclasses.replace(SPEC, kind=kind))
    flags: Any = {flag: jnp.ones((5, 0), bool)} if flag else {}

    def total(p: Parameters, input: Array) -> tuple[Array, Any]:
        did = scan(p, input, fast=fast, **flags)
        return did.output.sum(), did

    gradient = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (_, did), (slopes, slope) = gradient(p, inputs(5, 0))
    assert did.output.shape == (5, 0, 8)
    assert did.active.shape == (5, 0, 4)
    assert slope.shape == (5, 0, 3)
    assert not any(np.any(array) for array in slopes.arrays().values())


@pytest.mark.parametrize(
    "options",
    short([{"input_slots": True}, {"num_input_heads": 2}, {"proj_size": 4}, {"k": 4}], 1),
)
def test_an_empty_batch_has_a_step_with_all_options(options: dict[str, Any]) -> None:
    spec = dataclasses.replace(SPEC, **options)
    p = parameters(spec)
    lead = (0, 5) if spec.input_slots else (0,)
    did = step(p, inputs(*lead), initial_state(p, (0,)))
    assert [part.shape for part in did.state] == [(0, size) for size in spec.state_sizes]
    recorded = scan(p, inputs(6, *lead), record=True)
    assert recorded.communication is not None
    assert recorded.communication.shape == (6, 0, 4, 4, 4)
