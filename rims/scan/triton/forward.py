"""The kernel of a range of steps."""

from __future__ import annotations

import triton.language as tl

from rims.scan.triton.phases import attend, gate_halves, gate_output, project_qkv, restarted
from rims.scan.triton.shape import jit, kernel
from rims.scan.triton.tiles import (
    choose,
    columns,
    in_heads,
    in_state,
    in_tile,
    lines,
    pick,
    put,
    quarters,
    sigmoid,
    tanh,
    zeros,
)


@jit
def load_states(before_h, before_c, tiles, row, inside, s: tl.constexpr):
    """Start with the state before the range."""
    for m in range(s.num_rims):
        for j in range(s.chunks):
            column = columns(j, s)
            fits = inside[:, None] & (column < s.unit_size)[None, :]
            where = in_state(row, m, column, s)
            h = tl.load(before_h + where, mask=fits, other=0.0).to(s.acc)
            tl.store(tiles + in_tile(s.H, m, column, s), h)
            if s.is_lstm:
                c = tl.load(before_c + where, mask=fits, other=0.0).to(s.acc)
                tl.store(tiles + in_tile(s.C, m, column, s), c)


@jit
def compete(
    query_side, fresh_h, tiles, row, at, inside, renew,
    has_reset: tl.constexpr, s: tl.constexpr,
):  # fmt: skip
    """Make resets and return the scores, (rows, N padded)."""
    scores = zeros(s.rims, s)
    for m in range(s.num_rims):
        score = lines(s)
        for j in range(s.chunks):
            column = columns(j, s)
            fits = inside[:, None] & (column < s.unit_size)[None, :]
            place = tiles + in_tile(s.H, m, column, s)
            h = tl.load(place)
            if has_reset:
                h = restarted(h, fresh_h, in_state(row, m, column, s), fits, renew)
                tl.debug_barrier()
                tl.store(place, h)
            query = tl.load(query_side + in_state(at, m, column, s), mask=fits, other=0.0)
            score += tl.sum(h * query.to(s.acc), axis=1)
        scores = put(scores, m, score, s)
    return scores


@jit
def candidate(
    gate_side, fresh_c, hh, bias_x, bias_h, out_c, tiles,
    row, at, inside, renew, scores, active, change,
    has_reset: tl.constexpr, s: tl.constexpr,
):  # fmt: skip
    """Candidates of every mechanism, what communication reads of it, and the new c."""
    for m in range(s.num_rims):
        share = sigmoid(pick(scores, m, s))
        is_active = pick(active, m, s)[:, None] != 0
        changes = pick(change, m, s)[:, None] != 0
        for j in range(s.chunks):
            column = columns(j, s)
            fits = inside[:, None] & (column < s.unit_size)[None, :]
            from_input, from_state = gate_halves(
                tiles, gate_side, hh, bias_x, bias_h, at, inside, share, m, j, s
            )
            h = tl.load(tiles + in_tile(s.H, m, column, s))
            if s.is_lstm:
                s_i, s_f, s_g, s_o = quarters(from_input + from_state, s)
                place = tiles + in_tile(s.C, m, column, s)
                c = tl.load(place)
                if has_reset:
                    c = restarted(c, fresh_c, in_state(row, m, column, s), fits, renew)
                c_cand = sigmoid(s_f) * c + sigmoid(s_i) * tanh(s_g)
                h_cand = sigmoid(s_o) * tanh(c_cand)
                new_c = tl.where(changes, c_cand, c)
                tl.debug_barrier()
                tl.store(place, new_c)
                tl.store(out_c + in_state(at, m, column, s), new_c, mask=fits)
            else:
                x_r, x_z, x_n, _none = quarters(from_input, s)
                h_r, h_z, h_n, _none = quarters(from_state, s)
                z = sigmoid(x_z + h_z)
                h_cand = (1.0 - z) * tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * h
            tl.store(tiles + in_tile(s.CAND, m, column, s), h_cand)
            comm_input = tl.where(is_active, h_cand, h) if s.reads_state else h_cand
            tl.store(tiles + in_tile(s.COMM_INPUT, m, column, s), comm_input)


@jit
def keep_or_change(
    read, output, output_bias, out_h, tiles,
    at, inside, change, s: tl.constexpr,
):  # fmt: skip
    """The new h: candidate plus update where active, else the old one, bit for bit."""
    for m in range(s.num_rims):
        changes = pick(change, m, s)[:, None] != 0
        for j in range(s.chunks):
            column = columns(j, s)
            fits = inside[:, None] & (column < s.unit_size)[None, :]
            out, gate = gate_output(read, output, output_bias, m, j, s)
            place = tiles + in_tile(s.H, m, column, s)
            h_cand = tl.load(tiles + in_tile(s.CAND, m, column, s))
            h = tl.where(changes, h_cand + gate * out, tl.load(place))
            tl.debug_barrier()
            tl.store(place, h)
            tl.store(out_h + in_state(at, m, column, s), h, mask=fits)


@kernel
def forward_kernel(
    query_side,  # (L, B, N d)
    gate_side,  # (L, B, N G d)
    before_h,  # (B, N d), the state before the range
    before_c,
    fresh_h,  # (B, N d) or None
    fresh_c,
    reset,  # (L, B) or None
    valid,
    hh,  # (N, d, G, stride)
    bias_x,  # (N, 4, width)
    bias_h,
    comm,  # (N, d, packed)
    output,  # (all_values, 2, stride)
    output_bias,  # (2, width)
    out_h,  # (L, B, N d)
    out_c,
    out_active,  # (L, B, N)
    scratch,  # (programs, forward_words)
    steps,  # L
    batch,  # B
    s: tl.constexpr,
):
    """Run a range of steps for the samples of this program."""
    program = tl.program_id(0).to(tl.int64)
    tiles = scratch + program * s.forward_words
    packed_qkv = tiles + 4 * s.tile
    reads = packed_qkv + s.qkv
    row = program * s.rows + tl.arange(0, s.rows)
    inside = row < batch
    mechanism = tl.arange(0, s.rims)[None, :]
    has_reset: tl.constexpr = reset is not None
    load_states(before_h, before_c, tiles, row, inside, s)
    tl.debug_barrier()
    at = row
    for _step in tl.range(steps, num_stages=1):
        renew = inside
        if has_reset:
            renew = tl.load(reset + at, mask=inside, other=0) != 0
        scores = compete(query_side, fresh_h, tiles, row, at, inside, renew, has_reset, s)
        active = choose(scores, s)
        change = active
        if valid is not None:
            keep = tl.load(valid + at, mask=inside, other=0) != 0
            change = tl.where(keep[:, None], active, tl.zeros_like(active))
        tl.store(
            out_active + at[:, None] * s.num_rims + mechanism,
            change.to(tl.int8),
            mask=inside[:, None] & (mechanism < s.num_rims),
        )
        tl.debug_barrier()
        candidate(
            gate_side, fresh_c, hh, bias_x, bias_h, out_c, tiles, row, at, inside, renew,
            scores, active, change, has_reset, s,
        )  # fmt: skip
        tl.debug_barrier()
        project_qkv(tiles, packed_qkv, comm, s)
        tl.debug_barrier()
        for m in range(s.num_rims):
            _weights, read = attend(packed_qkv, m, s)
            tl.store(reads + in_heads(m, 0, s.values, s.all_values, s), read)
        tl.debug_barrier()
        keep_or_change(reads, output, output_bias, out_h, tiles, at, inside, change, s)
        tl.debug_barrier()
        at += batch
