"""Phases of the gradient of the communication."""

from __future__ import annotations

import triton.language as tl

from rims.scan.triton.phases import attend, gate_output
from rims.scan.triton.shape import jit
from rims.scan.triton.tiles import (
    columns,
    cubes,
    in_heads,
    in_tile,
    in_wide,
    product,
    zeros,
)


@jit
def in_pairs(m, s: tl.constexpr):
    """Offsets of all sources of reader m, (rows, heads, N padded), in scratch."""
    row = m * s.rows + tl.arange(0, s.rows)
    line = row[:, None] * s.heads + tl.arange(0, s.heads)[None, :]
    return line[:, :, None] * s.rims + tl.arange(0, s.rims)[None, None, :]


@jit
def of_source(m, n, s: tl.constexpr):
    """Offsets of source n of reader m, (rows, heads), in the same scratch."""
    row = m * s.rows + tl.arange(0, s.rows)
    return (row[:, None] * s.heads + tl.arange(0, s.heads)[None, :]) * s.rims + n


@jit
def attend_again(packed_qkv, reads, pairs, read, at, inside, s: tl.constexpr):
    """Attention weights and reads of every mechanism."""
    head, value = tl.arange(0, s.heads)[:, None], tl.arange(0, s.values)[None, :]
    real = (head < s.num_heads) & (value < s.value_size)
    for m in range(s.num_rims):
        weights, got = attend(packed_qkv, m, s)
        tl.store(pairs + in_pairs(m, s), weights)
        tl.store(reads + in_heads(m, 0, s.values, s.all_values, s), got)
        first = (at * s.num_rims + m) * (s.num_heads * s.value_size)
        where = first[:, None, None] + (head * s.value_size + value)[None, :, :]
        tl.store(read + where, got, mask=inside[:, None, None] & real[None, :, :])


@jit
def output_gradient(
    reads, output, output_bias, active, output_gate, tiles,
    d_output_gate, at, inside, s: tl.constexpr,
):  # fmt: skip
    """Gradients of output and gate before tanh and sigmoid; zero for idle readers."""
    for m in range(s.num_rims):
        is_active = tl.load(active + at * s.num_rims + m, mask=inside, other=0)[:, None] != 0
        for j in range(s.chunks):
            column = columns(j, s)
            fits = inside[:, None] & (column < s.unit_size)[None, :]
            out, gate = gate_output(reads, output, output_bias, m, j, s)
            grad = tl.load(tiles + in_tile(s.GRAD_H, m, column, s))
            zero = tl.zeros_like(grad)
            d_output = tl.where(is_active, grad * gate * (1.0 - out * out), zero)
            d_gate = tl.where(is_active, grad * out * gate * (1.0 - gate), zero)
            tl.store(d_output_gate + in_wide(m, 0, column, 2, s), d_output)
            tl.store(d_output_gate + in_wide(m, 1, column, 2, s), d_gate)
            first = (at * s.num_rims + m) * (2 * s.unit_size)
            where = first[:, None] + column[None, :]
            tl.store(output_gate + where, d_output, mask=fits)
            tl.store(output_gate + where + s.unit_size, d_gate, mask=fits)


@jit
def read_gradient(d_output_gate, output_back, d_reads, s: tl.constexpr):
    """Gradients of what every mechanism read."""
    row = tl.arange(0, s.rows)[:, None]
    column = tl.arange(0, s.all_values)
    for m in range(s.num_rims):
        acc = zeros(s.all_values, s)
        acc = product(
            d_output_gate + m * (s.rows * 2 * s.width), 2 * s.width, output_back, s.all_values,
            2 * s.width, s.unit_size, s.width, column, column >= 0, acc, s,
        )  # fmt: skip
        tl.store(d_reads + (m * s.rows + row) * s.all_values + column[None, :], acc)


@jit
def in_qkv(
    at,
    m,
    first: tl.constexpr,
    size: tl.constexpr,
    padded: tl.constexpr,
    s: tl.constexpr,
):
    """Offsets of (rows, heads, ``padded``) from column ``first`` of a tensor (..., N, W)."""
    width: tl.constexpr = s.num_heads * (2 * s.key_size + s.value_size)
    inside = tl.arange(0, s.heads)[:, None] * size + tl.arange(0, padded)[None, :]
    return ((at * s.num_rims + m) * width + first)[:, None, None] + inside[None, :, :]


@jit
def real_heads(inside, size: tl.constexpr, padded: tl.constexpr, s: tl.constexpr):
    """Mask of (rows, heads, ``padded``) that is false in the padding."""
    head, column = tl.arange(0, s.heads)[:, None], tl.arange(0, padded)[None, :]
    return inside[:, None, None] & ((head < s.num_heads) & (column < size))[None, :, :]


@jit
def reader_gradient(
    active, qkv, packed_qkv, d_packed_qkv, d_reads, pairs, d_pairs,
    at, inside, s: tl.constexpr,
):  # fmt: skip
    """Gradients of attention scores and of queries."""
    index = tl.arange(0, s.rims)[None, None, :]
    scale: tl.constexpr = s.key_size**-0.5
    real = real_heads(inside, s.key_size, s.keys, s)
    for m in range(s.num_rims):
        is_active = tl.load(active + at * s.num_rims + m, mask=inside, other=0) != 0
        weights = tl.load(pairs + in_pairs(m, s))
        d_read = tl.load(d_reads + in_heads(m, 0, s.values, s.all_values, s))
        d_weights = tl.zeros_like(weights)
        for n in range(s.num_rims):
            value = tl.load(packed_qkv + in_heads(n, 2 * s.all_keys, s.values, s.packed, s))
            d_weight = tl.sum(d_read * value, axis=2)
            d_weights = tl.where(index == n, d_weight[:, :, None], d_weights)
        mean = tl.sum(weights * d_weights, axis=2)
        d_scores = weights * (d_weights - mean[:, :, None]) * scale
        d_scores = tl.where(is_active[:, None, None], d_scores, tl.zeros_like(d_scores))
        tl.store(d_pairs + in_pairs(m, s), d_scores)
        d_query = cubes(s.heads, s.keys, s)
        for n in range(s.num_rims):
            key = tl.load(packed_qkv + in_heads(n, s.all_keys, s.keys, s.packed, s))
            d_score = tl.sum(tl.where(index == n, d_scores, tl.zeros_like(d_scores)), axis=2)
            d_query += d_score[:, :, None] * key
        d_query = tl.where(is_active[:, None, None], d_query, tl.zeros_like(d_query))
        tl.store(d_packed_qkv + in_heads(m, 0, s.keys, s.packed, s), d_query)
        tl.store(qkv + in_qkv(at, m, 0, s.key_size, s.keys, s), d_query, mask=real)


@jit
def source_gradient(
    active, qkv, packed_qkv, d_packed_qkv, d_reads, pairs, d_pairs,
    at, inside, s: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, from all active readers."""
    real_keys = real_heads(inside, s.key_size, s.keys, s)
    real_values = real_heads(inside, s.value_size, s.values, s)
    value_first: tl.constexpr = 2 * s.num_heads * s.key_size
    for n in range(s.num_rims):
        d_key = cubes(s.heads, s.keys, s)
        d_value = cubes(s.heads, s.values, s)
        for m in range(s.num_rims):
            is_active = tl.load(active + at * s.num_rims + m, mask=inside, other=0) != 0
            reads = is_active[:, None, None]
            query = tl.load(packed_qkv + in_heads(m, 0, s.keys, s.packed, s))
            d_read = tl.load(d_reads + in_heads(m, 0, s.values, s.all_values, s))
            d_score = tl.load(d_pairs + of_source(m, n, s))[:, :, None]
            weight = tl.load(pairs + of_source(m, n, s))[:, :, None]
            d_key += tl.where(reads, d_score * query, tl.zeros_like(query))
            d_value += tl.where(reads, weight * d_read, tl.zeros_like(d_read))
        tl.store(d_packed_qkv + in_heads(n, s.all_keys, s.keys, s.packed, s), d_key)
        tl.store(d_packed_qkv + in_heads(n, 2 * s.all_keys, s.values, s.packed, s), d_value)
        key_first: tl.constexpr = s.num_heads * s.key_size
        tl.store(qkv + in_qkv(at, n, key_first, s.key_size, s.keys, s), d_key, mask=real_keys)
        to = in_qkv(at, n, value_first, s.value_size, s.values, s)
        tl.store(qkv + to, d_value, mask=real_values)
