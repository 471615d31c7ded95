"""Kernels of the attention between mechanisms and of its gradient, for a block of samples.

The conventions are those of :mod:`rims.scan.native.forward`.
"""

from __future__ import annotations

from typing import Any

from rims.native.simd import (
    exp,
    inlined,
    kernel,
    larger,
    load,
    load_up_to,
    shifted,
    splat,
    store,
    store_totals,
    store_up_to,
    total,
)


@kernel
def attend(b: Any) -> None:
    """Communication of active mechanisms: weights in ALPHA (R, N, k M), what is read in READ.

    Three passes over the readers of a sample: a number written alone and at once read as part of a
    vector would stall.
    """
    step = b.block_rows * b.width
    for r in range(b.rows):
        row, weights = shifted(b.s_qkv, r * b.width), shifted(b.s_alpha, r * b.n * b.lines)
        for a in range(b.k):
            query = shifted(row, b.s_picked[r * b.k + a] * step)
            for m in range(b.n):
                key = shifted(row, m * step + b.m * b.dk)
                head_by_head(b, query, key, b.dk, shifted(weights, m * b.lines + a * b.m))
        softmax(b, weights)
        values = shifted(row, 2 * b.m * b.dk)
        for a in range(b.k):
            read = shifted(b.s_read, (r * b.k + a) * b.heads)
            mixed(b, b.n, shifted(weights, a * b.m), b.lines, values, step, b.dv, read)


@kernel
def head_by_head(b: Any, one: Any, other: Any, size: int, out: Any) -> None:
    """Scalar products of two rows, each of M heads of ``size`` numbers, to ``out`` (M,)."""
    head, heads = 0, b.m
    while head + 4 <= heads:
        first, second, third, fourth = b.zero, b.zero, b.zero, b.zero
        for j in range(0, size, b.lanes):
            place, left = head * size + j, size - j
            first = first + product(one, other, place, left)
            second = second + product(one, other, place + size, left)
            third = third + product(one, other, place + 2 * size, left)
            fourth = fourth + product(one, other, place + 3 * size, left)
        store_totals(out, head, first, second, third, fourth)
        head += 4
    while head < heads:
        sums = b.zero
        for j in range(0, size, b.lanes):
            sums = sums + product(one, other, head * size + j, size - j)
        out[head] = total(sums)
        head += 1


@inlined
def product(one: Any, other: Any, place: int, left: int) -> Any:
    """Product of two vectors, of which ``left`` entries count."""
    return load_up_to(one, place, left) * load_up_to(other, place, left)


@kernel
def mixed(
    b: Any, count: int, weights: Any, step: int, rows: Any, row_step: int, size: int, out: Any
) -> None:
    """Weighted sum of ``count`` rows for every head, to ``out``; a row has weights (M,)."""
    head, heads = 0, b.m
    while head + 4 <= heads:
        for j in range(0, size, b.lanes):
            place, left = head * size + j, size - j
            first, second, third, fourth = b.zero, b.zero, b.zero, b.zero
            for i in range(count):
                own, row = shifted(weights, i * step + head), shifted(rows, i * row_step + place)
                first = first + splat(own[0]) * load_up_to(row, 0, left)
                second = second + splat(own[1]) * load_up_to(row, size, left)
                third = third + splat(own[2]) * load_up_to(row, 2 * size, left)
                fourth = fourth + splat(own[3]) * load_up_to(row, 3 * size, left)
            store_up_to(out, place, left, first)
            store_up_to(out, place + size, left, second)
            store_up_to(out, place + 2 * size, left, third)
            store_up_to(out, place + 3 * size, left, fourth)
        head += 4
    while head < heads:
        for j in range(0, size, b.lanes):
            place, left, sums = head * size + j, size - j, b.zero
            for i in range(count):
                weight = splat(weights[i * step + head])
                sums = sums + weight * load_up_to(rows, i * row_step + place, left)
            store_up_to(out, place, left, sums)
        head += 1


@kernel
def softmax(b: Any, values: Any) -> None:
    """Softmax of scores (N, k M) times ``scale``, in place; a lane of a vector is a column."""
    scale = splat(b.scale)
    for j in range(0, b.lines, b.lanes):
        largest = load(values, j)
        for m in range(1, b.n):
            largest = larger(largest, load(values, m * b.lines + j))
        sums = b.zero
        for m in range(b.n):
            power = exp((load(values, m * b.lines + j) - largest) * scale)
            store(values, m * b.lines + j, power)
            sums = sums + power
        for m in range(b.n):
            store(values, m * b.lines + j, load(values, m * b.lines + j) / sums)


@kernel
def attention_gradient(b: Any, base: int) -> None:
    """Gradients of queries, keys and values, from active readers."""
    n, width = b.n, 2 * b.m * b.dk + b.m * b.dv
    for r in range(b.rows):
        own = shifted(b.d_qkv, (base + r) * n * width)
        is_real = b.s_chosen[r * n + b.s_picked[r * b.k]] != 0  # in padding nothing is active
        for m in range(n):
            if not b.s_chosen[r * n + m]:  # an idle mechanism reads nothing
                filled = b.m * b.dk if is_real else width
                for j in range(0, filled, b.lanes):
                    store_up_to(own, m * width + j, filled - j, b.zero)
        if is_real:
            weights = shifted(b.s_alpha, r * n * b.lines)
            weight_gradient(b, r)
            value_gradient(b, r, weights, own, width)
            score_gradient(b, weights)
            query_gradient(b, r, own, width)
            key_gradient(b, r, own, width)


@kernel
def weight_gradient(b: Any, r: int) -> None:
    """Gradient of the attention weights, to D_ALPHA (N, k M)."""
    values = shifted(b.s_qkv, r * b.width + 2 * b.m * b.dk)
    for a in range(b.k):
        d_read = shifted(b.s_d_read, (r * b.k + a) * b.heads)
        for m in range(b.n):
            value = shifted(values, m * b.block_rows * b.width)
            head_by_head(b, d_read, value, b.dv, shifted(b.s_d_alpha, m * b.lines + a * b.m))


@kernel
def value_gradient(b: Any, r: int, weights: Any, own: Any, width: int) -> None:
    """Gradient of the values, to ``own`` (N, W)."""
    d_read, values = shifted(b.s_d_read, r * b.k * b.heads), shifted(own, 2 * b.m * b.dk)
    for m in range(b.n):
        d_value = shifted(values, m * width)
        mixed(b, b.k, shifted(weights, m * b.lines), b.m, d_read, b.heads, b.dv, d_value)


@kernel
def score_gradient(b: Any, weights: Any) -> None:
    """Gradient of the scores from that of the weights, in place; a lane is a column."""
    n, lines, d_weights, scale = b.n, b.lines, b.s_d_alpha, splat(b.scale)
    for j in range(0, lines, b.lanes):
        mean = b.zero
        for m in range(n):
            mean = mean + load(weights, m * lines + j) * load(d_weights, m * lines + j)
        for m in range(n):
            place = m * lines + j
            d_score = load(weights, place) * (load(d_weights, place) - mean) * scale
            store(d_weights, place, d_score)


@kernel
def query_gradient(b: Any, r: int, own: Any, width: int) -> None:
    """Gradient of the queries of active mechanisms, to ``own``."""
    keys, step = shifted(b.s_qkv, r * b.width + b.m * b.dk), b.block_rows * b.width
    for a in range(b.k):
        d_query = shifted(own, b.s_picked[r * b.k + a] * width)
        mixed(b, b.n, shifted(b.s_d_alpha, a * b.m), b.lines, keys, step, b.dk, d_query)


@kernel
def key_gradient(b: Any, r: int, own: Any, width: int) -> None:
    """Gradient of the keys, to ``own``."""
    size, queries = b.m * b.dk, b.s_queries
    for a in range(b.k):  # side by side, readers are not neighbours in QKV
        query = shifted(b.s_qkv, (b.s_picked[r * b.k + a] * b.block_rows + r) * b.width)
        for j in range(0, size, b.lanes):
            store_up_to(queries, a * size + j, size - j, load_up_to(query, j, size - j))
    for m in range(b.n):
        d_key = shifted(own, m * width + size)
        mixed(b, b.k, shifted(b.s_d_alpha, m * b.lines), b.m, queries, size, b.dk, d_key)
