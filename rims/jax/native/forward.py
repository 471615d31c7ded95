"""Forward pass: the input side as products over many rows, then the kernel over all steps."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rims.jax.native.calls import Operand, Sizes, call, unwritten
from rims.jax.parameters import Parameters
from rims.jax.step import State
from rims.jax.xla import output_gate_of
from rims.scan.problem import Rules


class Given(NamedTuple):
    """Arguments of a sequence."""

    p: Parameters
    input: Array  # (T, B, I)
    state: State  # each (B, D)
    reset: Array | None  # (T, B) bool
    valid: Array | None  # (T, B) bool


class Result(NamedTuple):
    """Result of a sequence."""

    output: Array  # (T, B, D)
    rest: State  # the last c, where there is one
    active: Array  # (T, B, N) bool


class Did(NamedTuple):
    """Values of a sequence that its gradient needs, besides the result."""

    c: Array | None  # (T, B, D)
    key_value: Array  # (T B, dk + A)
    query_side: Array  # U, (T, B, D)
    gate_side: Array  # G, (T, B, N G d)


class Weights(NamedTuple):
    """The weights of a cell as products and kernels take them."""

    key_value: Array  # (I, dk + A)
    query: Array  # (N d, dk), divided by sqrt(dk)
    ih: Array  # (N G d, A)
    hh: Array  # (N, G d, d)
    bias_ih: Array  # (N, G d), of an LSTM the sum of both
    bias_hh: Array  # (N, G d), of a GRU
    qkv: Array  # (N, d, 2 M dk + M dv)
    output_gate: Array  # (2 d, M dv), output above gate
    output_gate_bias: Array  # (2 d,)
    fresh: State  # each (D,), the state after a reset; none where that is zero

    @classmethod
    def of(cls, p: Parameters) -> Weights:
        """The weights of a cell."""
        n, gates, d = p.weight_hh.shape
        none = jnp.zeros((n, gates), p.weight_hh.dtype)
        bias_ih, bias_hh = (none if bias is None else bias for bias in (p.bias_ih, p.bias_hh))
        if p.spec.kind == "lstm":  # both halves of its gates are only ever added
            bias_ih, bias_hh = bias_ih + bias_hh, none
        output_gate, output_gate_bias = output_gate_of(p)
        return cls(
            key_value=jnp.concatenate([p.key_weight, p.value_weight], axis=1),
            query=p.query_weight.reshape(n * d, -1) / math.sqrt(p.spec.input_key_size),
            ih=p.weight_ih.reshape(n * gates, -1),
            hh=p.weight_hh,
            bias_ih=bias_ih,
            bias_hh=bias_hh,
            qkv=jnp.concatenate([p.comm_query_weight, p.comm_key_weight, p.comm_value_weight], 2),
            output_gate=output_gate,
            output_gate_bias=output_gate_bias,
            fresh=p.initial,
        )


def sizes_of(given: Given) -> Sizes:
    """The sizes that determine the kernels' tables."""
    p = given.p
    rules = Rules(p.spec.k, p.spec.num_comm_heads, p.spec.comm_reads == "state")
    keys, values = p.comm_key_weight.shape[2], p.comm_value_weight.shape[2]
    return Sizes(given.input.shape[1], p.weight_hh.shape, keys, values, rules, given.input.dtype)


def chunks(length: int, steps: int) -> tuple[int, int]:
    """Number of chunks of ``length`` steps, and of steps that remain."""
    return steps // length, steps % length


def forward(length: int, given: Given) -> Result:
    """Compute the result in chunks of ``length`` steps, so that little memory is needed."""
    steps = len(given.input)
    w, sizes = Weights.of(given.p), sizes_of(given)
    fixed = operands(given, w)
    names = ("h", "c", "active") if len(given.state) > 1 else ("h", "active")

    def chunk(length: int, did: Any, first: Any) -> tuple[Any, None]:
        rows = lax.dynamic_slice_in_dim(given.input, first, length)
        _, *side = input_side(w, rows)
        sides = zip(("query_side", "gate_side"), map(Operand, side), strict=True)
        arrays = {name: Operand(part) for name, part in zip(names, did, strict=True)}
        found = call("forward", sizes, first, length, {**fixed, **dict(sides), **arrays}, {}, names)
        return tuple(found[name] for name in names), None

    did = tuple(jnp.zeros(a.shape, a.dtype) for a in _written(given).values())
    count, rest = chunks(length, steps)
    did, _ = lax.scan(partial(chunk, length), did, jnp.arange(count) * length)
    if rest:
        did, _ = chunk(rest, did, count * length)
    h, *c, active = did
    return Result(h, tuple(part[-1] for part in c), active)


def forward_kept(given: Given) -> tuple[Result, Did]:
    """As :func:`forward`, with the values that the gradient needs."""
    w = Weights.of(given.p)
    key_value, *side = input_side(w, given.input)
    sides = zip(("query_side", "gate_side"), map(Operand, side), strict=True)
    inputs = {**operands(given, w), **dict(sides)}
    found = call("forward", sizes_of(given), 0, len(given.input), inputs, _written(given))
    c = found.get("c")
    result = Result(found["h"], () if c is None else (c[-1],), found["active"])
    return result, Did(c, key_value, *side)


def _written(given: Given) -> dict[str, jax.ShapeDtypeStruct]:
    """Arrays that the kernel writes."""
    lead, spec = given.input.shape[:2], given.p.spec
    sequence = unwritten((*lead, spec.hidden_size), given.input.dtype)
    flags = unwritten((*lead, spec.num_rims), jnp.dtype(bool))
    names = ("h", "c")[: len(given.state)]
    return {**dict.fromkeys(names, sequence), "active": flags}


def input_side(w: Weights, input: Array) -> tuple[Array, Array, Array]:
    """Keys and values of the input as rows, U (L, B, D) and G (L, B, N G d)."""
    lead, dk = input.shape[:2], w.query.shape[1]
    key_value = input.reshape(-1, input.shape[2]) @ w.key_value
    query_side, gate_side = key_value[:, :dk] @ w.query.T, key_value[:, dk:] @ w.ih.T
    return key_value, query_side.reshape(*lead, -1), gate_side.reshape(*lead, -1)


def operands(given: Given, w: Weights) -> dict[str, Operand]:
    """Arrays that the kernels read, forward and back."""
    s, batch = sizes_of(given).layout.sizes, given.input.shape[1]
    fresh = (jnp.broadcast_to(part, (batch, *part.shape)) for part in w.fresh)
    arrays = {
        **dict(zip(("h0", "c0"), given.state, strict=False)),
        **dict(zip(("fresh_h", "fresh_c"), fresh, strict=False)),
        "reset": given.reset,
        "valid": given.valid,
        "p_hh": padded(w.hh.mT, s["gate"]),
        "p_query": padded(given.p.comm_query_weight, s["key_row"]),
        "p_key": padded(given.p.comm_key_weight, s["key_row"]),
        "p_value": padded(given.p.comm_value_weight, s["heads"]),
        "p_out": padded(w.output_gate.T, s["pair"]),
        "p_b_ih": w.bias_ih,
        "p_b_hh": w.bias_hh,
        "p_b_out": w.output_gate_bias,
    }
    return {name: Operand(part) for name, part in arrays.items() if part is not None}


def padded(matrix: Array, width: int) -> Array:
    """The matrix with zeros up to ``width`` columns."""
    missing = width - matrix.shape[-1]
    return jnp.pad(matrix, ((0, 0),) * (matrix.ndim - 1) + ((0, missing),))
