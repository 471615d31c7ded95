r"""One step of the recurrent part, samples along the last axis, forward and back by hand.

As :mod:`rims.scan.torch.loop`: the input side enters as

.. math:: U_m = W^q_m (x W^k)^\top / \sqrt{d_k}, \qquad G_m = W^{ih}_m (x W^v)

so that the score of a mechanism is :math:`l_m = h_m \cdot U_m` and the input's part of its gates
:math:`\sigma(l_m)\, G_m + b^{ih}_m` (arXiv:1909.10893). With the samples last, whatever is no
matrix product runs over contiguous numbers, and sums over mechanisms and heads are written out as
additions: that is the form for which XLA makes vector code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rims.jax.functional import topk_mask

#: Longest sum that is written out; longer ones are left to XLA.
WRITTEN_OUT = 32

#: Axis 1 of everything here: the features of a mechanism.
_ROWS = 1


class Weights(NamedTuple):
    """The weights of a cell, scaled and joined into the products a sequence takes."""

    key_value: Array  # (I, dk + A)
    query: Array  # (N d, dk), divided by sqrt(dk)
    ih: Array  # (N, G d, A)
    hh: Array  # (N, G d, d)
    bias_ih: Array  # (N, G d)
    bias_hh: Array  # (N, G d)
    qkv: Array  # (N, 2 M dc + M dv, d), queries divided by sqrt(dc)
    output_gate: Array  # (N, 2 d, M dv) output above gate, the same for every mechanism
    output_gate_bias: Array  # (2 d,)


class Rules(NamedTuple):
    """Sizes and options that shapes do not determine."""

    kind: str
    k: int
    num_heads: int  # M, of the communication
    reads_state: bool


class Kept(NamedTuple):
    """Values of a step that its gradient needs."""

    active: Array  # (N, B) bool
    share: Array  # (N, B), sigma(l)
    gates: tuple[Array, ...]  # after their sigmoids, four of (N, d, B)


class Room(NamedTuple):
    """Memory a step back writes into before a product reads it.

    Joining arrays would do, but XLA computes parts inside the join, element by element.
    """

    state_gates: Array  # (N, G d, B)
    input_gates: Array  # the same
    scores: Array  # (N, N, M, B)
    qkv: Array  # (N, W, B)
    output_gate: Array  # (N, 2 d, B)


class Sums(NamedTuple):
    """Gradients of the weights in the loop, summed over the steps so far."""

    hh: Array  # (N, d, G d), the other way round than the weight: a faster product
    bias_ih: Array
    bias_hh: Array
    qkv: Array  # (N, d, W)
    output_gate: Array
    output_gate_bias: Array


class Back(NamedTuple):
    """Gradients of one step."""

    state: tuple[Array, ...]
    query_side: Array  # (N, d, B)
    gate_side: Array  # (N, G d, B)
    value: Array  # (A, B)
    sums: Sums
    room: Room


class _Communication(NamedTuple):
    query: Array  # (N, M, dc, B)
    key: Array
    value: Array  # (N, M, dv, B)
    weights: Array  # (reader, read, M, B)
    read: Array  # (N, M dv, B)
    output: Array  # (N, d, B) after the tanh
    gate: Array  # after the sigmoid


def step(
    query_side: Array,
    gate_side: Array,
    state: tuple[Array, ...],
    valid: Array | None,
    w: Weights,
    rules: Rules,
) -> tuple[tuple[Array, ...], Kept]:
    """Advance ``state``, each (N, d, B), by one input; where not ``valid`` (B,) it stays."""
    h = state[0]
    score = (h * query_side).sum(_ROWS)  # (N, B)
    active = topk_mask(score, rules.k, axis=0)
    active = active if valid is None else active & valid
    share = jax.nn.sigmoid(score)
    from_state = jnp.einsum("ngd,ndb->ngb", w.hh, h)
    gates = _GATES[rules.kind](share[:, None], gate_side, from_state, w)
    h_cand, *rest = _CANDIDATE[rules.kind](gates, state)[0]
    on = active[:, None]
    comm = _communicate(jnp.where(on, h_cand, h) if rules.reads_state else h_cand, w, rules)
    new = (h_cand + comm.gate * comm.output, *rest)
    kept = Kept(active, share, gates)
    return tuple(jnp.where(on, a, b) for a, b in zip(new, state, strict=True)), kept


def step_back(
    grad: tuple[Array, ...],
    state: tuple[Array, ...],
    kept: Kept,
    query_side: Array,
    value: Array,
    w: Weights,
    turned: Weights,
    rules: Rules,
    sums: Sums,
    room: Room,
) -> Back:
    """Go back through one step from the gradients of its new state.

    ``value`` (A, B) is what the input offers, ``turned`` has the weights' last axes exchanged.
    """
    on, share, h = kept.active[:, None], kept.share[:, None], state[0]
    (h_cand, *_), inner = _CANDIDATE[rules.kind](kept.gates, state)
    comm_input = jnp.where(on, h_cand, h) if rules.reads_state else h_cand
    comm = _communicate(comm_input, w, rules)

    # An idle mechanism kept its state, so the state's gradient passes through unchanged.
    new = tuple(jnp.where(on, g, 0) for g in grad)
    room, d_comm_input = _communicate_back(new[0], comm, turned, room)
    d_cand = (jnp.where(on, new[0] + d_comm_input, 0), *new[1:])
    input_parts, state_parts, direct_h, rest = _BACK[rules.kind](d_cand, kept.gates, state, inner)
    d_state = _write(room.state_gates, state_parts)
    d_input = d_state if input_parts is state_parts else _write(room.input_gates, input_parts)
    room = room._replace(state_gates=d_state, input_gates=d_input)

    d_read = jnp.einsum("nag,ngb->nab", turned.ih, d_input)
    d_score = _dot_rows(d_read, value)[:, None] * share * (1 - share)
    d_h = jnp.einsum("ndg,ngb->ndb", turned.hh, d_state) + d_score * query_side
    before = (d_h if direct_h is None else d_h + direct_h, *rest)
    return Back(
        tuple(jnp.where(on, b, g) for b, g in zip(before, grad, strict=True)),
        d_score * h,
        d_input * share,
        _sum(lambda m: share[m] * d_read[m], len(share)),
        _add(sums, room, h, comm_input, comm.read),
        room,
    )


def _add(sums: Sums, room: Room, h: Array, comm_input: Array, read: Array) -> Sums:
    return Sums(
        sums.hh + jnp.einsum("ngb,ndb->ndg", room.state_gates, h),
        sums.bias_ih + room.input_gates.sum(-1),
        sums.bias_hh + room.state_gates.sum(-1),
        sums.qkv + jnp.einsum("nwb,ndb->ndw", room.qkv, comm_input),
        sums.output_gate + jnp.einsum("nob,nrb->nor", room.output_gate, read),
        sums.output_gate_bias + room.output_gate.sum((0, 2)),
    )


# --- mechanisms


def _lstm_gates(share: Array, gate_side: Array, from_state: Array, w: Weights) -> tuple[Array, ...]:
    parts = zip(*(jnp.split(a, 4, _ROWS) for a in (gate_side, from_state)), strict=True)
    biases = jnp.split((w.bias_ih + w.bias_hh)[..., None], 4, _ROWS)
    i, f, g, o = (share * x + b + s for (x, s), b in zip(parts, biases, strict=True))
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def _lstm_candidate(
    gates: tuple[Array, ...], state: tuple[Array, ...]
) -> tuple[tuple[Array, ...], Array]:
    """The new h and c, and tanh(c)."""
    i, f, g, o = gates
    c = f * state[1] + i * g
    tanh_c = jnp.tanh(c)
    return (o * tanh_c, c), tanh_c


#: Gradients of the input's and the state's half of the gates, of h directly, and of the rest.
_Parts = tuple[Sequence[Array], Sequence[Array], Array | None, tuple[Array, ...]]


def _lstm_back(
    grad: tuple[Array, ...], gates: tuple[Array, ...], state: tuple[Array, ...], tanh_c: Array
) -> _Parts:
    i, f, g, o = gates
    d_c = grad[1] + grad[0] * o * (1 - tanh_c * tanh_c)
    parts = (
        d_c * g * i * (1 - i),
        d_c * state[1] * f * (1 - f),
        d_c * i * (1 - g * g),
        grad[0] * tanh_c * o * (1 - o),
    )
    return parts, parts, None, (d_c * f,)


def _gru_gates(share: Array, gate_side: Array, from_state: Array, w: Weights) -> tuple[Array, ...]:
    """r, z, n, and the state's part of n before r."""
    x_r, x_z, x_n = (share * part for part in jnp.split(gate_side, 3, _ROWS))
    h_r, h_z, h_n = jnp.split(from_state, 3, _ROWS)
    a_r, a_z, a_n = jnp.split(w.bias_ih[..., None], 3, _ROWS)
    b_r, b_z, b_n = jnp.split(w.bias_hh[..., None], 3, _ROWS)
    r = jax.nn.sigmoid(x_r + h_r + (a_r + b_r))
    z = jax.nn.sigmoid(x_z + h_z + (a_z + b_z))
    inner = h_n + b_n
    return r, z, jnp.tanh(x_n + a_n + r * inner), inner


def _gru_candidate(
    gates: tuple[Array, ...], state: tuple[Array, ...]
) -> tuple[tuple[Array, ...], Array]:
    _, z, n, inner = gates
    return ((1 - z) * n + z * state[0],), inner


def _gru_back(
    grad: tuple[Array, ...], gates: tuple[Array, ...], state: tuple[Array, ...], inner: Array
) -> _Parts:
    r, z, n, _ = gates
    d_n = grad[0] * (1 - z) * (1 - n * n)
    d_r = d_n * inner * r * (1 - r)
    d_z = grad[0] * (state[0] - n) * z * (1 - z)
    return (d_r, d_z, d_n), (d_r, d_z, d_n * r), grad[0] * z, ()


_GATES = {"lstm": _lstm_gates, "gru": _gru_gates}
_CANDIDATE = {"lstm": _lstm_candidate, "gru": _gru_candidate}
_BACK = {"lstm": _lstm_back, "gru": _gru_back}


# --- communication


def _communicate(comm_input: Array, w: Weights, rules: Rules) -> _Communication:
    heads, values = rules.num_heads, w.output_gate.shape[2]
    keys = (w.qkv.shape[1] - values) // 2
    joined = jnp.einsum("nwd,ndb->nwb", w.qkv, comm_input)
    parts = joined[:, :keys], joined[:, keys : 2 * keys], joined[:, 2 * keys :]
    query, key, value = (
        part.reshape(len(part), heads, part.shape[1] // heads, -1) for part in parts
    )
    scores = _products(query, key)
    powers = jnp.exp(scores - scores.max(1, keepdims=True))
    weights = powers / _sum(lambda n: powers[:, n], len(powers))[:, None]
    read = _mix(weights, value).reshape(len(value), values, -1)
    both = jnp.einsum("nor,nrb->nob", w.output_gate, read)
    size = w.output_gate.shape[1] // 2
    output = jnp.tanh(both[:, :size] + w.output_gate_bias[:size, None])
    gate = jax.nn.sigmoid(both[:, size:] + w.output_gate_bias[size:, None])
    return _Communication(query, key, value, weights, read, output, gate)


def _communicate_back(
    grad: Array, comm: _Communication, turned: Weights, room: Room
) -> tuple[Room, Array]:
    """Fill ``room`` with the gradients before the products; return that of ``comm_input``."""
    output, gate = comm.output, comm.gate
    d_output_gate = _write(
        room.output_gate, (grad * gate * (1 - output * output), grad * output * gate * (1 - gate))
    )
    d_read = jnp.einsum("nro,nob->nrb", turned.output_gate, d_output_gate).reshape(comm.value.shape)
    weights = comm.weights
    d_weights = _products(d_read, comm.value)
    mean = _sum(lambda n: weights[:, n] * d_weights[:, n], len(weights))[:, None]
    scores = _write(room.scores, (weights * (d_weights - mean),))
    parts = (
        _mix(scores, comm.key),
        _mix(jnp.swapaxes(scores, 0, 1), comm.query),
        _mix(jnp.swapaxes(weights, 0, 1), d_read),
    )
    d_qkv = _write(room.qkv, [p.reshape(len(p), -1, p.shape[-1]) for p in parts])
    room = room._replace(output_gate=d_output_gate, scores=scores, qkv=d_qkv)
    return room, jnp.einsum("ndw,nwb->ndb", turned.qkv, d_qkv)


# --- sums


def _products(a: Array, b: Array) -> Array:
    """The product of every row of ``a`` with every row of ``b``: (N, M, c, B) -> (N, N, M, B)."""
    if a.shape[2] > WRITTEN_OUT:
        return jnp.einsum("mjcb,njcb->mnjb", a, b)
    return _sum(lambda c: a[:, None, :, c] * b[None, :, :, c], a.shape[2])


def _mix(weights: Array, rows: Array) -> Array:
    """Rows (N, M, c, B) mixed by weights (N, N, M, B)."""
    if len(rows) > WRITTEN_OUT:
        return jnp.einsum("mnjb,njcb->mjcb", weights, rows)
    return _sum(lambda n: weights[:, n, :, None] * rows[n], len(rows))


def _dot_rows(a: Array, b: Array) -> Array:
    """Sums over rows of (N, R, B) times (R, B), most of each written out."""
    rows = a.shape[1]
    count = next(c for c in (8, 5, 4, 3, 2, 1) if rows % c == 0)
    size = rows // count
    parts = (slice(i * size, (i + 1) * size) for i in range(count))
    return reduce(add, [a[:, part] * b[part] for part in parts]).sum(_ROWS)


def _sum(term: Callable[[int], Array], count: int) -> Array:
    return reduce(add, map(term, range(count)))


def _write(room: Array, parts: Sequence[Array]) -> Array:
    """``parts`` side by side along axis 1, in the memory of ``room``."""
    start = 0
    for part in parts:
        corner = (0, start, *(0 for _ in room.shape[2:]))
        room = lax.dynamic_update_slice(room, part, corner)
        start += part.shape[1]
    return room
