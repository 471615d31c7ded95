"""Kernels of the backward pass: one step of a block, as :func:`rims.scan.torch.loop.step_gradient`.

The step is computed again from the state before it. That is cheaper than storing its values, which
would come back from memory; recomputed ones never leave the cache.
"""

from __future__ import annotations

from typing import Any

from rims.native.simd import (
    inlined,
    kernel,
    load,
    load_up_to,
    shifted,
    splat,
    store,
    store_up_to,
    total,
)
from rims.scan.native.attention import attention_gradient
from rims.scan.native.forward import zeros
from rims.scan.native.matmul import matmul, matmuls


@inlined
def retreat(b: Any, t: int, base: int) -> None:
    """Take the gradients from after step ``t``, just computed again, to before it.

    What gradients of weights need goes to the rows held from ``base`` on.
    """
    n, d, k, rows, block = b.n, b.d, b.k, b.rows, b.block_rows
    unit, gates, values = b.unit, b.g * b.d, b.m * b.dv
    width = 2 * b.m * b.dk + values
    receive(b, t, base)
    output_gradient(b, base)
    if b.m:
        matmul(shifted(b.d_output_gate, base * k * 2 * d), 2 * d, b.p_out_back, b.heads,
               b.s_d_read, b.heads, rows * k, 2 * d, values)  # fmt: skip
        attention_gradient(b, base)
        matmuls(n, shifted(b.d_qkv, base * n * width), width, n * width,
                b.p_qkv_back, width * unit, unit,
                b.s_d_comm_input, block * unit, unit, rows, width, d)  # fmt: skip
    else:
        zeros(b, b.s_d_comm_input, n * block * unit)
    if b.is_lstm:
        lstm_gradient(b, base)
    else:
        gru_gradient(b, base)
        candidate_bias(b)
    input_gradient(b, t, base)
    matmuls(n, shifted(b.d_state_gates, base * n * gates), gates, n * gates,
            b.p_hh_back, gates * unit, unit,
            b.s_d_h, block * unit, unit, rows, gates, d)  # fmt: skip
    hand_back(b, t)


@inlined
def line_of(b: Any, t: int, r: int) -> Any:
    """Row of sample ``r`` at step ``t`` in arrays that begin with FIRST."""
    return (t - b.first) * b.batch + b.row + r


@kernel
def carry(b: Any, out: bool) -> None:
    """Fetch the gradients of the state from the carry, or put them there."""
    n, d = b.n, b.d
    for which in range(2 if b.is_lstm else 1):
        own = b.s_grad_c if which else b.s_grad_h
        all_rows = b.carry_c if which else b.carry_h
        for r in range(b.rows):
            for m in range(n):
                place = (m * b.block_rows + r) * b.unit
                origin = ((b.row + r) * n + m) * d
                for j in range(0, d, b.lanes):
                    if out:
                        store_up_to(all_rows, origin + j, d - j, load(own, place + j))
                    else:
                        store(own, place + j, load_up_to(all_rows, origin + j, d - j))


@kernel
def receive(b: Any, t: int, base: int) -> None:
    """Add the gradient of the output; leave what the weights' gradients need of the step.

    In padding nothing was active: the gradient of the state passes by unchanged.
    """
    n, d, k, block = b.n, b.d, b.k, b.block_rows
    grad, output = b.s_grad_h, b.grad_h
    h, h_cand, read = (
        b.s_h, b.s_cand_h, b.s_read
    )  # fmt: skip
    h_prev, comm_input, all_read = (
        b.h_prev, b.comm_input, b.read
    )  # fmt: skip
    valid, chosen = b.valid, b.s_chosen
    values = b.m * b.dv
    for r in range(b.rows):
        line = line_of(b, t, r)
        is_padding = b.has_valid and not valid[t * b.batch + b.row + r]
        for m in range(n):
            if is_padding:
                chosen[r * n + m] = 0
            unit, place = (m * block + r) * b.unit, (line * n + m) * d
            own = ((base + r) * n + m) * d
            for j in range(0, d, b.lanes):
                left = d - j
                gradient = load(grad, unit + j) + load_up_to(output, place + j, left)
                store(grad, unit + j, gradient)
                store_up_to(h_prev, own + j, left, load(h, unit + j))
                store_up_to(comm_input, own + j, left, load(h_cand, unit + j))
        for a in range(k):
            place = ((base + r) * k + a) * values
            for j in range(0, values, b.lanes):
                value = load(read, (r * k + a) * b.heads + j)
                store_up_to(all_read, place + j, values - j, value)


@kernel
def output_gradient(b: Any, base: int) -> None:
    """Gradients of output and gate of the communication, for active mechanisms."""
    n, d, k, rows = b.n, b.d, b.k, b.rows
    grad, out = b.s_grad_h, b.s_out
    d_pair = shifted(b.d_output_gate, base * k * 2 * d)
    picked, chosen = b.s_picked, b.s_chosen
    one = b.one
    for r in range(rows):
        for a in range(k):
            m = picked[r * k + a]
            pair, place = (r * k + a) * b.pair, (r * k + a) * 2 * d
            unit = (m * b.block_rows + r) * b.unit
            for j in range(0, d, b.lanes):
                d_output, d_gate = b.zero, b.zero
                if chosen[r * n + m]:
                    output, gate = load(out, pair + j), load(out, pair + d + j)
                    gradient = load(grad, unit + j) * gate
                    d_output = gradient * (one - output * output)
                    d_gate = gradient * output * (one - gate)
                store_up_to(d_pair, place + j, d - j, d_output)
                store_up_to(d_pair, place + d + j, d - j, d_gate)


@kernel
def lstm_gradient(b: Any, base: int) -> None:
    """Gradients of gates i, f, g, o; the gradient of c goes back in place."""
    n, d = b.n, b.d
    pre, chosen = b.s_pre, b.s_chosen
    c, aux = b.s_c, b.s_aux
    grad_h, grad_c = b.s_grad_h, b.s_grad_c
    d_comm_input, d_gates = b.s_d_comm_input, b.d_state_gates
    one, zero = b.one, b.zero
    for m in range(n):
        for r in range(b.rows):
            row = m * b.block_rows + r
            gates, unit = shifted(pre, row * b.gate), row * b.unit
            out = shifted(d_gates, ((base + r) * n + m) * 4 * d)
            is_active = chosen[r * n + m] != 0
            for j in range(0, d, b.lanes):
                left = d - j
                d_i, d_f, d_g, d_o = zero, zero, zero, zero
                if is_active:
                    i, f = load(gates, j), load(gates, d + j)
                    g, o = load(gates, 2 * d + j), load(gates, 3 * d + j)
                    tanh_c = load(aux, unit + j)
                    d_h = load(grad_h, unit + j) + load(d_comm_input, unit + j)
                    d_c = load(grad_c, unit + j) + d_h * o * (one - tanh_c * tanh_c)
                    d_i = d_c * g * i * (one - i)
                    d_f = d_c * load(c, unit + j) * f * (one - f)
                    d_g = d_c * i * (one - g * g)
                    d_o = d_h * tanh_c * o * (one - o)
                    store(grad_c, unit + j, d_c * f)
                store_up_to(out, j, left, d_i)
                store_up_to(out, d + j, left, d_f)
                store_up_to(out, 2 * d + j, left, d_g)
                store_up_to(out, 3 * d + j, left, d_o)


@kernel
def gru_gradient(b: Any, base: int) -> None:
    """Gradients of gates r, z, n; the direct way to the old h is left in place.

    n is the only gate whose halves differ: what its input's half gets goes to AUX.
    """
    n, d = b.n, b.d
    pre, chosen = b.s_pre, b.s_chosen
    h, aux = b.s_h, b.s_aux
    grad_h, d_comm_input = b.s_grad_h, b.s_d_comm_input
    d_gates = b.d_state_gates
    one, zero = b.one, b.zero
    for m in range(n):
        for sample in range(b.rows):
            row = m * b.block_rows + sample
            gates, unit = shifted(pre, row * b.gate), row * b.unit
            out = shifted(d_gates, ((base + sample) * n + m) * 3 * d)
            is_active = chosen[sample * n + m] != 0
            for j in range(0, d, b.lanes):
                left = d - j
                d_r, d_z, d_hn = zero, zero, zero
                if is_active:
                    r, z, new = load(gates, j), load(gates, d + j), load(gates, 2 * d + j)
                    d_h = load(grad_h, unit + j) + load(d_comm_input, unit + j)
                    d_n = d_h * (one - z) * (one - new * new)
                    d_r = d_n * load(aux, unit + j) * r * (one - r)
                    d_z = d_h * (load(h, unit + j) - new) * z * (one - z)
                    d_hn = d_n * r
                    store(aux, unit + j, d_n)
                    store(grad_h, unit + j, d_h * z)
                store_up_to(out, j, left, d_r)
                store_up_to(out, d + j, left, d_z)
                store_up_to(out, 2 * d + j, left, d_hn)


@kernel
def candidate_bias(b: Any) -> None:
    """Gradient of the input's bias of a GRU's n; other gates have the same one for both biases."""
    d, chosen, aux = b.d, b.s_chosen, b.s_aux
    for m in range(b.n):
        for j in range(0, d, b.lanes):
            left, sums = d - j, b.zero
            for r in range(b.rows):
                if chosen[r * b.n + m] != 0:
                    unit = (m * b.block_rows + r) * b.unit
                    sums = sums + load_up_to(aux, unit + j, left)
            place = m * d + j
            store_up_to(b.own_b_n, place, left, load_up_to(b.own_b_n, place, left) + sums)


@kernel
def input_gradient(b: Any, t: int, base: int) -> None:
    """Gradients of G and of the score, from that of the input's half of the gates."""
    n, d, gates = b.n, b.d, b.g * b.d
    side, d_side = b.gate_side, b.d_gate_side
    d_state, aux = b.d_state_gates, b.s_aux
    share, d_score = b.s_share, b.s_score
    chosen = b.s_chosen
    for m in range(n):
        for r in range(b.rows):
            place = (line_of(b, t, r) * n + m) * gates
            own = ((base + r) * n + m) * gates
            p = share[r * n + m]
            factor = splat(p) if b.gates_input else b.one
            is_active = chosen[r * n + m] != 0
            sums = b.zero
            for gate in range(b.g):
                for i in range(0, d, b.lanes):
                    j, left = place + gate * d + i, d - i
                    gradient = b.zero
                    if is_active:
                        gradient = load_up_to(d_state, own + gate * d + i, left)
                        if not b.is_lstm and gate == 2:
                            gradient = load_up_to(aux, (m * b.block_rows + r) * b.unit + i, left)
                        sums = sums + gradient * load_up_to(side, j, left)
                    store_up_to(d_side, j, left, gradient * factor)
            d_score[r * n + m] = total(sums) * (p - p * p)
            if not b.gate_learns:
                d_score[r * n + m] = 0


@kernel
def hand_back(b: Any, t: int) -> None:
    """Gradients of the state before the step; those of resets go to the fresh state."""
    n, d = b.n, b.d
    grad, d_h, h = (
        b.s_grad_h, b.s_d_h, b.s_h
    )  # fmt: skip
    score, chosen = b.s_score, b.s_chosen
    side, d_side = b.query_side, b.d_query_side
    reset = b.reset
    for r in range(b.rows):
        for m in range(n):
            unit = (m * b.block_rows + r) * b.unit
            place = (line_of(b, t, r) * n + m) * d
            d_score = splat(score[r * n + m])
            for j in range(0, d, b.lanes):
                left = d - j
                d_query_side = b.zero
                if chosen[r * n + m]:
                    gradient = load(d_h, unit + j) + d_score * load_up_to(side, place + j, left)
                    if not b.is_lstm:
                        gradient = gradient + load(grad, unit + j)
                    store(grad, unit + j, gradient)
                    d_query_side = d_score * load(h, unit + j)
                store_up_to(d_side, place + j, left, d_query_side)
        if b.has_reset and reset[t * b.batch + b.row + r]:
            drop(b, r)


@kernel
def drop(b: Any, r: int) -> None:
    """Move the gradients of sample ``r`` to the fresh state that a reset put in place."""
    n, d = b.n, b.d
    for which in range(2 if b.is_lstm else 1):
        own = b.s_grad_c if which else b.s_grad_h
        fresh = b.carry_fresh_c if which else b.carry_fresh_h
        for m in range(n):
            unit = (m * b.block_rows + r) * b.unit
            place = ((b.row + r) * n + m) * d
            for j in range(0, d, b.lanes):
                gradient = load_up_to(fresh, place + j, d - j) + load(own, unit + j)
                store_up_to(fresh, place + j, d - j, gradient)
                store(own, unit + j, b.zero)
