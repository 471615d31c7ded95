"""Weights as the kernels read them: lines padded with zeros to whole vectors, some turned round.

Made anew for every call of a layer: what an earlier one packed could be out of date, because not
every change of a parameter leaves a trace.
"""

from __future__ import annotations

from typing import Any

from rims.native.simd import kernel, load_up_to, shifted, store_up_to
from rims.scan.native.table import take_next


@kernel
def pack(a: Any) -> None:
    """Weights as (in, out); threads take mechanisms, and one of them what all mechanisms share."""
    d, gates = a.d, a.g * a.d
    keys, values = a.m * a.dk, a.m * a.dv
    m = take_next(a)
    while m < a.n:
        hh = shifted(a.p_hh, m * d * a.gate)
        turned(a, shifted(a.w_hh, m * gates * d), gates, d, hh, a.gate)
        clear_ends(a, hh, d, gates, a.gate)
        widened(a, m, a.w_query, keys, a.p_query, a.key_row)
        widened(a, m, a.w_key, keys, a.p_key, a.key_row)
        widened(a, m, a.w_value, values, a.p_value, a.heads)
        of_ih, of_hh = shifted(a.b_ih, m * gates), shifted(a.b_hh, m * gates)
        # Both halves of an LSTM's gates are only ever added.
        added(a, of_ih, of_hh, a.has_bias, a.is_lstm, shifted(a.p_b_ih, m * gates), gates)
        added(a, of_hh, of_hh, a.has_bias, 0, shifted(a.p_b_hh, m * gates), gates)
        m = take_next(a)
    if m == a.n:
        turned(a, a.w_output, d, values, a.p_out, a.pair)
        turned(a, a.w_gate, d, values, shifted(a.p_out, d), a.pair)
        clear_ends(a, a.p_out, values, 2 * d, a.pair)
        added(a, a.b_output, a.b_output, a.has_comm_bias, 0, a.p_b_out, d)
        added(a, a.b_gate, a.b_gate, a.has_comm_bias, 0, shifted(a.p_b_out, d), d)


@kernel
def pack_back(a: Any) -> None:
    """The same weights as (out, in)."""
    d, gates = a.d, a.g * a.d
    keys, values = a.m * a.dk, a.m * a.dv
    m = take_next(a)
    while m < a.n:
        hh = shifted(a.p_hh_back, m * gates * a.unit)
        copied(a, shifted(a.w_hh, m * gates * d), gates, d, hh, a.unit)
        clear_ends(a, hh, gates, d, a.unit)
        qkv = shifted(a.p_qkv_back, m * (2 * keys + values) * a.unit)
        turned(a, shifted(a.w_query, m * d * keys), d, keys, qkv, a.unit)
        turned(a, shifted(a.w_key, m * d * keys), d, keys, shifted(qkv, keys * a.unit), a.unit)
        behind = shifted(qkv, 2 * keys * a.unit)
        turned(a, shifted(a.w_value, m * d * values), d, values, behind, a.unit)
        clear_ends(a, qkv, 2 * keys + values, d, a.unit)
        m = take_next(a)
    if m == a.n:
        copied(a, a.w_output, d, values, a.p_out_back, a.heads)
        copied(a, a.w_gate, d, values, shifted(a.p_out_back, d * a.heads), a.heads)
        clear_ends(a, a.p_out_back, 2 * d, values, a.heads)


@kernel
def copied(a: Any, source: Any, lines: int, count: int, target: Any, room: int) -> None:
    """``lines`` lines of ``count`` numbers to lines of ``room``."""
    for i in range(lines):
        for j in range(0, count, a.lanes):
            value = load_up_to(source, i * count + j, count - j)
            store_up_to(target, i * room + j, count - j, value)


@kernel
def turned(a: Any, source: Any, lines: int, count: int, target: Any, room: int) -> None:
    """Copy a matrix transposed."""
    for j in range(count):
        for i in range(lines):
            target[j * room + i] = source[i * count + j]


@kernel
def clear_ends(a: Any, target: Any, lines: int, count: int, room: int) -> None:
    """Zeros behind ``count`` numbers of every line."""
    for i in range(lines):
        for j in range(count, room, a.lanes):
            store_up_to(target, i * room + j, room - j, a.zero)


@kernel
def widened(a: Any, m: int, source: Any, count: int, target: Any, room: int) -> None:
    """The d lines of mechanism ``m``; where they are as long already they are taken as they are."""
    if count < room:
        own = shifted(target, m * a.d * room)
        copied(a, shifted(source, m * a.d * count), a.d, count, own, room)
        clear_ends(a, own, a.d, count, room)


@kernel
def added(a: Any, one: Any, two: Any, is_there: int, both: int, target: Any, count: int) -> None:
    """One vector, or the sum of two, or zeros."""
    for j in range(0, count, a.lanes):
        value = a.zero
        if is_there:
            value = load_up_to(one, j, count - j)
            if both:
                value = value + load_up_to(two, j, count - j)
        store_up_to(target, j, count - j, value)
