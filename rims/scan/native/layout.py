"""Entries of a kernel's table that depend on sizes alone."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from rims.native.vectors import VECTOR_BYTES
from rims.scan.native import table as e
from rims.scan.problem import Rules

#: Largest number of samples of a block. They share each weight fetched from the second-level cache,
#: where their values of one step still fit beside all weights.
MAX_BLOCK_ROWS = 32
#: Rows that a block holds, if it has fewer, before it multiplies them for the weights' gradients.
HELD_ROWS = 32
#: Most groups of blocks per thread: enough for an even share; every group takes memory.
THREAD_GROUPS = 4


class Layout(NamedTuple):
    """Entries of a table that depend on sizes alone."""

    sizes: dict[str, int]
    counts: dict[str, int]  # see _given_counts
    entries: tuple[int, ...]
    scratch: tuple[tuple[int, int], ...]  # index of an entry, bytes from the arena's start
    arena_bytes: int
    packed: tuple[tuple[int, int], ...]  # the same for packed weights, in their own memory
    packed_bytes: int
    as_given: tuple[tuple[int, int], ...]  # entries of packed weights taken as they are, and whose
    held: tuple[
        tuple[int, int], ...
    ]  # what groups hold for the weights' gradients, in a third piece
    held_bytes: int


# A layer is called with few different sizes, and for a single step this would take a tenth of it.
@functools.lru_cache(maxsize=256)
def lay_out(
    batch: int,
    hh: tuple[int, int, int],
    keys: int,
    values: int,
    rules: Rules,
    item: int,
    num_threads: int,
) -> Layout:
    """Sizes of a call, and where in three pieces of memory what kernels write for themselves lies.

    Args:
        batch: B.
        hh: shape of the weight, (N, G d, d).
        keys: M dk.
        values: M dv.
        rules: what shapes do not project_qkv.
        item: bytes of a number.
        num_threads: that may take groups of blocks.
    """
    sizes = _sizes(batch, hh, keys, values, rules, VECTOR_BYTES // item, num_threads)
    counts = _scratch_counts(sizes)
    # One vector more each: the last row of an array is read in whole vectors too.
    bytes_ = [round_up(count * item, 64) + VECTOR_BYTES for count in counts.values()]
    sizes["scratch_bytes"] = round_up(sum(bytes_), 64)
    counts_held = _held_counts(sizes)
    bytes_held = [round_up(count * item, 64) for count in counts_held.values()]
    sizes["held_bytes"] = sum(bytes_held)
    entries = [0] * e.SIZE
    for name, value in sizes.items():
        entries[e.INDEX[name]] = value
    entries[e.INDEX["scale"]] = struct.unpack("q", struct.pack("d", max(1, sizes["dk"]) ** -0.5))[0]
    scratch = _places(counts, bytes_)
    arena_bytes = sizes["groups"] * sizes["scratch_bytes"] + 64
    counts = _packed_counts(sizes)
    bytes_ = [round_up(count * item, 64) for count in counts.values()]
    packed, packed_bytes = _places(counts, bytes_), sum(bytes_) + 64
    as_given = tuple((e.INDEX[f"p_{name}"], e.INDEX[f"w_{name}"]) for name in _as_given(sizes))
    return Layout(
        sizes, _given_counts(sizes), tuple(entries), scratch, arena_bytes,
        packed, packed_bytes, as_given,
        _places(counts_held, bytes_held), sizes["groups"] * sizes["held_bytes"] + 64,
    )  # fmt: skip


def _sizes(
    batch: int,
    hh: tuple[int, int, int],
    keys: int,
    values: int,
    rules: Rules,
    lanes: int,
    num_threads: int,
) -> dict[str, int]:
    n, gates, d = hh
    heads = max(1, rules.num_heads)  # without communication every size of it is 0
    share = -(-batch // num_threads)  # rounded up
    rows = min(MAX_BLOCK_ROWS, round_up(share, 4) if batch > 1 else 1)
    blocks = -(-batch // rows)
    return {
        "groups": min(blocks, THREAD_GROUPS * num_threads),
        "blocks": blocks, "block_rows": rows, "batch": batch,
        "held_steps": max(1, HELD_ROWS // rows),
        "n": n, "k": rules.k, "d": d, "g": gates // d, "m": rules.num_heads,
        "dk": keys // heads, "dv": values // heads,
        "is_lstm": int(gates == 4 * d), "reads_state": int(rules.reads_state),
        "gates_input": int(rules.input_gate == "null"),
        "gate_learns": int(rules.input_gate != "none"),
        "unit": round_up(d, lanes), "gate": round_up(gates, lanes),
        "width": round_up(2 * keys + round_up(values, lanes), lanes),
        "key_row": round_up(keys, lanes), "heads": round_up(values, lanes),
        "pair": round_up(2 * d, lanes), "lines": round_up(rules.k * rules.num_heads, lanes),
    }  # fmt: skip


def _places(names: Iterable[str], bytes_: list[int]) -> tuple[tuple[int, int], ...]:
    starts = accumulate(bytes_, initial=0)
    return tuple(zip((e.INDEX[name] for name in names), starts, strict=False))


def _given_counts(s: dict[str, int]) -> dict[str, int]:
    """Numbers in each array that the caller gives: of one step, if it has steps."""
    n, d, gates, batch = s["n"], s["d"], s["g"] * s["d"], s["batch"]
    keys, values = s["m"] * s["dk"], s["m"] * s["dv"]
    states = dict.fromkeys(e.OTHERS, batch * n * d)
    return states | {
        "w_hh": n * gates * d, "w_query": n * d * keys, "w_key": n * d * keys,
        "w_value": n * d * values, "w_output": d * values, "w_gate": d * values,
        "b_ih": n * gates, "b_hh": n * gates, "b_output": d, "b_gate": d,
        "reset": batch, "valid": batch, "active": batch * n,
        "gate_side": batch * n * gates, "d_gate_side": batch * n * gates,
    }  # fmt: skip


def _packed_counts(s: dict[str, int]) -> dict[str, int]:
    """Numbers in each array of packed weights."""
    n, d, gates, values = s["n"], s["d"], s["g"] * s["d"], s["m"] * s["dv"]
    counts = {
        "p_hh": n * d * s["gate"], "p_out": values * s["pair"],
        "p_b_ih": n * gates, "p_b_hh": n * gates, "p_b_out": 2 * d,
        "p_hh_back": n * gates * s["unit"],
        "p_qkv_back": n * (2 * s["m"] * s["dk"] + values) * s["unit"],
        "p_out_back": 2 * d * s["heads"],
    }  # fmt: skip
    if "query" not in _as_given(s):
        counts |= {"p_query": n * d * s["key_row"], "p_key": n * d * s["key_row"]}
    if "value" not in _as_given(s):
        counts["p_value"] = n * d * s["heads"]
    return counts


def _as_given(s: dict[str, int]) -> tuple[str, ...]:
    """Weights of the communication whose lines are whole vectors without padding."""
    whole_keys, whole_values = s["m"] * s["dk"] == s["key_row"], s["m"] * s["dv"] == s["heads"]
    return ("query", "key") * whole_keys + ("value",) * whole_values


def _scratch_counts(s: dict[str, int]) -> dict[str, int]:
    """Numbers in each array that a group writes for itself."""
    rows = s["block_rows"]
    all_units, readers = s["n"] * rows * s["unit"], rows * s["k"]
    return dict.fromkeys(e.SCRATCH, all_units) | {
        "s_share": rows * s["n"], "s_score": rows * s["n"],
        "s_picked": 2 * readers, "s_chosen": 2 * rows * s["n"],  # int64
        "s_pre": s["n"] * rows * s["gate"], "s_qkv": s["n"] * rows * s["width"],
        "s_alpha": rows * s["n"] * s["lines"], "s_d_alpha": s["n"] * s["lines"],
        "s_read": readers * s["heads"], "s_d_read": readers * s["heads"],
        "s_out": readers * s["pair"], "s_queries": s["k"] * s["key_row"],
    }  # fmt: skip


def _held_counts(s: dict[str, int]) -> dict[str, int]:
    """Numbers in each array that a group holds for the gradients of the weights."""
    n, d, gates, values = s["n"], s["d"], s["g"] * s["d"], s["m"] * s["dv"]
    width, rows = 2 * s["m"] * s["dk"] + values, s["held_steps"] * s["block_rows"]
    return {
        "d_state_gates": rows * n * gates, "d_qkv": rows * n * width,
        "d_output_gate": rows * s["k"] * 2 * d, "read": rows * s["k"] * values,
        "h_prev": rows * n * d, "comm_input": rows * n * d,
        "own_hh": n * gates * d, "own_qkv": n * d * width, "own_out": 2 * d * values,
        "own_b_hh": n * gates, "own_b_n": n * d, "own_b_out": 2 * d,
    }  # fmt: skip


def round_up(count: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-count // step) * step
