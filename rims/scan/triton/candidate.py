"""Phases of the gradient of the mechanisms themselves."""

from __future__ import annotations

import triton.language as tl

from rims.scan.triton.phases import load_before
from rims.scan.triton.shape import jit
from rims.scan.triton.tiles import (
    columns,
    in_gates,
    in_state,
    in_tile,
    in_wide,
    lines,
    pick,
    product,
    put,
    tanh,
    zeros,
)


@jit
def lstm_gradient(
    d_cand,
    grad_c,
    c_prev,
    i,
    f,
    g,
    o,
):
    """Gradients of the gates before their activations and of the old c."""
    tanh_c = tanh(f * c_prev + i * g)
    d_c = grad_c + d_cand * o * (1.0 - tanh_c * tanh_c)
    d_i = d_c * g * i * (1.0 - i)
    d_f = d_c * c_prev * f * (1.0 - f)
    d_g = d_c * i * (1.0 - g * g)
    d_o = d_cand * tanh_c * o * (1.0 - o)
    return d_i, d_f, d_g, d_o, d_c * f


@jit
def gru_gradient(d_cand, h, r, z, n, h_n):
    """Gradients of the gates, the last for its input's half, and directly of the old h."""
    d_z = d_cand * (h - n) * z * (1.0 - z)
    d_n = d_cand * (1.0 - z) * (1.0 - n * n)
    d_r = d_n * h_n * r * (1.0 - r)
    return d_r, d_z, d_n, d_cand * z


@jit
def hand_back(
    tiles, region: tl.constexpr, fresh_region: tl.constexpr, m, column, grad,
    renew, has_reset: tl.constexpr, s: tl.constexpr,
):  # fmt: skip
    """Put the gradient of the state before a step where it belongs."""
    if has_reset:
        fresh = tiles + in_tile(fresh_region, m, column, s)
        zero = tl.zeros_like(grad)
        total = tl.load(fresh) + tl.where(renew[:, None], grad, zero)
        tl.debug_barrier()
        tl.store(fresh, total)
        grad = tl.where(renew[:, None], zero, grad)
    else:
        tl.debug_barrier()
    tl.store(tiles + in_tile(region, m, column, s), grad)


@jit
def gate_gradient(
    d_input, d_state, gate: tl.constexpr, gate_side, d_gate_side,
    state_gates, bias_sum, share, is_active, m, column, at,
    fits, s: tl.constexpr,
):  # fmt: skip
    """Write one gate's gradients; return its part of the gradient of the share."""
    where = in_gates(at, m, gate, column, s)
    side = tl.load(gate_side + where, mask=fits, other=0.0).to(s.acc)
    zero = tl.zeros_like(d_input)
    to_sum = bias_sum + (m * s.num_gates + gate) * s.width + column
    total = tl.load(to_sum) + tl.sum(tl.where(fits, d_input, zero), axis=0)
    tl.debug_barrier()
    tl.store(to_sum, total)
    d_side = tl.where(is_active, d_input * share[:, None], zero)
    tl.store(d_gate_side + where, d_side, mask=fits)
    tl.store(state_gates + where, d_state, mask=fits)
    return tl.sum(tl.where(is_active, d_input * side, zero), axis=1)


@jit
def candidate_gradient(
    gate_side, done_c, before_c, fresh_c, active, comm_back,
    d_gate_side, state_gates, bias_sum, tiles, gates, d_packed_qkv,
    row, at, inside, batch, renew, shares,
    has_reset: tl.constexpr, s: tl.constexpr,
):  # fmt: skip
    """Gradients of all gates and of c; return those of the scores, (rows, N padded)."""
    d_scores = zeros(s.rims, s)
    for m in range(s.num_rims):
        share = pick(shares, m, s)
        is_active = tl.load(active + at * s.num_rims + m, mask=inside, other=0)[:, None] != 0
        d_share = lines(s)
        for j in range(s.chunks):
            column = columns(j, s)
            fits = inside[:, None] & (column < s.unit_size)[None, :]
            d_comm_input = product(
                d_packed_qkv + m * (s.rows * s.packed), s.packed,
                comm_back + m * (s.packed * s.stride), s.stride,
                s.packed, s.packed, s.packed, column, column < s.stride,
                zeros(s.cols, s), s,
            )  # fmt: skip
            grad_h = tl.load(tiles + in_tile(s.GRAD_H, m, column, s))
            zero = tl.zeros_like(grad_h)
            d_cand = tl.where(is_active, grad_h + d_comm_input, zero)
            a = tl.load(gates + in_wide(m, 0, column, 4, s))
            b = tl.load(gates + in_wide(m, 1, column, 4, s))
            c = tl.load(gates + in_wide(m, 2, column, 4, s))
            d = tl.load(gates + in_wide(m, 3, column, 4, s))
            if s.is_lstm:
                c_prev = load_before(
                    done_c, before_c, fresh_c, m, column, row, at, inside, batch, renew,
                    has_reset, s,
                )  # fmt: skip
                grad_c = tl.load(tiles + in_tile(s.GRAD_C, m, column, s))
                d_a, d_b, d_c, d_d, d_c_prev = lstm_gradient(d_cand, grad_c, c_prev, a, b, c, d)
                d_c_prev = tl.where(is_active, d_c_prev, grad_c)
                hand_back(tiles, s.GRAD_C, s.FRESH_C, m, column, d_c_prev, renew, has_reset, s)
            else:
                h = tl.load(tiles + in_tile(s.H, m, column, s))
                d_a, d_b, d_c, d_d = gru_gradient(d_cand, h, a, b, c, d)
            # An idle mechanism's gates may hold NaN; its gradient is zero all the same.
            d_a = tl.where(is_active, d_a, zero)
            d_b = tl.where(is_active, d_b, zero)
            d_c = tl.where(is_active, d_c, zero)
            d_d = tl.where(is_active, d_d, zero)
            d_n = d_c
            if not s.is_lstm:
                d_n = tl.where(is_active, d_c * a, zero)
            d_share += gate_gradient(
                d_a, d_a, 0, gate_side, d_gate_side, state_gates, bias_sum, share, is_active,
                m, column, at, fits, s,
            )  # fmt: skip
            d_share += gate_gradient(
                d_b, d_b, 1, gate_side, d_gate_side, state_gates, bias_sum, share, is_active,
                m, column, at, fits, s,
            )  # fmt: skip
            d_share += gate_gradient(
                d_c, d_n, 2, gate_side, d_gate_side, state_gates, bias_sum, share, is_active,
                m, column, at, fits, s,
            )  # fmt: skip
            if s.is_lstm:
                d_share += gate_gradient(
                    d_d, d_d, 3, gate_side, d_gate_side, state_gates, bias_sum, share, is_active,
                    m, column, at, fits, s,
                )  # fmt: skip
            # The gates' scratch now holds gradients of the state's half; for a GRU, whose fourth
            # part is no gate, that part is what goes to the old h directly.
            tl.store(gates + in_wide(m, 0, column, 4, s), d_a)
            tl.store(gates + in_wide(m, 1, column, 4, s), d_b)
            tl.store(gates + in_wide(m, 2, column, 4, s), d_n)
            tl.store(gates + in_wide(m, 3, column, 4, s), d_d)
        d_score = d_share * share * (1.0 - share)
        d_scores = put(d_scores, m, d_score, s)
    return d_scores


@jit
def state_gradient(
    query_side, active, hh_back, d_query_side, tiles, gates,
    at, inside, renew, d_scores, has_reset: tl.constexpr, s: tl.constexpr,
):  # fmt: skip
    """Gradients of the state before the step."""
    for m in range(s.num_rims):
        is_active = tl.load(active + at * s.num_rims + m, mask=inside, other=0)[:, None] != 0
        d_score = pick(d_scores, m, s)[:, None]
        for j in range(s.chunks):
            column = columns(j, s)
            fits = inside[:, None] & (column < s.unit_size)[None, :]
            where = in_state(at, m, column, s)
            d_h = product(
                gates + m * (s.rows * 4 * s.width), 4 * s.width,
                hh_back + m * (s.num_gates * s.width * s.stride), s.stride,
                s.num_gates * s.width, s.unit_size, s.width, column, column < s.stride,
                zeros(s.cols, s), s,
            )  # fmt: skip
            if not s.is_lstm:
                d_h += tl.load(gates + in_wide(m, 3, column, 4, s))
            query = tl.load(query_side + where, mask=fits, other=0.0).to(s.acc)
            h = tl.load(tiles + in_tile(s.H, m, column, s))
            grad_h = tl.load(tiles + in_tile(s.GRAD_H, m, column, s))
            d_query = tl.where(is_active, d_score * h, tl.zeros_like(h))
            tl.store(d_query_side + where, d_query, mask=fits)
            grad = tl.where(is_active, d_h + d_score * query, grad_h)
            hand_back(tiles, s.GRAD_H, s.FRESH_H, m, column, grad, renew, has_reset, s)
