"""A whole sequence: the input side before the loop, going back by hand.

Steps go in chunks of about a thousand rows, as in :mod:`rims.scan.hoisted`: products over many rows
at once, of which one chunk at a time is in memory. The gradient is a rule of its own
(``jax.custom_vjp``): left to itself JAX keeps all a step computes, goes through every weight's
gradient in memory at every step, and loses what the layout gains.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rims.jax import columns
from rims.jax.columns import Kept, Room, Rules, Sums, Weights
from rims.jax.parameters import Parameters
from rims.jax.step import State

#: Rows (steps times batch) of a chunk.
CHUNK_ROWS = 1280


class Given(NamedTuple):
    """Arguments of a sequence, samples last; (C, L) are chunks of steps."""

    w: Weights
    input: Array  # (C, L B, I)
    state: tuple[Array, ...]  # each (N, d, B)
    fresh: tuple[Array, ...]  # each (N, d, 1), the state after a reset
    reset: Array | None  # (C L, B) bool
    valid: Array | None  # (C L, B) bool


class Did(NamedTuple):
    """Values of every step that the gradient needs."""

    states: tuple[Array, ...]  # each (C L, N, d, B)
    kept: Kept
    key_value: Array  # (C, dk + A, L B)


def run(
    p: Parameters, input: Array, state: State, reset: Array | None, valid: Array | None
) -> tuple[Array, State, Array]:
    """The outputs (T, B, D), the last state and which were active (T, B, N)."""
    steps, batch, _ = input.shape
    n = p.spec.num_rims
    chunks = max(1, round(steps * batch / CHUNK_ROWS))
    length = math.ceil(steps / chunks)
    # Steps after the last make the chunks equally long. Nothing of them is used.
    more = chunks * length - steps

    def padded(a: Array | None) -> Array | None:
        return a if a is None else jnp.pad(a, ((0, more), *((0, 0) for _ in a.shape[1:])))

    rows = jnp.pad(input, ((0, more), (0, 0), (0, 0))).reshape(chunks, length * batch, -1)
    given = Given(
        _weights(p),
        rows,
        tuple(s.T.reshape(n, -1, batch) for s in state),
        tuple(s.reshape(n, -1, 1) for s in _fresh(p)),
        padded(reset),
        padded(valid),
    )
    h, rest, active = _sequence(_rules(p), steps, given)
    output = h[:steps].reshape(steps, -1, batch).mT
    last = tuple(s.reshape(-1, batch).T for s in rest)
    return output, (output[-1], *last), active[:steps].mT


def _rules(p: Parameters) -> Rules:
    spec = p.spec
    return Rules(spec.kind, spec.k, spec.num_comm_heads, spec.comm_reads == "state")


def _fresh(p: Parameters) -> State:
    return p.initial or tuple(jnp.zeros(s, p.weight_hh.dtype) for s in p.spec.state_sizes)


def output_gate_of(p: Parameters) -> tuple[Array, Array]:
    """Weight (2 d, M dv) and bias (2 d,) of what communication adds: output above gate."""
    weight = jnp.concatenate([p.comm_output_weight, p.comm_gate_weight])
    if p.comm_output_bias is None or p.comm_gate_bias is None:
        return weight, jnp.zeros(len(weight), weight.dtype)
    return weight, jnp.concatenate([p.comm_output_bias, p.comm_gate_bias])


def _weights(p: Parameters) -> Weights:
    n, d = p.weight_hh.shape[0], p.weight_hh.shape[2]
    no_bias = jnp.zeros(p.weight_hh.shape[:2], p.weight_hh.dtype)
    queries = p.comm_query_weight / math.sqrt(p.spec.comm_key_size)
    qkv = jnp.concatenate([queries, p.comm_key_weight, p.comm_value_weight], axis=-1)
    output_gate, output_gate_bias = output_gate_of(p)
    return Weights(
        key_value=jnp.concatenate([p.key_weight, p.value_weight], axis=1),
        query=p.query_weight.reshape(n * d, -1) / math.sqrt(p.spec.input_key_size),
        ih=p.weight_ih,
        hh=p.weight_hh,
        bias_ih=no_bias if p.bias_ih is None else p.bias_ih,
        bias_hh=no_bias if p.bias_hh is None else p.bias_hh,
        qkv=qkv.mT,
        output_gate=jnp.broadcast_to(output_gate, (n, *output_gate.shape)),
        output_gate_bias=output_gate_bias,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sequence(rules: Rules, steps: int, given: Given) -> tuple[Array, tuple[Array, ...], Array]:
    """h after every step (C L, N, d, B), what else the state is after the last, and active."""
    return _forward(rules, steps, given)[0]


def _forward(
    rules: Rules, steps: int, given: Given
) -> tuple[tuple[Array, tuple[Array, ...], Array], tuple[Given, Did]]:
    length, batch = _lengths(given)
    total = length * len(given.input)

    def chunk(carry: Any, xs: tuple[Array, Array]) -> tuple[Any, Array]:
        first, rows = xs
        key_value = jnp.einsum("ik,ri->kr", given.w.key_value, rows)
        query_side, gate_side = _input_side(given.w, key_value, length)

        def one(carry: Any, i: Array) -> tuple[Any, None]:
            state, did = carry
            t = first + i
            new, kept = columns.step(
                _at(query_side, i, 2),
                _at(gate_side, i, 2),
                _restarted(given, state, t),
                None if given.valid is None else _at(given.valid, t),
                given.w,
                rules,
            )
            return (new, jax.tree.map(lambda a, b: _put(a, b, t), did, (new, kept))), None

        carry, _ = lax.scan(one, carry, jnp.arange(length))
        return carry, key_value

    empty = partial(jnp.zeros, dtype=given.input.dtype)
    shape = (total, *given.state[0].shape)
    flags = (total, shape[1], batch)
    kept = Kept(jnp.zeros(flags, bool), empty(flags), tuple(empty(shape) for _ in range(4)))
    room = (tuple(empty(shape) for _ in given.state), kept)
    starts = jnp.arange(0, total, length)
    (_, (states, kept)), key_value = lax.scan(chunk, (given.state, room), (starts, given.input))
    rest = tuple(s[steps - 1] for s in states[1:])
    return (states[0], rest, kept.active), (given, Did(states, kept, key_value))


class _Way(NamedTuple):
    """Values that the gradients of all steps share."""

    rules: Rules
    last: int  # index of the last step that is used
    given: Given
    did: Did
    turned: Weights
    grad_h: Array  # (C L, N, d, B)
    grad_rest: tuple[Array, ...]  # of what else the last state is


def _backward(rules: Rules, steps: int, saved: tuple[Given, Did], grads: Any) -> tuple[Given]:
    given, did = saved
    w = given.w
    length, batch = _lengths(given)
    turned = Weights(*(a.mT if a.ndim == 3 else a for a in w))
    way = _Way(rules, steps - 1, given, did, turned, *grads[:2])

    def chunk(carry: Any, xs: Any) -> tuple[Any, Array]:
        first, rows, key_value = xs
        n, _, d = w.hh.shape
        dk = w.query.shape[1]
        query_side = (w.query @ key_value[:dk]).reshape(n, d, length, batch)
        value = key_value[dk:].reshape(-1, length, batch)
        *inner, input_sums = carry
        one = partial(_one_back, way, first, query_side, value)
        inner, _ = lax.scan(one, tuple(inner), jnp.arange(length), reverse=True)
        input_sums, d_key_value = _input_back(w, input_sums, inner[-1], key_value, rows)
        return (*inner, input_sums), d_key_value

    carry = _empty_carry(rules, given, length, batch)
    starts = jnp.arange(0, length * len(given.input), length)
    (grad, fresh, sums, _, _, input_sums), d_key_value = lax.scan(
        chunk, carry, (starts, given.input, did.key_value), reverse=True
    )
    d_weights = Weights(
        *(input_sums[0], input_sums[1], input_sums[2].reshape(w.ih.shape), sums.hh.mT),
        *(sums.bias_ih, sums.bias_hh, sums.qkv.mT, sums.output_gate, sums.output_gate_bias),
    )
    d_input = jnp.einsum("ik,ckr->cri", w.key_value, d_key_value)
    return (Given(d_weights, d_input, grad, fresh, None, None),)


def _one_back(
    way: _Way, first: Array, query_side: Array, value: Array, carry: Any, i: Array
) -> tuple[Any, None]:
    """Step ``first + i``, the i-th of the chunk that ``query_side`` and ``value`` are of."""
    grad, fresh, sums, room, out = carry
    t = first + i
    # What the last state was used for enters where that state came about.
    late = (jnp.where(t == way.last, g, 0) for g in way.grad_rest)
    rest = (g + extra for g, extra in zip(grad[1:], late, strict=True))
    back = columns.step_back(
        (grad[0] + _at(way.grad_h, t), *rest),
        _restarted(way.given, _state_before(way.given, way.did, t), t),
        jax.tree.map(lambda a: _at(a, t), way.did.kept),
        _at(query_side, i, 2),
        _at(value, i, 1),
        way.given.w,
        way.turned,
        way.rules,
        sums,
        room,
    )
    grad, fresh = _hand_back(way.given, back.state, fresh, t)
    sides = (back.query_side, back.gate_side, back.value)
    out = tuple(_put(a, b, i, b.ndim - 1) for a, b in zip(out, sides, strict=True))
    return (grad, fresh, back.sums, back.room, out), None


_sequence.defvjp(_forward, _backward)


def _lengths(given: Given) -> tuple[int, int]:
    """Steps of a chunk, and samples."""
    batch = given.state[0].shape[-1]
    return given.input.shape[1] // batch, batch


def _input_side(w: Weights, key_value: Array, length: int) -> tuple[Array, Array]:
    """U (N, d, L, B) and G (N, G d, L, B) of a chunk."""
    dk, (n, gates, d) = w.query.shape[1], w.hh.shape
    query_side = w.query @ key_value[:dk]
    gate_side = w.ih.reshape(n * gates, -1) @ key_value[dk:]
    return query_side.reshape(n, d, length, -1), gate_side.reshape(n, gates, length, -1)


def _input_back(
    w: Weights, sums: tuple[Array, ...], sides: tuple[Array, ...], key_value: Array, rows: Array
) -> tuple[tuple[Array, ...], Array]:
    """Add what a chunk contributes to key_value, query and ih; the gradient of its keys, values."""
    dk = w.query.shape[1]
    query_side, gate_side = (s.reshape(s.shape[0] * s.shape[1], -1) for s in sides[:2])
    value = sides[2].reshape(sides[2].shape[0], -1)
    d_key_value = jnp.concatenate([w.query.T @ query_side, value])
    new = (
        sums[0] + (d_key_value @ rows).T,
        sums[1] + query_side @ key_value[:dk].T,
        sums[2] + gate_side @ key_value[dk:].T,
    )
    return new, d_key_value


def _empty_carry(rules: Rules, given: Given, length: int, batch: int) -> Any:
    """Gradients of the state and of fresh ones, sums, memory for a step and for a chunk."""
    w = given.w
    n, gates, d = w.hh.shape
    zeros = partial(jnp.zeros, dtype=given.input.dtype)
    like = partial(jax.tree.map, jnp.zeros_like)
    sums = Sums(*like((w.hh.mT, w.bias_ih, w.bias_hh, w.qkv.mT, w.output_gate, w.output_gate_bias)))
    room = Room(
        zeros((n, gates, batch)),
        zeros((n, gates, batch)),
        zeros((n, n, rules.num_heads, batch)),
        zeros((n, w.qkv.shape[1], batch)),
        zeros((n, 2 * d, batch)),
    )
    sides = ((n, d), (n, gates), (w.ih.shape[2],))
    out = tuple(zeros((*size, length, batch)) for size in sides)
    input_sums = like((w.key_value, w.query, w.ih.reshape(n * gates, -1)))
    return like(given.state), like(given.fresh), sums, room, out, input_sums


def _restarted(given: Given, state: tuple[Array, ...], t: Array) -> tuple[Array, ...]:
    """``state`` before step t, resets made."""
    if given.reset is None:
        return state
    flag = _at(given.reset, t)
    return tuple(jnp.where(flag, f, s) for f, s in zip(given.fresh, state, strict=True))


def _state_before(given: Given, did: Did, t: Array) -> tuple[Array, ...]:
    """The state after step t - 1, at the first step the one given."""
    earlier = jnp.maximum(t - 1, 0)
    pairs = zip(did.states, given.state, strict=True)
    return tuple(jnp.where(t > 0, _at(after, earlier), start) for after, start in pairs)


def _hand_back(
    given: Given, grad: tuple[Array, ...], fresh: tuple[Array, ...], t: Array
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Gradients of the state before step t: past a reset they belong to the fresh state."""
    if given.reset is None:
        return grad, fresh
    flag = _at(given.reset, t)
    fresh = tuple(
        f + jnp.where(flag, g, 0).sum(-1, keepdims=True) for f, g in zip(fresh, grad, strict=True)
    )
    return tuple(jnp.where(flag, 0, g) for g in grad), fresh


def _at(array: Array, index: Array, axis: int = 0) -> Array:
    found: Array = lax.dynamic_index_in_dim(array, index, axis, keepdims=False)
    return found


def _put(array: Array, part: Array, index: Array, axis: int = 0) -> Array:
    changed: Array = lax.dynamic_update_index_in_dim(array, part, index, axis)
    return changed
