"""Reading: scores of all slots, weights, and the mixture of values, tile by tile."""

from __future__ import annotations

import math
from typing import Any

from nfm.native import rows
from nfm.native import table as e
from nfm.native.lanes import filled
from nfm.native.softmax import to_weights
from nfm.native.table import numbers, words
from rims.native.simd import kernel, shifted

#: More numbers of a slab than these are not fetched ahead; they might throw out one another.
MAX_EXPECTED = 2**15


@kernel
def read_slab(t: Any, own: int, slab: int, like: Any) -> None:
    """Read at all points of a slab; ``own`` is the address of the thread's scratch."""
    points, width = t[e.POINTS], t[e.WIDTH]
    one, like_weights = filled(like, 1.0), numbers(own + t[e.S_WEIGHTS], like)
    best, read = numbers(own + t[e.S_BEST], like), numbers(own + t[e.S_READ], like)
    all_weights = shifted(numbers(t[e.WEIGHTS], like), slab * t[e.SLOTS] * points)
    out = shifted(numbers(t[e.READ], like), slab * t[e.VALUE_SIZE] * points)
    expect_windows(t, slab, like)
    for tile in range((points + t[e.TILE] - 1) // t[e.TILE]):
        begin = tile * t[e.TILE]
        count = min(t[e.TILE], points - begin)
        pack_query(t, own, slab, tile, like)
        put_scores(t, own, slab, tile, like_weights, like)
        to_weights(like_weights, best, t[e.SLOTS], width, t[e.RULE], t[e.DEPTH], like)
        place = shifted(all_weights, begin)
        rows.unpack(like_weights, width, place, points, count, t[e.SLOTS], one, like)
        _mix(t, own, slab, tile, like)
        place = shifted(out, begin)
        rows.unpack(read, width, place, points, count, t[e.VALUE_SIZE], one, like)


@kernel
def expect_windows(t: Any, slab: int, like: Any) -> None:
    """Fetch maps of which windows are read: points of a slot are far apart, in no simple order."""
    for i in range(t[e.ENTRIES]):
        f = shifted(t, e.HEAD + i * e.ENTRY)
        count = t[e.KEY_SIZE] * f[e.SOURCE]
        if f[e.COUNT] > 1 and count <= MAX_EXPECTED:
            rows.expect_all(shifted(numbers(f[e.KEY], like), slab * count), count, like)
        count = t[e.VALUE_SIZE] * f[e.SOURCE]
        if f[e.COUNT] > 1 and count <= MAX_EXPECTED:
            rows.expect_all(shifted(numbers(f[e.VALUE], like), slab * count), count, like)


@kernel
def pack_query(t: Any, own: int, slab: int, tile: int, like: Any) -> None:
    """The query of a tile into scratch, divided by the root of its size."""
    points, begin = t[e.POINTS], tile * t[e.TILE]
    query = shifted(numbers(t[e.QUERY], like), slab * t[e.KEY_SIZE] * points + begin)
    count, scale = min(t[e.TILE], points - begin), filled(like, 1 / math.sqrt(t[e.KEY_SIZE]))
    out = numbers(own + t[e.S_QUERY], like)
    rows.pack(query, points, count, out, t[e.WIDTH], t[e.KEY_SIZE], scale, like)


@kernel
def put_scores(t: Any, own: int, slab: int, tile: int, scores: Any, like: Any) -> None:
    """Scores of all slots in a tile; that of the null slot is zero."""
    width, size = t[e.WIDTH], t[e.KEY_SIZE]
    query = numbers(own + t[e.S_QUERY], like)
    slot = 0
    for i in range(t[e.ENTRIES]):
        f = shifted(t, e.HEAD + i * e.ENTRY)
        for s in range(f[e.COUNT]):
            key, step, limit = slot_of(t, f, own, slab, tile, s, f[e.KEY], f[e.S_KEY], size, like)
            rows.dot(query, key, step, limit, shifted(scores, slot * width), width, size, like)
            slot += 1
    if slot < t[e.SLOTS]:
        rows.clear(shifted(scores, slot * width), width, like)


@kernel
def slot_of(
    t: Any,
    f: Any,
    own: int,
    slab: int,
    tile: int,
    s: int,
    map: int,
    scratch: int,
    size: int,
    like: Any,
) -> Any:
    """Points of a slot for a tile: pointer, step between rows, number that may be accessed.

    A map as large as the reader's is read where it lies. Others are gathered in scratch, where the
    tile before may have left the very same points: rows of a map that is repeated are repeated.
    """
    source, width, begin = f[e.SOURCE], t[e.WIDTH], tile * t[e.TILE]
    count = min(t[e.TILE], t[e.POINTS] - begin)
    base = shifted(numbers(map, like), slab * size * source)
    if f[e.INDEX] == 0:
        return shifted(base, begin), source, count
    gathered = numbers(own + scratch, like)
    if words(f[e.SAME])[tile] == 0:
        index = shifted(words(f[e.INDEX]), s * t[e.POINTS] + begin)
        if f[e.REPEAT]:
            rows.gather_repeated(base, source, index, f[e.REPEAT], gathered, width, size, like)
        else:
            rows.gather(base, source, index, count, gathered, width, size)
    return gathered, width, width


@kernel
def _mix(t: Any, own: int, slab: int, tile: int, like: Any) -> None:
    """The weighted sum of values of a tile, in scratch."""
    width, size = t[e.WIDTH], t[e.VALUE_SIZE]
    weights, read = numbers(own + t[e.S_WEIGHTS], like), numbers(own + t[e.S_READ], like)
    rows.clear(read, size * width, like)
    slot = 0
    for i in range(t[e.ENTRIES]):
        f = shifted(t, e.HEAD + i * e.ENTRY)
        for s in range(f[e.COUNT]):
            value, step, limit = slot_of(
                t, f, own, slab, tile, s, f[e.VALUE], f[e.S_VALUE], size, like
            )
            own_weights = shifted(weights, slot * width)
            rows.add_weighted(own_weights, value, step, limit, read, width, size, like)
            slot += 1
