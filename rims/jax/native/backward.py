"""Backward pass: the kernel over a chunk of steps at a time, then gradients of its input side."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rims.jax.native.calls import Operand, Sizes, call
from rims.jax.native.forward import (
    Did,
    Given,
    Result,
    Weights,
    chunks,
    operands,
    padded,
    sizes_of,
)
from rims.jax.step import State

_STATE, _FRESH = ("carry_h", "carry_c"), ("carry_fresh_h", "carry_fresh_c")


class _Sums(NamedTuple):
    """Gradients of the weights that a step adds to; see :class:`Weights`."""

    query: Array
    ih: Array
    hh: Array
    bias_ih: Array
    bias_hh: Array
    qkv: Array
    output_gate: Array
    output_gate_bias: Array


class _Carry(NamedTuple):
    """Gradients on their way through time."""

    state: State  # each (B, D)
    fresh: State  # the same, of the states that resets put in place
    sums: _Sums


class _Way(NamedTuple):
    """Values that all chunks share."""

    w: Weights
    sizes: Sizes
    operands: dict[str, Operand]
    key_value: Array


def backward(length: int, given: Given, h: Array, did: Did, grads: Result) -> Given:
    """Gradients of what is given, in chunks of ``length`` steps."""
    steps, batch, size = given.input.shape
    w, pull = jax.vjp(Weights.of, given.p)
    way = _Way(w, sizes_of(given), _operands(given, w, h, did, grads), did.key_value)
    zeros = partial(jax.tree.map, jnp.zeros_like)
    sums = _Sums(*(zeros(getattr(w, name)) for name in _Sums._fields))
    fresh: State = zeros(given.state)
    carry = _Carry((fresh[0], *grads.rest), fresh, sums)
    count, rest = chunks(length, steps)
    parts = []
    if rest:
        carry, part = _chunk(way, rest, carry, count * length)
        parts.append(part)
    starts = jnp.arange(count) * length
    carry, part = lax.scan(partial(_chunk, way, length), carry, starts, reverse=True)
    parts.append(part.reshape(count * length * batch, -1))
    d_key_value = jnp.concatenate(parts[::-1])
    d_w = Weights(
        key_value=given.input.reshape(-1, size).T @ d_key_value,
        fresh=tuple(part.sum(0) for part, _ in zip(carry.fresh, w.fresh, strict=False)),
        **carry.sums._asdict(),
    )
    d_input = (d_key_value @ w.key_value.T).reshape(steps, batch, size)
    return Given(pull(d_w)[0], d_input, carry.state, None, None)


def _operands(given: Given, w: Weights, h: Array, did: Did, grads: Result) -> dict[str, Operand]:
    s = sizes_of(given).layout.sizes
    arrays = {
        "h": h,
        "c": did.c,
        "p_hh_back": padded(w.hh, s["unit"]),
        "p_qkv_back": padded(w.qkv.mT, s["unit"]),
        "p_out_back": padded(w.output_gate, s["heads"]),
    }
    by_step = {
        "query_side": did.query_side,
        "gate_side": did.gate_side,
        "grad_h": grads.output,
    }
    return {
        **operands(given, w),
        **{name: Operand(array) for name, array in arrays.items() if array is not None},
        **{name: Operand(array, by_step=True) for name, array in by_step.items()},
    }


def _chunk(way: _Way, length: int, carry: _Carry, first: Any) -> tuple[_Carry, Array]:
    """Take the carry from after the steps to before them; the gradient of their keys, values."""
    carried = {
        **dict(zip(_STATE, carry.state, strict=False)),
        **dict(zip(_FRESH, carry.fresh, strict=False)),
    }
    inputs = way.operands | {name: Operand(array) for name, array in carried.items()}
    results = _written(way.sizes, length)
    found = call("back", way.sizes, first, length, inputs, results, tuple(carried))
    batch = way.sizes.batch
    key_value = lax.dynamic_slice_in_dim(way.key_value, first * batch, length * batch)
    state, fresh = (
        tuple(found[name] for name in names if name in carried) for names in (_STATE, _FRESH)
    )
    sums, d_key_value = _add(carry.sums, way.w, key_value, found)
    return _Carry(state, fresh, sums), d_key_value


def _written(sizes: Sizes, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Arrays that the kernel writes: rows, and sums over rows in the shapes of the weights."""
    s, rows = sizes.layout.sizes, length * sizes.batch
    n, d, gates, keys, values = s["n"], s["d"], s["g"] * s["d"], sizes.keys, sizes.values
    return {
        "d_query_side": sizes.array(rows, n * d),
        "d_gate_side": sizes.array(rows, n * gates),
        "sum_hh": sizes.array(n, gates, d),
        "sum_query": sizes.array(n, d, keys),
        "sum_key": sizes.array(n, d, keys),
        "sum_value": sizes.array(n, d, values),
        "sum_output": sizes.array(d, values),
        "sum_gate": sizes.array(d, values),
        "sum_b_ih": sizes.array(n, gates),
        "sum_b_hh": sizes.array(n, gates),
        "sum_b_output": sizes.array(d),
        "sum_b_gate": sizes.array(d),
    }


def _add(sums: _Sums, w: Weights, key_value: Array, found: dict[str, Array]) -> tuple[_Sums, Array]:
    dk = w.query.shape[1]
    d_query_side, d_gate_side = found["d_query_side"], found["d_gate_side"]
    qkv = [found[f"sum_{name}"] for name in ("query", "key", "value")]
    bias_hh = sums.bias_hh
    if w.hh.shape[1] == 3 * w.hh.shape[2]:  # an LSTM has none of its own
        bias_hh = bias_hh + found["sum_b_hh"]
    new = _Sums(
        query=sums.query + d_query_side.T @ key_value[:, :dk],
        ih=sums.ih + d_gate_side.T @ key_value[:, dk:],
        hh=sums.hh + found["sum_hh"],
        bias_ih=sums.bias_ih + found["sum_b_ih"],
        bias_hh=bias_hh,
        qkv=sums.qkv + jnp.concatenate(qkv, axis=-1),
        output_gate=sums.output_gate + jnp.concatenate([found["sum_output"], found["sum_gate"]]),
        output_gate_bias=sums.output_gate_bias
        + jnp.concatenate([found["sum_b_output"], found["sum_b_gate"]]),
    )
    return new, jnp.concatenate([d_query_side @ w.query, d_gate_side @ w.ih], axis=1)
