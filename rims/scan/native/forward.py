"""Kernels of the forward pass: one step of a block, as :func:`rims.scan.torch.loop.step`.

A block is R samples that one thread takes through all steps, so threads never wait for each other
and what a step writes is read again from the nearest cache. ``b`` is the block's table
(:mod:`rims.scan.native.table`), ``like`` a number of the type computed in. Arrays of a block are
(N, R, .), a matrix per mechanism.
"""

from __future__ import annotations

from typing import Any

from numba import uint8

from rims.native.simd import (
    inlined,
    kernel,
    load,
    load_up_to,
    shifted,
    sigmoid,
    splat,
    store,
    store_up_to,
    tanh,
    total,
)
from rims.scan.native.attention import attend
from rims.scan.native.matmul import matmul, matmuls


@kernel
def restore(b: Any, t: int) -> None:
    """Fetch the state before step ``t`` into the block."""
    d, unit, batch = b.d, b.unit, b.batch
    for which in range(2 if b.is_lstm else 1):
        own = b.s_c if which else b.s_h
        before = (b.c0 if which else b.h0) if t == 0 else (b.c if which else b.h)
        line = 0 if t == 0 else (t - 1) * batch
        for m in range(b.n):
            for r in range(b.rows):
                place = (m * b.block_rows + r) * unit
                origin = ((line + b.row + r) * b.n + m) * d
                for j in range(0, d, b.lanes):
                    store(own, place + j, load_up_to(before, origin + j, d - j))


@kernel
def begin(b: Any, t: int) -> None:
    """Make the resets before step ``t``."""
    if not b.has_reset:
        return
    reset = b.reset
    d, unit = b.d, b.unit
    for which in range(2 if b.is_lstm else 1):
        own = b.s_c if which else b.s_h
        has_fresh = b.has_fresh
        fresh = b.fresh_c if which else b.fresh_h
        for r in range(b.rows):
            if not reset[t * b.batch + b.row + r]:
                continue
            for m in range(b.n):
                place = (m * b.block_rows + r) * unit
                origin = ((b.row + r) * b.n + m) * d
                for j in range(0, d, b.lanes):
                    value = b.zero
                    if has_fresh:
                        value = load_up_to(fresh, origin + j, d - j)
                    store(own, place + j, value)


@kernel
def advance(b: Any, t: int) -> None:
    """Everything of a step but putting the new state in place."""
    n, d, rows, block = b.n, b.d, b.rows, b.block_rows
    unit, gate = b.unit, b.gate
    compete(b, t)
    matmuls(n, b.s_h, block * unit, unit,
            b.p_hh, d * gate, gate,
            b.s_pre, block * gate, gate, rows, d, b.g * d)  # fmt: skip
    if b.is_lstm:
        lstm_candidate(b, t)
    else:
        gru_candidate(b, t)
    if b.reads_state:
        keep_idle(b)
    if not b.m:  # nothing is communicated
        zeros(b, b.s_out, rows * b.k * b.pair)
        return
    keys, values = b.m * b.dk, b.m * b.dv
    # In this order: each product also fills up its last vector, where the next one begins.
    project_qkv(b, b.p_query, b.key_row, 0, keys)
    project_qkv(b, b.p_key, b.key_row, keys, keys)
    project_qkv(b, b.p_value, b.heads, 2 * keys, values)
    attend(b)
    matmul(b.s_read, b.heads, b.p_out, b.pair, b.s_out, b.pair, rows * b.k, values, 2 * d)
    gate_output(b)


@kernel
def zeros(b: Any, target: Any, count: int) -> None:
    """Set ``count`` numbers to zero."""
    for j in range(0, count, b.lanes):
        store_up_to(target, j, count - j, b.zero)


@kernel
def project_qkv(b: Any, weight: Any, line: int, begin: int, columns: int) -> None:
    """Queries, keys or values of the candidates, from column ``begin`` of QKV on."""
    matmuls(b.n, b.s_cand_h, b.block_rows * b.unit, b.unit,
            weight, b.d * line, line,
            shifted(b.s_qkv, begin), b.block_rows * b.width, b.width,
            b.rows, b.d, columns)  # fmt: skip


@kernel
def compete(b: Any, t: int) -> None:
    """Scores of the mechanisms; who is active, in ascending order."""
    n, d = b.n, b.d
    for r in range(b.rows):
        origin = ((t - b.first) * b.batch + b.row + r) * n * d
        for m in range(n):
            place = (m * b.block_rows + r) * b.unit
            sums = b.zero
            for j in range(0, d, b.lanes):
                side = load_up_to(b.query_side, origin + m * d + j, d - j)
                sums = sums + load_up_to(b.s_h, place + j, d - j) * side
            b.s_score[m] = total(sums)
        for j in range(0, n, b.lanes):
            share = sigmoid(load_up_to(b.s_score, j, n - j))
            store_up_to(b.s_share, r * n + j, n - j, share)
        count = 0
        for m in range(n):
            is_active = rank(b.s_score, n, m) < b.k
            b.s_chosen[r * n + m] = is_active
            if is_active:
                b.s_picked[r * b.k + count] = m
                count += 1


@inlined
def rank(score: Any, n: int, m: int) -> int:
    """Rank of ``m``: number of larger scores, and of equal ones of a lower index. NaN is largest.

    Counted, not sorted, and without branches, which nothing could predict.
    """
    own, before = score[m], 0
    for other in range(n):
        its = score[other]
        is_larger = (its > own) | ((its != its) & (own == own))
        is_smaller = (own > its) | ((own != own) & (its == its))
        before += is_larger | ((other < m) & (not is_smaller))
    return before


@kernel
def lstm_candidate(b: Any, t: int) -> None:
    """Candidates. Leaves i, f, g, o in PRE and tanh(c) in AUX."""
    n, d = b.n, b.d
    pre, share = b.s_pre, b.s_share
    side = b.gate_side
    biases = b.p_b_ih
    c, aux = b.s_c, b.s_aux
    h_cand, c_cand = b.s_cand_h, b.s_cand_c
    for m in range(n):
        for r in range(b.rows):
            row = m * b.block_rows + r
            origin = (((t - b.first) * b.batch + b.row + r) * n + m) * 4 * d
            bias = shifted(biases, m * 4 * d)
            gates, unit = shifted(pre, row * b.gate), row * b.unit
            p = splat(share[r * n + m]) if b.gates_input else b.one
            for j in range(0, d, b.lanes):
                left = d - j
                i = sigmoid(gate_of(gates, side, origin, bias, p, j, left))
                f = sigmoid(gate_of(gates, side, origin, bias, p, d + j, left))
                g = tanh(gate_of(gates, side, origin, bias, p, 2 * d + j, left))
                o = sigmoid(gate_of(gates, side, origin, bias, p, 3 * d + j, left))
                new_c = f * load(c, unit + j) + i * g
                tanh_c = tanh(new_c)
                store(c_cand, unit + j, new_c)
                store(aux, unit + j, tanh_c)
                store(h_cand, unit + j, o * tanh_c)
                store_up_to(gates, j, left, i)
                store_up_to(gates, d + j, left, f)
                store_up_to(gates, 2 * d + j, left, g)
                store_up_to(gates, 3 * d + j, left, o)


@inlined
def gate_of(gates: Any, side: Any, origin: int, bias: Any, share: Any, j: int, left: int) -> Any:
    """A gate before its nonlinearity: state's part, input's part and bias."""
    return load(gates, j) + (share * load_up_to(side, origin + j, left) + load_up_to(bias, j, left))


@kernel
def gru_candidate(b: Any, t: int) -> None:
    """Candidates. Leaves r, z, n in PRE and the state's half of n in AUX."""
    n, d = b.n, b.d
    pre, share = b.s_pre, b.s_share
    side = b.gate_side
    biases, biases_hh = b.p_b_ih, b.p_b_hh
    h, aux, h_cand = b.s_h, b.s_aux, b.s_cand_h
    for m in range(n):
        for sample in range(b.rows):
            row = m * b.block_rows + sample
            origin = (((t - b.first) * b.batch + b.row + sample) * n + m) * 3 * d
            bias, bias_hh = shifted(biases, m * 3 * d), shifted(biases_hh, m * 3 * d)
            gates, unit = shifted(pre, row * b.gate), row * b.unit
            p = splat(share[sample * n + m]) if b.gates_input else b.one
            for j in range(0, d, b.lanes):
                left = d - j
                s_r = gate_of(gates, side, origin, bias, p, j, left)
                s_z = gate_of(gates, side, origin, bias, p, d + j, left)
                h_n = load(gates, 2 * d + j) + load_up_to(bias_hh, 2 * d + j, left)
                x_n = p * load_up_to(side, origin + 2 * d + j, left) + load_up_to(
                    bias, 2 * d + j, left
                )
                r = sigmoid(s_r + load_up_to(bias_hh, j, left))
                z = sigmoid(s_z + load_up_to(bias_hh, d + j, left))
                new = tanh(x_n + r * h_n)
                store(h_cand, unit + j, new + z * (load(h, unit + j) - new))
                store(aux, unit + j, h_n)
                store_up_to(gates, j, left, r)
                store_up_to(gates, d + j, left, z)
                store_up_to(gates, 2 * d + j, left, new)


@kernel
def keep_idle(b: Any) -> None:
    """Replace the candidate of idle mechanisms by the kept state, as input of the communication."""
    h, h_cand = b.s_h, b.s_cand_h
    chosen = b.s_chosen
    for m in range(b.n):
        for r in range(b.rows):
            if chosen[r * b.n + m] == 0:
                unit = (m * b.block_rows + r) * b.unit
                for j in range(0, b.d, b.lanes):
                    store(h_cand, unit + j, load(h, unit + j))


@kernel
def gate_output(b: Any) -> None:
    """The two factors of the update, in place: tanh(output) beside sigmoid(gate)."""
    d, bias = b.d, b.p_b_out
    for line in range(b.rows * b.k):
        pair = shifted(b.s_out, line * b.pair)
        for j in range(0, d, b.lanes):
            left = d - j
            gate = sigmoid(load(pair, d + j) + load_up_to(bias, d + j, left))
            output = tanh(load(pair, j) + load_up_to(bias, j, left))
            store_up_to(pair, d + j, left, gate)
            store_up_to(pair, j, left, output)


@kernel
def keep_or_change(b: Any, t: int) -> None:
    """Give active mechanisms of real steps their new state; write step ``t`` of the sequence."""
    n, d, k, block = b.n, b.d, b.k, b.block_rows
    is_lstm = b.is_lstm
    h, c = b.s_h, b.s_c
    h_cand, c_cand = b.s_cand_h, b.s_cand_c
    out, picked = b.s_out, b.s_picked
    all_h, all_c = b.h, b.c
    valid, active = b.valid, b.active
    for r in range(b.rows):
        line = t * b.batch + b.row + r
        for m in range(n):
            active[line * n + m] = uint8(0)
        is_real = not b.has_valid or valid[line]
        for a in range(k if is_real else 0):
            m = picked[r * k + a]
            active[line * n + m] = uint8(1)
            unit, pair = (m * block + r) * b.unit, (r * k + a) * b.pair
            for j in range(0, d, b.lanes):
                added = load(out, pair + j) * load(out, pair + d + j)
                store(h, unit + j, load(h_cand, unit + j) + added)
                if is_lstm:
                    store(c, unit + j, load(c_cand, unit + j))
        for m in range(n):
            unit, place = (m * block + r) * b.unit, (line * n + m) * d
            for j in range(0, d, b.lanes):
                store_up_to(all_h, place + j, d - j, load(h, unit + j))
                if is_lstm:
                    store_up_to(all_c, place + j, d - j, load(c, unit + j))
