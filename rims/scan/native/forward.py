"""Kernels of the way there: one step of a block of samples, as :func:`rims.scan.loop.step`.

A block is R samples that one thread takes through all steps, so threads never wait for each other
and what a step writes is read again from the nearest cache. ``b`` is the block's table
(:mod:`rims.scan.native.table`), ``like`` a number of the type computed in. Arrays of a block are
(N, R, .), a matrix per mechanism.
"""

from __future__ import annotations

from typing import Any

from numba import uint8

from rims.scan.native.simd import (
    exp,
    first,
    inlined,
    kernel,
    load,
    load_up_to,
    matmul,
    shifted,
    sigmoid,
    splat,
    store,
    store_up_to,
    tanh,
    total,
)


@kernel
def restore(b: Any, t: int) -> None:
    """Fetch the state before step ``t`` into the block."""
    d, unit, batch = b.d, b.unit, b.batch
    for which in range(2 if b.g == 4 else 1):
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
    for which in range(2 if b.g == 4 else 1):
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


@inlined
def advance(b: Any, t: int) -> None:
    """Everything of a step but putting the new state in place."""
    n, d, rows, block = b.n, b.d, b.rows, b.block_rows
    unit, gate, width = b.unit, b.gate, b.width
    compete(b, t)
    matmul(n, b.s_h, block * unit, unit,
           b.p_hh, d * gate, gate,
           b.s_pre, block * gate, gate, rows, d, b.g * d)  # fmt: skip
    if b.g == 4:
        lstm(b, t)
    else:
        gru(b, t)
    if b.reads_state:
        keep_idle(b)
    matmul(n, b.s_cand_h, block * unit, unit,
           b.p_qkv, d * width, width,
           b.s_qkv, block * width, width,
           rows, d, 2 * b.m * b.dk + b.m * b.dv)  # fmt: skip
    attend(b)
    matmul(1, b.s_read, 0, b.heads, b.p_out, 0, b.pair,
           b.s_out, 0, b.pair,
           rows * b.k, b.m * b.dv, 2 * d)  # fmt: skip
    speak(b)


@kernel
def compete(b: Any, t: int) -> None:
    """Scores of the mechanisms; who is active, in ascending order."""
    n, d, k = b.n, b.d, b.k
    h, side = b.s_h, b.query_side
    share, score = b.s_share, b.s_score
    picked, chosen = b.s_picked, b.s_chosen
    for r in range(b.rows):
        origin = ((t - b.first) * b.batch + b.row + r) * n * d
        for m in range(n):
            place = (m * b.block_rows + r) * b.unit
            sums = b.zero
            for j in range(0, d, b.lanes):
                sums = sums + load_up_to(h, place + j, d - j) * load_up_to(
                    side, origin + m * d + j, d - j
                )
            score[m] = total(sums)
            share[r * n + m] = first(sigmoid(splat(score[m])))
            chosen[r * n + m] = 0
        for _ in range(k):
            best = -1
            for m in range(n):
                # NaN counts as largest; a later one must be larger, so ties stay with the lowest
                if chosen[r * n + m] == 0 and (
                    best < 0
                    or score[m] > score[best]
                    or (score[m] != score[m] and score[best] == score[best])
                ):
                    best = m
            chosen[r * n + best] = 1
        count = 0
        for m in range(n):
            if chosen[r * n + m]:
                picked[r * k + count] = m
                count += 1


@kernel
def lstm(b: Any, t: int) -> None:
    """Candidates. Leaves i, f, g, o in PRE and tanh(c) in AUX."""
    n, d = b.n, b.d
    pre, share = b.s_pre, b.s_share
    side = b.gate_side
    biases = b.p_b_ih
    c, aux = b.s_c, b.s_aux
    h_cand, c_cand = b.s_cand_h, b.s_cand_c
    for line in range(n * b.rows):
        m, r = line // b.rows, line % b.rows
        row = m * b.block_rows + r
        origin = (((t - b.first) * b.batch + b.row + r) * n + m) * 4 * d
        bias = shifted(biases, m * b.gate)
        gates, unit = shifted(pre, row * b.gate), row * b.unit
        p = splat(share[r * n + m])
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
    return load(gates, j) + (share * load_up_to(side, origin + j, left) + load(bias, j))


@kernel
def gru(b: Any, t: int) -> None:
    """Candidates. Leaves r, z, n in PRE and the state's half of n in AUX."""
    n, d = b.n, b.d
    pre, share = b.s_pre, b.s_share
    side = b.gate_side
    biases, biases_hh = b.p_b_ih, b.p_b_hh
    h, aux, h_cand = b.s_h, b.s_aux, b.s_cand_h
    for line in range(n * b.rows):
        m, sample = line // b.rows, line % b.rows
        row = m * b.block_rows + sample
        origin = (((t - b.first) * b.batch + b.row + sample) * n + m) * 3 * d
        bias, bias_hh = shifted(biases, m * b.gate), shifted(biases_hh, m * b.gate)
        gates, unit = shifted(pre, row * b.gate), row * b.unit
        p = splat(share[sample * n + m])
        for j in range(0, d, b.lanes):
            left = d - j
            r = sigmoid(gate_of(gates, side, origin, bias, p, j, left) + load(bias_hh, j))
            z = sigmoid(gate_of(gates, side, origin, bias, p, d + j, left) + load(bias_hh, d + j))
            h_n = load(gates, 2 * d + j) + load(bias_hh, 2 * d + j)
            x_n = p * load_up_to(side, origin + 2 * d + j, left) + load(bias, 2 * d + j)
            new = tanh(x_n + r * h_n)
            store(h_cand, unit + j, new + z * (load(h, unit + j) - new))
            store(aux, unit + j, h_n)
            store_up_to(gates, j, left, r)
            store_up_to(gates, d + j, left, z)
            store_up_to(gates, 2 * d + j, left, new)


@kernel
def keep_idle(b: Any) -> None:
    """Let the others read of an idle mechanism the state it keeps."""
    h, h_cand = b.s_h, b.s_cand_h
    chosen = b.s_chosen
    for line in range(b.n * b.rows):
        m, r = line // b.rows, line % b.rows
        if chosen[r * b.n + m] == 0:
            unit = (m * b.block_rows + r) * b.unit
            for j in range(0, b.d, b.lanes):
                store(h_cand, unit + j, load(h, unit + j))


@kernel
def attend(b: Any) -> None:
    """Communication of the active mechanisms: weights in ALPHA (R, k, M, .), what is read in READ."""
    n, k, heads, dk, dv = b.n, b.k, b.m, b.dk, b.dv
    block, width, others = b.block_rows, b.width, b.others
    qkv, alpha, read = (
        b.s_qkv, b.s_alpha, b.s_read
    )  # fmt: skip
    picked = b.s_picked
    scale = b.scale
    for r in range(b.rows):
        for a in range(k):
            query = (picked[r * k + a] * block + r) * width
            for head in range(heads):
                weights = shifted(alpha, ((r * k + a) * heads + head) * others)
                for m in range(n):
                    key = (m * block + r) * width + heads * dk
                    sums = b.zero
                    for j in range(head * dk, head * dk + dk, b.lanes):
                        left = head * dk + dk - j
                        sums = sums + load_up_to(qkv, query + j, left) * load_up_to(
                            qkv, key + j, left
                        )
                    weights[m] = total(sums) * scale
                softmax(weights, n, b.lanes)
                for j in range(0, dv, b.lanes):
                    sums = b.zero
                    for m in range(n):
                        value = (m * block + r) * width + 2 * heads * dk + head * dv
                        sums = sums + splat(weights[m]) * load_up_to(qkv, value + j, dv - j)
                    store_up_to(read, (r * k + a) * b.heads + head * dv + j, dv - j, sums)


@inlined
def softmax(values: Any, count: int, lanes: int) -> None:
    """Softmax of the first ``count`` values, in place."""
    largest = values[0]
    for i in range(1, count):
        if values[i] > largest:
            largest = values[i]
    for j in range(0, count, lanes):
        store(values, j, exp(load(values, j) - splat(largest)))
    sums = values[0]
    for i in range(1, count):
        sums += values[i]
    for i in range(count):
        values[i] /= sums


@kernel
def speak(b: Any) -> None:
    """What communication adds, as its two factors in place: tanh(output) beside sigmoid(gate)."""
    d = b.d
    out, bias = b.s_out, b.p_b_out
    for line in range(b.rows * b.k):
        pair = shifted(out, line * b.pair)
        for j in range(0, d, b.lanes):
            gate = sigmoid(load(pair, d + j) + load(bias, d + j))
            output = tanh(load(pair, j) + load(bias, j))
            store_up_to(pair, d + j, d - j, gate)
            store_up_to(pair, j, d - j, output)


@kernel
def commit(b: Any, t: int) -> None:
    """Give active mechanisms of real steps their new state; write step ``t`` of the sequence."""
    n, d, k, block = b.n, b.d, b.k, b.block_rows
    is_lstm = b.g == 4
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
