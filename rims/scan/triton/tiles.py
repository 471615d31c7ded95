"""Arithmetic on tiles, and where tiles lie."""

from __future__ import annotations

import triton.language as tl

from rims.scan.triton.shape import jit


@jit
def tanh(x):
    """Hyperbolic tangent, exact to rounding near zero too."""
    # 1 - 2 / (e^2x + 1) loses all digits near zero; four terms of the series are exact there.
    power = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - power) / (1.0 + power)
    square = x * x
    series = 1.0 - square * (
        1.0 / 3 - square * (2.0 / 15 - square * (17.0 / 315 - square * (62.0 / 2835)))
    )
    return tl.where(tl.abs(x) < 0.05, x * series, tl.where(x < 0, -large, large))


@jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp(-x))


@jit
def lines(s: tl.constexpr):
    """Zeros, (rows)."""
    rows: tl.constexpr = s.rows
    return tl.zeros([rows], s.acc)


@jit
def zeros(cols: tl.constexpr, s: tl.constexpr):
    """Zeros, (rows, cols)."""
    rows: tl.constexpr = s.rows
    return tl.zeros([rows, cols], s.acc)


@jit
def cubes(heads: tl.constexpr, cols: tl.constexpr, s: tl.constexpr):
    """Zeros, (rows, heads, cols)."""
    rows: tl.constexpr = s.rows
    return tl.zeros([rows, heads, cols], s.acc)


@jit
def product(
    x, x_stride: tl.constexpr, w, w_stride: tl.constexpr, size: tl.constexpr,
    filled: tl.constexpr, period: tl.constexpr, column, known, acc, s: tl.constexpr,
):  # fmt: skip
    """``acc`` + x @ w, with x (rows, size) in scratch and w (size, .) packed weights.

    Only the ``column`` of w that are ``known`` are there, and the first ``filled`` of its rows in
    every ``period``.
    """
    row = tl.arange(0, s.rows)
    for first in range(0, size, s.inner):
        term = first + tl.arange(0, s.inner)
        left = tl.load(x + row[:, None] * x_stride + term[None, :])
        mask = (term % period < filled)[:, None] & known[None, :]
        right = tl.load(w + term[:, None] * w_stride + column[None, :], mask=mask, other=0.0)
        if s.use_dot:
            acc = tl.dot(left.to(right.dtype), right, acc, input_precision=s.precision)
        else:
            acc += tl.sum(left[:, :, None] * right.to(s.acc)[None, :, :], axis=1)
    return acc


@jit
def halves(x, s: tl.constexpr):
    """(rows, 2 cols) -> two (rows, cols)."""
    rows: tl.constexpr = s.rows
    cols: tl.constexpr = s.cols
    return tl.split(tl.permute(tl.reshape(x, [rows, 2, cols]), [0, 2, 1]))


@jit
def quarters(x, s: tl.constexpr):
    """(rows, 4 cols) -> four (rows, cols)."""
    rows: tl.constexpr = s.rows
    cols: tl.constexpr = s.cols
    even, odd = tl.split(tl.permute(tl.reshape(x, [rows, 2, 2, cols]), [0, 3, 1, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@jit
def put(all, m, one, s: tl.constexpr):
    """``all`` with the column of mechanism m replaced by ``one`` (rows)."""
    return tl.where(tl.arange(0, s.rims)[None, :] == m, one[:, None], all)


@jit
def pick(all, m, s: tl.constexpr):
    """The column of mechanism m, (rows)."""
    return tl.sum(tl.where(tl.arange(0, s.rims)[None, :] == m, all, tl.zeros_like(all)), axis=1)


@jit
def choose(scores, s: tl.constexpr):
    """1 for the k largest scores, of equal ones the lowest index; NaN is larger than all."""
    index = tl.arange(0, s.rims)[None, :]
    rank = zeros(s.rims, s).to(tl.int32)
    is_nan = scores != scores
    for n in range(s.num_rims):
        other = pick(scores, n, s)[:, None]
        other_is_nan = other != other
        larger = (other > scores) | (other_is_nan & (scores == scores))
        equal = (other == scores) | (other_is_nan & is_nan)
        rank += (larger | (equal & (index > n))).to(tl.int32)
    return ((rank < s.k) & (index < s.num_rims)).to(tl.int32)


@jit
def columns(j, s: tl.constexpr):
    """The columns of chunk j of a mechanism."""
    return j * s.cols + tl.arange(0, s.cols)


@jit
def in_tile(region: tl.constexpr, m, column, s: tl.constexpr):
    """Offsets of ``column`` of mechanism m in a region of scratch."""
    row = (region * s.num_rims + m) * s.rows + tl.arange(0, s.rows)
    return row[:, None] * s.width + column[None, :]


@jit
def in_state(at, m, column, s: tl.constexpr):
    """Offsets of ``column`` of mechanism m in a tensor (..., N d); ``at`` are the rows."""
    return at[:, None] * (s.num_rims * s.unit_size) + (m * s.unit_size + column)[None, :]


@jit
def in_gates(at, m, gate, column, s: tl.constexpr):
    """Offsets in a tensor (..., N G d)."""
    width: tl.constexpr = s.num_rims * s.num_gates * s.unit_size
    return at[:, None] * width + ((m * s.num_gates + gate) * s.unit_size + column)[None, :]


@jit
def in_heads(m, first: tl.constexpr, size: tl.constexpr, width: tl.constexpr, s: tl.constexpr):
    """Offsets of (rows, heads, ``size``) from column ``first`` of scratch (N, rows, ``width``)."""
    row = m * s.rows + tl.arange(0, s.rows)
    inside = tl.arange(0, s.heads)[:, None] * size + tl.arange(0, size)[None, :]
    return row[:, None, None] * width + first + inside[None, :, :]


@jit
def wide_gates(j, s: tl.constexpr):
    """Four gates' columns of chunk j side by side: which gate, and which column of it."""
    wide = tl.arange(0, 4 * s.cols)
    return wide // s.cols, j * s.cols + wide % s.cols


@jit
def in_wide(m, part: tl.constexpr, column, parts: tl.constexpr, s: tl.constexpr):
    """Offsets of ``column`` of a part in scratch (N, rows, parts, width)."""
    row = m * s.rows + tl.arange(0, s.rows)
    return row[:, None] * (parts * s.width) + (part * s.width + column)[None, :]
