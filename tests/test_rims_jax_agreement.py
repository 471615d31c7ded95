"""Layers of both libraries with the same weights: values and gradients agree to 1e-9 in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx
from torch import Tensor

import rims
from jax_cases import (
    assert_near,
    chunks_of,
    double,
    flat,
    quick_jit,
    to_jax,
    x64,  # noqa: F401  (fixture)
)
from rims.jax import from_torch, to_torch
from selection import short

pytestmark = pytest.mark.usefixtures("x64")

KINDS: dict[str, Any] = {"lstm": rims.RIM_LSTM, "gru": rims.RIM_GRU}
STEPS, BATCH = 5, 3

#: Small attentions: they compile faster.
SMALL: dict[str, Any] = {
    "input_key_size": 3,
    "num_comm_heads": 2,
    "comm_key_size": 2,
    "comm_value_size": 3,
}

#: kind, (hidden_size, num_rims, k), what interrupts the sequence, options, ways to compute it.
CASES: list[Any] = [
    ("lstm", (12, 4, 2), "reset", {"learned_initial_state": True}, (True, False)),
    ("gru", (12, 4, 2), "reset", {"learned_initial_state": True}, (True, False)),
    ("lstm", (10, 5, 3), "mask", {"comm_reads": "state", "bias": False}, (True, False)),
    ("gru", (6, 3, 3), "mask", {"comm_reads": "state", "input_value_size": 7}, (True,)),
    ("gru", (5, 1, 1), "", {"bias": False}, (True,)),
    ("lstm", (12, 4, 1), "mask", {"num_layers": 2, "bidirectional": True}, (True,)),
    (
        "gru",
        ([8, 6], [4, 3], [2, 1]),
        "reset",
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "blocked_grad": True},
        (True,),
    ),
    ("lstm", (12, 4, 2), "reset", {"num_layers": 2, "use_inactive": False}, (True,)),
    ("lstm", (12, 4, 3), "reset", {"proj_size": 8, "learned_initial_state": True}, (None,)),
    ("lstm", (12, 4, 3), "", {"num_input_heads": 2, "input_value_size": 6}, (None,)),
    ("gru", (12, 4, 2), "mask", {"input_slots": True, "num_layers": 2}, (None,)),
]


def make(kind: str, sizes: Any, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    layer = KINDS[kind](5, *sizes, dtype=torch.float64, **SMALL, **options)
    for cell in layer.rim_cells:
        for start in cell.initial:
            torch.nn.init.normal_(start)
    return layer


def interruption(name: str, batch_first: bool) -> dict[str, Tensor]:
    if not name:
        return {}
    flag = torch.rand(STEPS, BATCH) < 0.4
    if name == "mask":  # ends only, as a bidirectional layer wants it
        flag = torch.arange(STEPS)[:, None] < torch.tensor([5, 0, 3])
    return {name: flag.T if batch_first else flag}


def start_of(layer: Any) -> Any:
    """Random hx for a layer, as leaves."""
    _, zeros = layer(double(*_shape(layer)))
    parts = [torch.randn_like(part).requires_grad_() for part in flat(zeros)]
    if isinstance(layer, rims.RIM_LSTM):
        return tuple(parts)
    return parts[0] if len(parts) == 1 else tuple(parts)


def _shape(layer: Any) -> tuple[int, ...]:
    lead = (BATCH, STEPS) if layer.batch_first else (STEPS, BATCH)
    return (*lead, 4, 5) if layer.input_slots else (*lead, 5)


@pytest.mark.parametrize(("kind", "sizes", "flag", "options", "ways"), short(CASES, 4))
def test_both_libraries_agree(
    kind: str, sizes: Any, flag: str, options: dict[str, Any], ways: tuple[bool | None, ...]
) -> None:
    layer = make(kind, sizes, options)
    given = interruption(flag, layer.batch_first)
    input = double(*_shape(layer)).requires_grad_()
    hx = start_of(layer)
    output, last = layer(input, hx, **given)
    seeds = [torch.randn_like(part) for part in (output, *flat(last))]
    outcome = [output, *flat(last)]
    torch.autograd.backward([(s * o).sum() for s, o in zip(seeds, outcome, strict=True)])

    converted = from_torch(layer)
    start = jax.tree.map(to_jax, hx)
    flags = {name: to_jax(f) for name, f in given.items()}
    for fast in ways:
        converted.fast = fast
        graph, params = nnx.split(converted)

        def loss(params: Any, input: Any, hx: Any, graph: Any = graph) -> Any:
            output, last = nnx.merge(graph, params)(input, hx, **flags)
            found = [output, *flat(last)]
            pairs = zip(seeds, found, strict=True)
            return sum((to_jax(s) * f).sum() for s, f in pairs), found

        run = quick_jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        with chunks_of(2 * BATCH):  # three chunks, of which the last has a step too many
            (d_params, d_input, d_hx), found = run(params, to_jax(input), start)
        for got, expected in zip(found, outcome, strict=True):
            assert_near(got, expected)
        assert_near(d_input, input.grad)
        for got, expected in zip(jax.tree.leaves(d_hx), flat(hx), strict=True):
            assert_near(got, expected.grad)
        gradients = to_torch(nnx.merge(graph, d_params))
        for name, parameter in layer.named_parameters():
            assert_near(gradients[name], parameter.grad)


@pytest.mark.parametrize("kind", short(["lstm", "gru"], 0))
def test_sums_too_long_to_write_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rims.jax import columns

    layer = make(kind, (12, 4, 2), {})
    converted = from_torch(layer)
    converted.fast = True
    graph, params = nnx.split(converted)
    input = jnp.asarray(double(STEPS, BATCH, 5).numpy())

    def loss(params: Any) -> Any:
        return (nnx.merge(graph, params)(input)[0] ** 2).sum()

    written_out = quick_jit(jax.grad(loss))(params)
    monkeypatch.setattr(columns, "WRITTEN_OUT", 1)
    left_to_xla = quick_jit(jax.grad(lambda p: loss(p)))(params)
    for got, expected in zip(*map(jax.tree.leaves, (left_to_xla, written_out)), strict=True):
        assert_near(got, expected)


def test_a_single_sequence_without_a_batch() -> None:
    layer = make("lstm", (12, 4, 2), {"batch_first": True})
    input, hx = double(STEPS, 5), (double(1, 12), double(1, 12))
    output, last = layer(input, hx)
    got, ends = from_torch(layer)(to_jax(input), tuple(map(to_jax, hx)))
    assert_near(got, output)
    for end, expected in zip(ends, last, strict=True):
        assert_near(end, expected)
