"""Phases of a step that forward and backward share."""

from __future__ import annotations

import triton.language as tl

from rims.scan.triton.shape import jit
from rims.scan.triton.tiles import (
    cubes,
    halves,
    in_gates,
    in_heads,
    in_state,
    product,
    sigmoid,
    tanh,
    wide_gates,
    zeros,
)


@jit
def restarted(state, fresh, where, fits, renew):
    """``state``, replaced by the fresh state where there is a reset."""
    if fresh is not None:
        new = tl.load(fresh + where, mask=fits, other=0.0).to(state.dtype)
    else:
        new = tl.zeros_like(state)
    return tl.where(renew[:, None], new, state)


@jit
def load_before(
    done, before, fresh, m, column, row, at, inside,
    batch, renew, has_reset: tl.constexpr, s: tl.constexpr,
):  # fmt: skip
    """The state before a step: what the step before left, or the range's first; resets made."""
    known = (column < s.unit_size)[None, :]
    is_first = at < batch
    where = in_state(row, m, column, s)
    first = tl.load(before + where, mask=(inside & is_first)[:, None] & known, other=0.0)
    fits = (inside & (at >= batch))[:, None] & known
    later = tl.load(done + in_state(at - batch, m, column, s), mask=fits, other=0.0)
    state = tl.where(is_first[:, None], first.to(s.acc), later.to(s.acc))
    if has_reset:
        state = restarted(state, fresh, where, inside[:, None] & known, renew)
    return state


@jit
def gate_halves(
    tiles, gate_side, hh, bias_x, bias_h,
    at, inside, share, m, j, s: tl.constexpr,
):  # fmt: skip
    """Both halves of all gates before their activations, each (rows, 4 cols)."""
    gate, column = wide_gates(j, s)
    known = (gate < s.num_gates) & (column < s.stride)
    bias = (m * 4 + gate) * s.width + column
    from_state = zeros(4 * s.cols, s) + tl.load(bias_h + bias)[None, :]
    from_state = product(
        tiles + (s.H * s.num_rims + m) * (s.rows * s.width), s.width,
        hh + m * (s.unit_size * s.num_gates * s.stride), s.num_gates * s.stride,
        s.unit_size, s.unit_size, s.width, gate * s.stride + column, known, from_state, s,
    )  # fmt: skip
    fits = inside[:, None] & ((gate < s.num_gates) & (column < s.unit_size))[None, :]
    side = tl.load(gate_side + in_gates(at, m, gate, column, s), mask=fits, other=0.0).to(s.acc)
    return share[:, None] * side + tl.load(bias_x + bias)[None, :], from_state


@jit
def project_qkv(tiles, packed_qkv, comm, s: tl.constexpr):
    """Queries, keys and values of every mechanism."""
    row = tl.arange(0, s.rows)[:, None]
    for m in range(s.num_rims):
        x = tiles + (s.COMM_INPUT * s.num_rims + m) * (s.rows * s.width)
        w = comm + m * (s.unit_size * s.packed)
        to = packed_qkv + (m * s.rows + row) * s.packed
        for part in tl.static_range(3):
            if part < 2:
                column = part * s.all_keys + tl.arange(0, s.all_keys)
                acc = zeros(s.all_keys, s)
            else:
                column = part * s.all_keys + tl.arange(0, s.all_values)
                acc = zeros(s.all_values, s)
            acc = product(
                x,
                s.width,
                w,
                s.packed,
                s.unit_size,
                s.unit_size,
                s.width,
                column,
                column >= 0,
                acc,
                s,
            )
            tl.store(to + column[None, :], acc)


@jit
def attend(packed_qkv, m, s: tl.constexpr):
    """Attention weights of reader m, (rows, heads, N padded), and what it reads."""
    query = tl.load(packed_qkv + in_heads(m, 0, s.keys, s.packed, s))
    scale: tl.constexpr = s.key_size**-0.5
    query = query * scale
    index = tl.arange(0, s.rims)[None, None, :]
    scores = cubes(s.heads, s.rims, s) + float("-inf")
    for n in range(s.num_rims):
        key = tl.load(packed_qkv + in_heads(n, s.all_keys, s.keys, s.packed, s))
        scores = tl.where(index == n, tl.sum(query * key, axis=2)[:, :, None], scores)
    weights = tl.exp(scores - tl.max(scores, axis=2)[:, :, None])
    weights = weights / tl.sum(weights, axis=2)[:, :, None]
    read = cubes(s.heads, s.values, s)
    for n in range(s.num_rims):
        value = tl.load(packed_qkv + in_heads(n, 2 * s.all_keys, s.values, s.packed, s))
        weight = tl.sum(tl.where(index == n, weights, tl.zeros_like(weights)), axis=2)
        read += weight[:, :, None] * value
    return weights, read


@jit
def gate_output(read, output, output_bias, m, j, s: tl.constexpr):
    """Output (after its tanh) and gate (after its sigmoid) of the communication, (rows, cols)."""
    wide = tl.arange(0, 2 * s.cols)
    side, column = wide // s.cols, j * s.cols + wide % s.cols
    acc = zeros(2 * s.cols, s)
    acc += tl.load(output_bias + side * s.width + column)[None, :]
    acc = product(
        read + m * (s.rows * s.all_values), s.all_values, output, 2 * s.stride, s.all_values,
        s.all_values, s.all_values, side * s.stride + column, column < s.stride, acc, s,
    )  # fmt: skip
    out, gate = halves(acc, s)
    return tanh(out), sigmoid(gate)
