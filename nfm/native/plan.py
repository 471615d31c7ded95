"""Entries of a table that depend on sizes alone: tiles, places in the sources, scratch."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch

from nfm.attention import usable_top_k
from nfm.native import table as e
from nfm.native.softmax import DENSE, THRESHOLD, TOPK
from nfm.rescale import Rescale, window_index, window_size
from rims.functional import TopKRule
from rims.native.vectors import VECTOR_BYTES

#: Points of a tile at most: what a tile has of queries, gradients and scores stays in the
#: first-level cache.
MAX_TILE = 64

Index = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Sizes(NamedTuple):
    """Everything the layout of a table depends on."""

    size: tuple[int, ...]  # of the reader's map
    sources: tuple[tuple[int, ...], ...]  # of each entry's
    slabs: int
    key_size: int
    value_size: int
    top_k: int | None
    rule: TopKRule
    rescale: Rescale
    null_slot: bool
    item: int  # bytes of a number
    num_threads: int


class Plan(NamedTuple):
    """A table that lacks only the addresses of a call's arrays."""

    table: np.ndarray[tuple[int], np.dtype[np.int64]]
    arrays: dict[int, int]  # see _arrays
    num_slots: int
    num_threads: int
    scratch_bytes: int  # of all threads
    held: tuple[Index, ...]  # what addresses in the table point to


@functools.lru_cache(maxsize=128)  # a network calls with the same few sizes over and over
def make(s: Sizes) -> Plan:
    """Lay out the table for these sizes."""
    points = math.prod(s.size)
    tile = _tile(s.size)
    pair = 2 * VECTOR_BYTES // s.item
    width = -(-tile // pair) * pair
    counts = [_num_slots(s.size, source, s.rescale) for source in s.sources]
    slots = sum(counts) + s.null_slot
    k = usable_top_k(s.top_k, slots, s.rule)
    rule = DENSE if k is None else THRESHOLD if s.rule == "threshold" else TOPK
    depth = 1 if k is None else k + (rule == THRESHOLD)
    table = np.zeros(e.HEAD + len(s.sources) * e.ENTRY, dtype=np.int64)
    table[[e.SLABS, e.POINTS, e.TILE, e.WIDTH]] = s.slabs, points, tile, width
    table[[e.KEY_SIZE, e.VALUE_SIZE, e.SLOTS]] = s.key_size, s.value_size, slots
    table[[e.ENTRIES, e.RULE, e.DEPTH]] = len(s.sources), rule, depth
    scratch = _Scratch(s.item)
    for field, rows in (
        (e.S_QUERY, s.key_size), (e.S_READ, s.value_size), (e.S_BEST, depth),
        (e.S_WEIGHTS, slots), (e.S_D_WEIGHTS, slots), (e.S_DENSE, slots), (e.S_D_QUERY, s.key_size),
    ):  # fmt: skip
        table[field] = scratch.take(rows * width)
    held: list[Index] = []
    for i, (source, count) in enumerate(zip(s.sources, counts, strict=True)):
        f = table[e.HEAD + i * e.ENTRY :]
        f[[e.SOURCE, e.COUNT]] = math.prod(source), count
        if source != s.size:
            index = _index(s.size, source, s.rescale)
            same = _same(index, tile)
            held += index, same
            f[[e.INDEX, e.SAME]] = index.ctypes.data, same.ctypes.data
            f[e.PARTED] = count * points == math.prod(source) == len(np.unique(index))
            f[e.REPEAT] = _repeat(s.size, source, tile, s.item)
            for field, rows in (
                (e.S_KEY, s.key_size), (e.S_D_KEY, s.key_size),
                (e.S_VALUE, s.value_size), (e.S_D_VALUE, s.value_size),
            ):  # fmt: skip
                f[field] = scratch.take(rows * width)
    table[e.SCRATCH_BYTES] = scratch.bytes
    num_threads = max(1, min(s.num_threads, s.slabs))
    scratch_bytes = num_threads * scratch.bytes
    return Plan(table, _arrays(s, slots), slots, num_threads, scratch_bytes, tuple(held))


def _arrays(s: Sizes, num_slots: int) -> dict[int, int]:
    """Numbers in each array of a call, by the place of its address."""
    points = math.prod(s.size)
    counts = {e.WEIGHTS: num_slots * points, e.D_WEIGHTS: num_slots * points}
    counts |= dict.fromkeys((e.QUERY, e.D_QUERY), s.key_size * points)
    counts |= dict.fromkeys((e.READ, e.D_READ), s.value_size * points)
    for i, source in enumerate(s.sources):
        begin, points = e.HEAD + i * e.ENTRY, math.prod(source)
        counts |= dict.fromkeys((begin + e.KEY, begin + e.D_KEY), s.key_size * points)
        counts |= dict.fromkeys((begin + e.VALUE, begin + e.D_VALUE), s.value_size * points)
    return {place: s.slabs * count for place, count in counts.items()}


class _Scratch:
    """Hands out places in the scratch of a thread, each at a multiple of 64 bytes."""

    def __init__(self, item: int) -> None:
        self.item, self.bytes = item, 0

    def take(self, count: int) -> int:
        """Place for ``count`` numbers."""
        place = self.bytes
        self.bytes += -(-count * self.item // 64) * 64
        return place


def _tile(size: tuple[int, ...]) -> int:
    """Points of a tile: one whole row if possible, or several short ones.

    Rows of a map that is repeated are then gathered once for all rows of the reader they serve.
    """
    row = size[-1]
    if row > MAX_TILE:
        return MAX_TILE
    rows = 1 if 2 * row > MAX_TILE // 2 else MAX_TILE // 2 // row
    return min(row * rows, math.prod(size))


def _num_slots(size: tuple[int, ...], source: tuple[int, ...], rescale: Rescale) -> int:
    if rescale == "nearest":
        return 1
    return math.prod(window_size(m, n) for n, m in zip(size, source, strict=True))


def _index(size: tuple[int, ...], source: tuple[int, ...], rescale: Rescale) -> Index:
    """``(slots, points)``: which point of the source a slot of the reader's point is."""
    axes = len(size)
    flat = np.zeros((1,) * (2 * axes), dtype=np.int64)
    for axis, (n, m) in enumerate(zip(size, source, strict=True)):
        window = 1 if rescale == "nearest" else window_size(m, n)
        own = window_index(m, n, window, torch.device("cpu")).numpy().T  # (window, n)
        shape = [1] * (2 * axes)
        shape[axis], shape[axes + axis] = own.shape
        flat = flat * m + own.reshape(shape)
    return np.ascontiguousarray(flat.reshape(math.prod(flat.shape[:axes]), -1))


def _repeat(size: tuple[int, ...], source: tuple[int, ...], tile: int, item: int) -> int:
    """Value of ``REPEAT`` in a table."""
    lanes = VECTOR_BYTES // item
    row, repeat = size[-1], size[-1] // source[-1]
    one_slot = all(n % m == 0 for n, m in zip(size, source, strict=True))
    whole = row % lanes == 0 and tile % (2 * lanes) == 0 and math.prod(size) % tile == 0
    power_of_2 = repeat > 0 and repeat & (repeat - 1) == 0
    return repeat if one_slot and whole and power_of_2 else 0


def _same(index: Index, tile: int) -> Index:
    """Per tile 1 if it has the places of the tile before, and a 0 for the end."""
    slots, points = index.shape
    same = np.zeros(-(-points // tile) + 1, dtype=np.int64)
    if slots == 1:
        for i in range(1, points // tile):
            now, before = (index[0, j * tile : (j + 1) * tile] for j in (i, i - 1))
            same[i] = np.array_equal(now, before)
    return same
