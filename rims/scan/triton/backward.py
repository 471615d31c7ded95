"""The kernel of the gradient of a range of steps."""

from __future__ import annotations

import triton.language as tl

from rims.scan.triton.attention import (
    attend_again,
    output_gradient,
    read_gradient,
    reader_gradient,
    source_gradient,
)
from rims.scan.triton.candidate import candidate_gradient, state_gradient
from rims.scan.triton.phases import gate_halves, load_before, project_qkv
from rims.scan.triton.shape import jit, kernel
from rims.scan.triton.tiles import (
    columns,
    in_state,
    in_tile,
    in_wide,
    lines,
    pick,
    put,
    quarters,
    sigmoid,
    tanh,
    zeros,
)


@jit
def carry_in(carry_h, carry_c, tiles, row, inside, s: tl.constexpr):
    """Start with the gradients of the state after the range."""
    for m in range(s.num_rims):
        for j in range(s.chunks):
            column = columns(j, s)
            fits = inside[:, None] & (column < s.unit_size)[None, :]
            where = in_state(row, m, column, s)
            zero = zeros(s.cols, s)
            grad = tl.load(carry_h + where, mask=fits, other=0.0).to(s.acc)
            tl.store(tiles + in_tile(s.GRAD_H, m, column, s), grad)
            tl.store(tiles + in_tile(s.FRESH_H, m, column, s), zero)
            if s.is_lstm:
                grad = tl.load(carry_c + where, mask=fits, other=0.0).to(s.acc)
                tl.store(tiles + in_tile(s.GRAD_C, m, column, s), grad)
                tl.store(tiles + in_tile(s.FRESH_C, m, column, s), zero)


@jit
def carry_out(
    carry, carry_fresh, region: tl.constexpr, fresh_region: tl.constexpr, tiles,
    row, inside, s: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the state before the range and of the fresh states of resets."""
    for m in range(s.num_rims):
        for j in range(s.chunks):
            column = columns(j, s)
            fits = inside[:, None] & (column < s.unit_size)[None, :]
            where = in_state(row, m, column, s)
            grad = tl.load(tiles + in_tile(region, m, column, s))
            more = tl.load(tiles + in_tile(fresh_region, m, column, s))
            so_far = tl.load(carry_fresh + where, mask=fits, other=0.0).to(s.acc)
            tl.debug_barrier()
            tl.store(carry + where, grad, mask=fits)
            tl.store(carry_fresh + where, so_far + more, mask=fits)


@jit
def compete_again(
    query_side, grad_output, done_h, before_h, fresh_h, h_prev,
    tiles, row, at, inside, batch, renew,
    has_reset: tl.constexpr, s: tl.constexpr,
):  # fmt: skip
    """Scores from the state before; add the gradient of the step's output to that of its state."""
    scores = zeros(s.rims, s)
    for m in range(s.num_rims):
        score = lines(s)
        for j in range(s.chunks):
            column = columns(j, s)
            fits = inside[:, None] & (column < s.unit_size)[None, :]
            where = in_state(at, m, column, s)
            h = load_before(
                done_h, before_h, fresh_h, m, column, row, at, inside, batch, renew, has_reset, s
            )
            query = tl.load(query_side + where, mask=fits, other=0.0).to(s.acc)
            score += tl.sum(h * query, axis=1)
            place = tiles + in_tile(s.GRAD_H, m, column, s)
            grad = tl.load(place)
            grad += tl.load(grad_output + where, mask=fits, other=0.0).to(s.acc)
            tl.debug_barrier()
            tl.store(place, grad)
            tl.store(tiles + in_tile(s.H, m, column, s), h)
            tl.store(h_prev + where, h, mask=fits)
        scores = put(scores, m, score, s)
    return scores


@jit
def candidate_again(
    gate_side, done_c, before_c, fresh_c, active, hh, bias_x,
    bias_h, comm_input, tiles, gates, row, at, inside, batch,
    renew, shares, has_reset: tl.constexpr, s: tl.constexpr,
):  # fmt: skip
    """Gates after their activations, and what communication reads of every mechanism."""
    for m in range(s.num_rims):
        share = pick(shares, m, s)
        is_active = tl.load(active + at * s.num_rims + m, mask=inside, other=0)[:, None] != 0
        for j in range(s.chunks):
            column = columns(j, s)
            fits = inside[:, None] & (column < s.unit_size)[None, :]
            from_input, from_state = gate_halves(
                tiles, gate_side, hh, bias_x, bias_h, at, inside, share, m, j, s
            )
            h = tl.load(tiles + in_tile(s.H, m, column, s))
            if s.is_lstm:
                s_i, s_f, s_g, s_o = quarters(from_input + from_state, s)
                a, b, c, d = sigmoid(s_i), sigmoid(s_f), tanh(s_g), sigmoid(s_o)
                c_prev = load_before(
                    done_c, before_c, fresh_c, m, column, row, at, inside, batch, renew,
                    has_reset, s,
                )  # fmt: skip
                h_cand = d * tanh(b * c_prev + a * c)
            else:
                x_r, x_z, x_n, _none = quarters(from_input, s)
                h_r, h_z, d, _none = quarters(from_state, s)
                a, b = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
                c = tanh(x_n + a * d)
                h_cand = (1.0 - b) * c + b * h
            tl.store(gates + in_wide(m, 0, column, 4, s), a)
            tl.store(gates + in_wide(m, 1, column, 4, s), b)
            tl.store(gates + in_wide(m, 2, column, 4, s), c)
            tl.store(gates + in_wide(m, 3, column, 4, s), d)
            packed_qkv = tl.where(is_active, h_cand, h) if s.reads_state else h_cand
            tl.store(tiles + in_tile(s.COMM_INPUT, m, column, s), packed_qkv)
            tl.store(comm_input + in_state(at, m, column, s), packed_qkv, mask=fits)


@kernel
def backward_kernel(
    query_side,  # (L, B, N d)
    gate_side,  # (L, B, N G d)
    before_h,  # (B, N d), the state before the range
    before_c,
    fresh_h,  # (B, N d) or None
    fresh_c,
    reset,  # (L, B) or None
    done_h,  # (L, B, N d), what the steps became
    done_c,
    done_active,  # (L, B, N)
    grad_output,  # (L, B, N d)
    hh,  # as in forward_kernel
    bias_x,
    bias_h,
    comm,
    output,
    output_bias,
    hh_back,  # (N, G, width, stride)
    comm_back,  # (N, packed, stride)
    output_back,  # (2, width, all_values)
    carry_h,  # (B, N d), changed in place
    carry_c,
    carry_fresh_h,
    carry_fresh_c,
    d_query_side,  # (L, B, N d)
    d_gate_side,  # (L, B, N G d)
    state_gates,  # (L, B, N G d)
    qkv,  # (L, B, N, W)
    output_gate,  # (L, B, N, 2 d)
    h_prev,  # (L, B, N d)
    comm_input,  # (L, B, N d)
    read,  # (L, B, N, M dv)
    bias_sum,  # (programs, N, G, width), zeros
    scratch,  # (programs, backward_words)
    steps,  # L
    batch,  # B
    s: tl.constexpr,
):
    """Go back through a range of steps for the samples of this program."""
    program = tl.program_id(0).to(tl.int64)
    tiles = scratch + program * s.backward_words
    gates = tiles + 6 * s.tile
    d_output_gate = gates + 4 * s.tile
    packed_qkv = d_output_gate + 2 * s.tile
    d_packed_qkv = packed_qkv + s.qkv
    reads = d_packed_qkv + s.qkv
    d_reads = reads + s.read
    pairs = d_reads + s.read
    d_pairs = pairs + s.pairs
    bias_sum += program * (s.num_rims * s.num_gates * s.width)
    row = program * s.rows + tl.arange(0, s.rows)
    inside = row < batch
    has_reset: tl.constexpr = reset is not None
    carry_in(carry_h, carry_c, tiles, row, inside, s)
    tl.debug_barrier()
    at = row + batch * (steps - 1)
    for _step in tl.range(steps, num_stages=1):
        renew = inside
        if has_reset:
            renew = tl.load(reset + at, mask=inside, other=0) != 0
        scores = compete_again(
            query_side, grad_output, done_h, before_h, fresh_h, h_prev, tiles, row, at, inside,
            batch, renew, has_reset, s,
        )  # fmt: skip
        shares = sigmoid(scores)
        tl.debug_barrier()
        candidate_again(
            gate_side, done_c, before_c, fresh_c, done_active, hh, bias_x, bias_h, comm_input,
            tiles, gates, row, at, inside, batch, renew, shares, has_reset, s,
        )  # fmt: skip
        tl.debug_barrier()
        project_qkv(tiles, packed_qkv, comm, s)
        tl.debug_barrier()
        attend_again(packed_qkv, reads, pairs, read, at, inside, s)
        tl.debug_barrier()
        output_gradient(
            reads,
            output,
            output_bias,
            done_active,
            output_gate,
            tiles,
            d_output_gate,
            at,
            inside,
            s,
        )
        tl.debug_barrier()
        read_gradient(d_output_gate, output_back, d_reads, s)
        tl.debug_barrier()
        reader_gradient(
            done_active, qkv, packed_qkv, d_packed_qkv, d_reads, pairs, d_pairs, at, inside, s
        )
        tl.debug_barrier()
        source_gradient(
            done_active, qkv, packed_qkv, d_packed_qkv, d_reads, pairs, d_pairs, at, inside, s
        )
        tl.debug_barrier()
        d_scores = candidate_gradient(
            gate_side, done_c, before_c, fresh_c, done_active, comm_back, d_gate_side, state_gates,
            bias_sum, tiles, gates, d_packed_qkv, row, at, inside, batch, renew, shares,
            has_reset, s,
        )  # fmt: skip
        tl.debug_barrier()
        state_gradient(
            query_side, done_active, hh_back, d_query_side, tiles, gates, at, inside, renew,
            d_scores, has_reset, s,
        )  # fmt: skip
        tl.debug_barrier()
        at -= batch
    carry_out(carry_h, carry_fresh_h, s.GRAD_H, s.FRESH_H, tiles, row, inside, s)
    if s.is_lstm:
        carry_out(carry_c, carry_fresh_c, s.GRAD_C, s.FRESH_C, tiles, row, inside, s)
