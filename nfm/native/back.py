"""Gradients of a reading, tile by tile; scores are computed again where the rule needs them."""

from __future__ import annotations

import math
from typing import Any

from nfm.native import rows
from nfm.native import table as e
from nfm.native.forward import expect_windows, pack_query, put_scores, slot_of
from nfm.native.lanes import filled
from nfm.native.softmax import THRESHOLD, back_to_scores
from nfm.native.table import numbers, words
from rims.native.simd import kernel, lanes_of, load, load_up_to, shifted, store


@kernel
def back_slab(t: Any, own: int, slab: int, like: Any) -> None:
    """Gradients at all points of a slab; no other slab writes where this one does."""
    points, width, slots = t[e.POINTS], t[e.WIDTH], t[e.SLOTS]
    one, scale = filled(like, 1.0), filled(like, 1 / math.sqrt(t[e.KEY_SIZE]))
    weights, dense = numbers(own + t[e.S_WEIGHTS], like), numbers(own + t[e.S_DENSE], like)
    d_weights, best = numbers(own + t[e.S_D_WEIGHTS], like), numbers(own + t[e.S_BEST], like)
    d_read, d_query = numbers(own + t[e.S_READ], like), numbers(own + t[e.S_D_QUERY], like)
    all_weights = shifted(numbers(t[e.WEIGHTS], like), slab * slots * points)
    all_d_read = shifted(numbers(t[e.D_READ], like), slab * t[e.VALUE_SIZE] * points)
    all_d_query = shifted(numbers(t[e.D_QUERY], like), slab * t[e.KEY_SIZE] * points)
    expect_windows(t, slab, like)
    _clear_gathered(t, slab, like)
    for tile in range((points + t[e.TILE] - 1) // t[e.TILE]):
        begin = tile * t[e.TILE]
        count = min(t[e.TILE], points - begin)
        pack_query(t, own, slab, tile, like)
        place = shifted(all_d_read, begin)
        rows.pack(place, points, count, d_read, width, t[e.VALUE_SIZE], one, like)
        place = shifted(all_weights, begin)
        rows.pack(place, points, count, weights, width, slots, one, like)
        _back_to_values(t, own, slab, tile, like)
        if t[e.D_WEIGHTS] != 0:
            _add_own_gradients(t, slab, begin, count, d_weights, like)
        if t[e.RULE] == THRESHOLD:
            put_scores(t, own, slab, tile, dense, like)
        back_to_scores(weights, dense, d_weights, best, slots, width, t[e.RULE], t[e.DEPTH], like)
        _back_to_keys(t, own, slab, tile, like)
        place = shifted(all_d_query, begin)
        rows.unpack(d_query, width, place, points, count, t[e.KEY_SIZE], scale, like)


@kernel
def _clear_gathered(t: Any, slab: int, like: Any) -> None:
    """Zero gradients of maps to which every tile may add."""
    for i in range(t[e.ENTRIES]):
        f = shifted(t, e.HEAD + i * e.ENTRY)
        if f[e.INDEX] != 0 and f[e.PARTED] == 0:
            count = t[e.KEY_SIZE] * f[e.SOURCE]
            rows.clear(shifted(numbers(f[e.D_KEY], like), slab * count), count, like)
            count = t[e.VALUE_SIZE] * f[e.SOURCE]
            rows.clear(shifted(numbers(f[e.D_VALUE], like), slab * count), count, like)


@kernel
def _back_to_values(t: Any, own: int, slab: int, tile: int, like: Any) -> None:
    """Gradients of weights, in scratch, and of values."""
    width, size = t[e.WIDTH], t[e.VALUE_SIZE]
    weights, d_read = numbers(own + t[e.S_WEIGHTS], like), numbers(own + t[e.S_READ], like)
    d_weights = numbers(own + t[e.S_D_WEIGHTS], like)
    slot = 0
    for i in range(t[e.ENTRIES]):
        f = shifted(t, e.HEAD + i * e.ENTRY)
        for s in range(f[e.COUNT]):
            value, step, limit = slot_of(
                t, f, own, slab, tile, s, f[e.VALUE], f[e.S_VALUE], size, like
            )
            out, own_weights = shifted(d_weights, slot * width), shifted(weights, slot * width)
            rows.dot(d_read, value, step, limit, out, width, size, like)
            _put(
                t, f, own, slab, tile, s, f[e.D_VALUE], f[e.S_D_VALUE], size,
                own_weights, d_read, like,
            )  # fmt: skip
            slot += 1
    if slot < t[e.SLOTS]:
        rows.clear(shifted(d_weights, slot * width), width, like)


@kernel
def _back_to_keys(t: Any, own: int, slab: int, tile: int, like: Any) -> None:
    """Gradients of the query, in scratch, and of keys."""
    width, size = t[e.WIDTH], t[e.KEY_SIZE]
    d_scores, query = numbers(own + t[e.S_D_WEIGHTS], like), numbers(own + t[e.S_QUERY], like)
    d_query = numbers(own + t[e.S_D_QUERY], like)
    rows.clear(d_query, size * width, like)
    slot = 0
    for i in range(t[e.ENTRIES]):
        f = shifted(t, e.HEAD + i * e.ENTRY)
        for s in range(f[e.COUNT]):
            key, step, limit = slot_of(t, f, own, slab, tile, s, f[e.KEY], f[e.S_KEY], size, like)
            own_scores = shifted(d_scores, slot * width)
            rows.add_weighted(own_scores, key, step, limit, d_query, width, size, like)
            _put(
                t, f, own, slab, tile, s, f[e.D_KEY], f[e.S_D_KEY], size,
                own_scores, query, like,
            )  # fmt: skip
            slot += 1


@kernel
def _put(
    t: Any,
    f: Any,
    own: int,
    slab: int,
    tile: int,
    s: int,
    map: int,
    scratch: int,
    size: int,
    weights: Any,
    a: Any,
    like: Any,
) -> None:
    """Give a slot its share of gradient: rows of ``a`` by weight.

    What goes to gathered points is summed up in scratch until other points are due.
    """
    source, width, begin = f[e.SOURCE], t[e.WIDTH], tile * t[e.TILE]
    count = min(t[e.TILE], t[e.POINTS] - begin)
    base = shifted(numbers(map, like), slab * size * source)
    if f[e.INDEX] == 0:
        rows.put_weighted(weights, a, width, shifted(base, begin), source, count, size, like)
        return
    same, gathered = words(f[e.SAME]), numbers(own + scratch, like)
    if same[tile]:
        rows.add_weighted(weights, a, width, width, gathered, width, size, like)
    else:
        rows.put_weighted(weights, a, width, gathered, width, width, size, like)
    if same[tile + 1] == 0:  # there is one entry more than tiles
        index = shifted(words(f[e.INDEX]), s * t[e.POINTS] + begin)
        if f[e.PARTED]:
            rows.place(gathered, width, index, count, base, source, size)
        elif f[e.REPEAT]:
            rows.scatter_repeated(gathered, width, index, f[e.REPEAT], base, source, size, like)
        else:
            rows.scatter(gathered, width, index, count, base, source, size)


@kernel
def _add_own_gradients(
    t: Any, slab: int, begin: int, count: int, d_weights: Any, like: Any
) -> None:
    """Add the gradient that weights have of themselves, being a result too."""
    points, width = t[e.POINTS], t[e.WIDTH]
    given = shifted(numbers(t[e.D_WEIGHTS], like), slab * t[e.SLOTS] * points + begin)
    for s in range(t[e.SLOTS]):
        for j in range(0, width, lanes_of(like)):
            more = load_up_to(given, s * points + j, count - j)
            store(d_weights, s * width + j, load(d_weights, s * width + j) + more)
