"""One step of a RIM cell, written to be read; every faster way is tested against it."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rims.jax.functional import (
    dropout,
    grouped_linear,
    gru_candidate,
    join_heads,
    join_last,
    lstm_candidate,
    split_heads,
    stop_gradient_where,
    topk_mask,
)
from rims.jax.parameters import Parameters

#: The state of a cell: ``(h, c)`` for an LSTM, ``(h,)`` for a GRU, each (..., D).
State = tuple[Array, ...]


class CellStep(NamedTuple):
    """One step of a cell and how it came about; ``...`` are the axes of the batch."""

    state: State  # each (..., N d), flat
    active: Array  # (..., N) bool, exactly k true
    input_attention: Array  # (..., N, 1 + S) weight on the null slot and on the input's elements
    communication: Array  # (..., M, N, N) weight of head M from reader to read


class Keys(NamedTuple):
    """Random keys of the places where a step drops something; None: nothing is dropped there."""

    input: Array | None
    comm: Array | None


class Keyed(NamedTuple):
    """The part of the input side that the loop over time does not have to compute."""

    key: Array  # (..., M, S, dk)
    value: Array  # (..., M, S, A / M)


def initial_state(p: Parameters, batch: tuple[int, ...]) -> State:
    """The state before the first step, for axes ``batch`` of a batch: zeros, unless learned.

    Example:
        >>> from rims.jax import CellSpec, init
        >>> spec = CellSpec(kind="lstm", input_size=5, hidden_size=12, num_rims=4, k=2)
        >>> [part.shape for part in initial_state(init(jax.random.key(0), spec), (3,))]
        [(3, 12), (3, 12)]
    """
    if p.initial:
        return tuple(jnp.broadcast_to(s, (*batch, *s.shape)) for s in p.initial)
    return tuple(jnp.zeros((*batch, size), p.weight_hh.dtype) for size in p.spec.state_sizes)


def step(p: Parameters, input: Array, state: State, *, key: Array | None = None) -> CellStep:
    r"""Advance ``state`` by one input (arXiv:1909.10893; equations in ``docs/notation.md``).

    .. math:: l_m = (h_m W^q_m) \cdot (x W^k) / \sqrt{d_k}, \qquad u_m = \sigma(l_m)\, x W^v

    The k mechanisms with the largest score become what :math:`u_m` and their own LSTM or GRU make
    of them, plus what they read of each other; the others stay as they are, bit for bit.

    Args:
        p: parameters of the cell.
        input: ``(..., I)``, with slots ``(..., S, I)``.
        state: ``(h, c)`` or ``(h,)``, each ``(..., D)``.
        key: random key; without one nothing is dropped.

    Returns:
        :class:`CellStep`.

    Raises:
        ValueError: for an input of another number of features.

    Example:
        >>> from rims.jax import CellSpec, init
        >>> spec = CellSpec(kind="lstm", input_size=5, hidden_size=12, num_rims=4, k=2)
        >>> p = init(jax.random.key(0), spec)
        >>> new = step(p, jnp.ones((3, 5)), initial_state(p, (3,)))
        >>> new.state[0].shape, new.active.sum(-1).tolist()
        ((3, 12), [2, 2, 2])
    """
    if input.shape[-1] != p.spec.input_size:
        raise ValueError(f"step: input has {input.shape[-1]} features, not {p.spec.input_size}.")
    return step_keyed(p, project(p, input), state, key=key)


def project(p: Parameters, input: Array) -> Keyed:
    """Keys and values of the elements of ``input``, (..., I) or with slots (..., S, I)."""
    elements = input if p.spec.input_slots else input[..., None, :]
    heads = p.spec.num_input_heads
    key = split_heads(elements @ p.key_weight, heads)
    return Keyed(key, split_heads(elements @ p.value_weight, heads))


def step_keyed(p: Parameters, given: Keyed, state: State, *, key: Array | None) -> CellStep:
    """As :func:`step`, the input given by its keys and values."""
    keys = Keys(None, None) if key is None else Keys(*jax.random.split(key))
    n = p.spec.num_rims
    prev = tuple(s.reshape(*s.shape[:-1], n, s.shape[-1] // n) for s in state)  # (..., N, d)

    # 1. Compete: every mechanism attends to the input; the k of highest score are active.
    read, weights, score = _read_input(p, given, prev[0], keys.input)
    active = topk_mask(score, p.spec.k)
    is_active = active[..., None]

    # 2. Update: every mechanism, active or not, computes its candidate state on its own.
    h_cand, *rest = _candidate(p, read, prev)

    # 3. Communicate: an idle mechanism is read, but it is not trained through being read.
    reads_state = p.spec.comm_reads == "state"
    comm_input = jnp.where(is_active, h_cand, prev[0]) if reads_state else h_cand
    update, comm_weights = _communicate(p, stop_gradient_where(comm_input, ~is_active), keys.comm)

    # jnp.where keeps an idle state bit for bit; mask arithmetic would let a NaN through.
    new = tuple(
        join_last(jnp.where(is_active, candidate, old))
        for candidate, old in zip((h_cand + update, *rest), prev, strict=True)
    )
    return CellStep(new, active, weights, comm_weights)


def _read_input(
    p: Parameters, given: Keyed, h_prev: Array, key: Array | None
) -> tuple[Array, Array, Array]:
    """Read values (..., N, A), weights (..., N, 1 + S) and the scores that compete."""
    query = split_heads(grouped_linear(h_prev, p.query_weight), p.spec.num_input_heads)
    scores = (query / math.sqrt(query.shape[-1])) @ given.key.mT  # (..., M, N, S)
    # Softmax over a null source of score 0 and the elements.
    null = jnp.zeros_like(scores[..., :1])
    weights = jax.nn.softmax(jnp.concatenate([null, scores], axis=-1), axis=-1)
    read = join_heads(weights[..., 1:] @ given.value)
    # The log odds of reading anything; of one element its score, exactly, so that ties stay ties.
    odds = scores[..., 0] if scores.shape[-1] == 1 else jax.nn.logsumexp(scores, axis=-1)
    return dropout(read, p.spec.input_dropout, key), weights.mean(-3), odds.mean(-2)


def _candidate(p: Parameters, read: Array, prev: State) -> State:
    from_input = grouped_linear(read, p.weight_ih.mT, p.bias_ih)
    from_state = grouped_linear(prev[0], p.weight_hh.mT, p.bias_hh)
    if p.spec.kind == "gru":
        return (gru_candidate(from_input, from_state, prev[0]),)
    h, c = lstm_candidate(from_input + from_state, prev[1])
    return (h if p.weight_hr is None else grouped_linear(h, p.weight_hr.mT)), c


def _communicate(p: Parameters, comm_input: Array, key: Array | None) -> tuple[Array, Array]:
    """Update of each mechanism's state (..., N, d), and attention weights (..., M, N, N)."""
    query, k, value = (
        split_heads(grouped_linear(comm_input, weight), p.spec.num_comm_heads)
        for weight in (p.comm_query_weight, p.comm_key_weight, p.comm_value_weight)
    )
    weights = jax.nn.softmax((query / math.sqrt(query.shape[-1])) @ k.mT, axis=-1)
    read = join_heads(weights @ value)
    gate, output = read @ p.comm_gate_weight.T, read @ p.comm_output_weight.T
    if p.comm_gate_bias is not None and p.comm_output_bias is not None:
        gate, output = gate + p.comm_gate_bias, output + p.comm_output_bias
    output = dropout(output, p.spec.comm_dropout, key)
    return jax.nn.sigmoid(gate) * jnp.tanh(output), weights
