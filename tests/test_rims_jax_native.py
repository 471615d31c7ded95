"""Sequences by the kernels that XLA calls: the numbers and derivatives of the form in pure JAX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jax_cases import assert_near, chunks_of, quick_jit, x64  # noqa: F401  (fixture)
from rims.jax import CellSpec, Parameters, init, native, scan, xla
from selection import short

pytest.importorskip("numba", reason="the native way needs numba")

pytestmark = pytest.mark.usefixtures("x64")

ROOT = Path(__file__).resolve().parents[1]
SMALL: dict[str, Any] = {"input_size": 3, "input_key_size": 3, "comm_key_size": 2}


def make(kind: str = "lstm", size: tuple[int, int, int] = (8, 4, 2), **options: Any) -> Parameters:
    hidden, n, k = size
    spec = CellSpec(kind=kind, hidden_size=hidden, num_rims=n, k=k, **{**SMALL, **options})  # type: ignore[arg-type]
    p = init(jax.random.key(0), spec, jnp.float64)
    leaves, tree = jax.tree.flatten(p)  # initial states are drawn as zeros
    keys = jax.random.split(jax.random.key(1), len(leaves))
    pairs = zip(keys, leaves, strict=True)
    moved = [a + 0.3 * jax.random.normal(key, a.shape) for key, a in pairs]
    changed: Parameters = jax.tree.unflatten(tree, moved)
    return changed


def inputs(steps: int, batch: int) -> Array:
    return jax.random.normal(jax.random.key(2), (steps, batch, 3))


def outcome(run: Any, p: Parameters, input: Array, **flags: Any) -> Any:
    """Values and gradients by one way."""
    keys = jax.random.split(jax.random.key(3), 3)
    state = tuple(
        jax.random.normal(key, (input.shape[1], size))
        for key, size in zip(keys, p.spec.state_sizes, strict=False)
    )

    def loss(p: Parameters, input: Array, state: Any) -> Any:
        found = run(p, input, state, flags.get("reset"), flags.get("mask"))
        output, last, _ = found
        weights = jax.random.normal(keys[2], output.shape)
        return (weights * output).sum() + sum((s**2).sum() for s in last), found

    return quick_jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(p, input, state)


def assert_same(got: Any, expected: Any) -> None:
    for one, other in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        assert_near(one, other)


def native_run(*given: Any) -> Any:
    from rims.jax.native.sequence import run

    return run(*given)


def plain_run(p: Parameters, input: Array, state: Any, *flags: Any) -> Any:
    did = scan(p, input, state, fast=False)
    return did.output, did.state, did.active


CASES: list[Any] = [
    ("lstm", (8, 4, 2), 5, 1, "", {}),
    ("gru", (15, 3, 1), 5, 3, "reset", {}),
    ("lstm", (36, 2, 2), 4, 37, "mask", {"bias": False, "comm_reads": "state"}),
    ("gru", (40, 10, 7), 4, 70, "reset", {"learned_initial_state": True}),
    ("lstm", (34, 17, 5), 3, 9, "reset", {"learned_initial_state": True, "num_comm_heads": 5}),
    ("gru", (5, 1, 1), 1, 2, "mask", {"bias": False}),
]


@pytest.mark.parametrize(("kind", "size", "steps", "batch", "flag", "options"), short(CASES, -1))
def test_the_numbers_of_pure_jax(
    kind: str, size: Any, steps: int, batch: int, flag: str, options: Any
) -> None:
    p, input = make(kind, size, **options), inputs(steps, batch)
    flags = {flag: jax.random.bernoulli(jax.random.key(4), 0.4, (steps, batch))} if flag else {}
    with chunks_of(2 * batch):  # the last chunk is shorter
        got = outcome(native_run, p, input, **flags)
    assert_same(got, outcome(xla.run, p, input, **flags))


@pytest.mark.long
def test_it_is_what_runs_by_default() -> None:
    program = quick_jit(lambda p, x: scan(p, x).output)
    assert "rims_forward" in program.lower(make(), inputs(2, 1)).as_text()
    without = quick_jit(lambda p, x: scan(p, x).output)
    with native.left_out():
        assert "rims_forward" not in without.lower(make(), inputs(2, 9)).as_text()
    assert (
        "rims_forward"
        in quick_jit(lambda p, x: scan(p, x).output).lower(make(), inputs(2, 9)).as_text()
    )


@pytest.mark.long
def test_a_program_for_another_platform_has_no_call_of_ours() -> None:
    program = jax.jit(jax.grad(lambda p, x: (scan(p, x).output ** 2).sum()))
    text = program.trace(make(), inputs(2, 9)).lower(lowering_platforms=("cuda",)).as_text()
    assert "custom_call @rims_" not in text


@pytest.mark.long
def test_elsewhere_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on another platform, taken here."""
    p, input = make(learned_initial_state=True), inputs(4, 9)
    expected = outcome(xla.run, p, input)

    def elsewhere(*given: Any, default: Any, cpu: Any) -> Any:
        return default(*given)

    monkeypatch.setattr(jax.lax, "platform_dependent", elsewhere)
    assert_same(outcome(native_run, p, input), expected)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.long
def test_gradients_of_gradients(kind: str) -> None:
    p, input = make(kind), inputs(3, 2)

    def steepness(p: Parameters, run: Any) -> Any:
        def loss(p: Parameters, input: Array) -> Any:
            state = tuple(jnp.zeros((2, s)) for s in p.spec.state_sizes)
            return (run(p, input, state, None, None)[0] ** 2).sum()

        slopes = jax.grad(loss, argnums=(0, 1))(p, input)
        return sum((s**2).sum() for s in jax.tree.leaves(slopes))

    got, expected = (
        quick_jit(jax.grad(lambda p, run=run: steepness(p, run)))(p)
        for run in (native_run, plain_run)
    )
    assert_same(got, expected)


@pytest.mark.long
def test_threads_of_xla_take_blocks_in_many_calls_at_once() -> None:
    """Calls that do not depend on each other: none may wait for a thread that another one holds."""
    p, input = make(), inputs(3, 64)

    def several(p: Parameters, input: Array) -> list[Array]:
        return [scan(p, input * scale).output for scale in range(1, 9)]

    run = quick_jit(several)
    expected = [scan(p, input * scale, fast=False).output for scale in range(1, 9)]
    for _ in range(20):
        for got, want in zip(run(p, input), expected, strict=True):
            assert_near(got, want)


@pytest.mark.long
def test_a_type_of_half_the_size_is_computed_in_single_precision() -> None:
    p, input = make().astype(jnp.bfloat16), inputs(4, 9).astype(jnp.bfloat16)
    output = scan(p, input).output
    exact = scan(p.astype(jnp.float32), input.astype(jnp.float32)).output
    assert output.dtype == jnp.bfloat16
    assert np.array_equal(output, exact.astype(jnp.bfloat16))


@pytest.mark.long
def test_a_second_process_finds_the_machine_code_on_disk() -> None:
    code = (
        "import jax, jax.numpy as jnp, numba\n"
        "from numba.core import compiler\n"
        "compiler.compile_extra = None\n"  # whoever compiles, fails
        "from rims.jax import CellSpec, init, scan\n"
        "spec = CellSpec(kind='lstm', input_size=3, hidden_size=8, num_rims=4, k=2)\n"
        "p = init(jax.random.key(0), spec)\n"
        "print(scan(p, jnp.ones((2, 2, 3))).output.shape)\n"
    )
    scan(make().astype(jnp.float32), inputs(2, 1).astype(jnp.float32))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout == "(2, 2, 8)\n", done.stderr
