"""Products over a tile of points: what reading and its gradient spend their time in.

An array is (size, points) with ``step`` numbers from row to row. ``limit`` is how many points may
be touched: in scratch all of ``width``, in a map what is left of it.
"""

from __future__ import annotations

from typing import Any

from nfm.native.lanes import doubled, expect, filled, halved
from rims.native.simd import kernel, lanes_of, load, load_up_to, store, store_up_to


@kernel
def pack(
    source: Any, step: int, limit: int, out: Any, width: int, size: int, factor: Any, like: Any
) -> None:
    """Bring the tile of a map into scratch, times ``factor``."""
    for c in range(size):
        for j in range(0, width, lanes_of(like)):
            expect(source, c * step + j + width)
            store(out, c * width + j, load_up_to(source, c * step + j, limit - j) * factor)


@kernel
def unpack(
    tile: Any, width: int, out: Any, step: int, limit: int, size: int, factor: Any, like: Any
) -> None:
    """Bring scratch back to the tile of a map, times ``factor``."""
    for c in range(size):
        for j in range(0, width, lanes_of(like)):
            expect(out, c * step + j + width)
            store_up_to(out, c * step + j, limit - j, load(tile, c * width + j) * factor)


@kernel
def gather(source: Any, step: int, index: Any, count: int, out: Any, width: int, size: int) -> None:
    """Bring ``count`` points, wherever they are, into scratch. Four rows share each look-up."""
    for c in range(0, size - 3, 4):
        for j in range(count):
            place, to = c * step + index[j], c * width + j
            out[to] = source[place]
            out[to + width] = source[place + step]
            out[to + 2 * width] = source[place + 2 * step]
            out[to + 3 * width] = source[place + 3 * step]
    for c in range(size - size % 4, size):
        for j in range(count):
            out[c * width + j] = source[c * step + index[j]]


@kernel
def gather_repeated(
    source: Any, step: int, index: Any, repeat: int, out: Any, width: int, size: int, like: Any
) -> None:
    """As ``gather`` for whole vectors, of which each ``repeat`` lanes, a power of 2, are one point.

    What is one vector in scratch lies in a row in the source.
    """
    lanes = lanes_of(like)
    for j in range(0, width, lanes):
        for c in range(size):
            place = c * step + index[j]
            expect(source, place + lanes)
            x = load_up_to(source, place, max(1, lanes // repeat))
            left = min(repeat, lanes)
            while left > 1:
                x = doubled(x)
                left //= 2
            store(out, c * width + j, x)


@kernel
def scatter(tile: Any, width: int, index: Any, count: int, out: Any, step: int, size: int) -> None:
    """Add scratch to ``count`` points, of which some may be the same."""
    for c in range(0, size - 3, 4):
        for j in range(count):
            place, source = c * step + index[j], c * width + j
            out[place] += tile[source]
            out[place + step] += tile[source + width]
            out[place + 2 * step] += tile[source + 2 * width]
            out[place + 3 * step] += tile[source + 3 * width]
    for c in range(size - size % 4, size):
        for j in range(count):
            out[c * step + index[j]] += tile[c * width + j]


@kernel
def place(tile: Any, width: int, index: Any, count: int, out: Any, step: int, size: int) -> None:
    """As ``scatter``, but points are overwritten: nothing else contributes to them."""
    for c in range(0, size - 3, 4):
        for j in range(count):
            to, source = c * step + index[j], c * width + j
            out[to] = tile[source]
            out[to + step] = tile[source + width]
            out[to + 2 * step] = tile[source + 2 * width]
            out[to + 3 * step] = tile[source + 3 * width]
    for c in range(size - size % 4, size):
        for j in range(count):
            out[c * step + index[j]] = tile[c * width + j]


@kernel
def scatter_repeated(
    tile: Any, width: int, index: Any, repeat: int, out: Any, step: int, size: int, like: Any
) -> None:
    """As ``scatter``, under the conditions of ``gather_repeated``."""
    lanes = lanes_of(like)
    for j in range(0, width, lanes):
        for c in range(size):
            x, left = load(tile, c * width + j), min(repeat, lanes)
            while left > 1:
                x = halved(x)
                left //= 2
            place, count = c * step + index[j], max(1, lanes // repeat)
            expect(out, place + lanes)
            store_up_to(out, place, count, load_up_to(out, place, count) + x)


@kernel
def dot(a: Any, b: Any, step: int, limit: int, out: Any, width: int, size: int, like: Any) -> None:
    """For every point the sum over rows of ``a``, in scratch, times ``b``, a map or scratch.

    Sums of even and of odd rows are kept apart until the end, wherever ``b`` lies: equal points
    give equal sums, bit for bit, and so ties remain ties.
    """
    lanes = lanes_of(like)
    zero = filled(like, 0.0)
    for j in range(0, width, 2 * lanes):
        even0, even1, odd0, odd1 = zero, zero, zero, zero
        i = j + lanes
        if i + lanes <= limit:
            for c in range(0, size - 1, 2):
                expect(b, c * step + j + width)
                expect(b, c * step + i + width)
                expect(b, (c + 1) * step + j + width)
                expect(b, (c + 1) * step + i + width)
                even0 += load(a, c * width + j) * load(b, c * step + j)
                even1 += load(a, c * width + i) * load(b, c * step + i)
                odd0 += load(a, (c + 1) * width + j) * load(b, (c + 1) * step + j)
                odd1 += load(a, (c + 1) * width + i) * load(b, (c + 1) * step + i)
            if size % 2:
                c = size - 1
                even0 += load(a, c * width + j) * load(b, c * step + j)
                even1 += load(a, c * width + i) * load(b, c * step + i)
        else:
            for c in range(size):
                x0 = load(a, c * width + j) * load_up_to(b, c * step + j, limit - j)
                x1 = load(a, c * width + i) * load_up_to(b, c * step + i, limit - i)
                if c % 2:
                    odd0, odd1 = odd0 + x0, odd1 + x1
                else:
                    even0, even1 = even0 + x0, even1 + x1
        store(out, j, even0 + odd0)
        store(out, i, even1 + odd1)


@kernel
def add_weighted(
    weights: Any, b: Any, step: int, limit: int, out: Any, width: int, size: int, like: Any
) -> None:
    """Add to every row of ``out``, in scratch, that of ``b``, a map or scratch, by weight."""
    lanes = lanes_of(like)
    for j in range(0, width, 2 * lanes):
        i = j + lanes
        w0, w1 = load(weights, j), load(weights, i)
        if i + lanes <= limit:
            for c in range(size):
                to = c * width
                expect(b, c * step + j + width)
                expect(b, c * step + i + width)
                store(out, to + j, load(out, to + j) + w0 * load(b, c * step + j))
                store(out, to + i, load(out, to + i) + w1 * load(b, c * step + i))
        else:
            for c in range(size):
                to = c * width
                x0 = load_up_to(b, c * step + j, limit - j)
                x1 = load_up_to(b, c * step + i, limit - i)
                store(out, to + j, load(out, to + j) + w0 * x0)
                store(out, to + i, load(out, to + i) + w1 * x1)


@kernel
def put_weighted(
    weights: Any, a: Any, width: int, out: Any, step: int, limit: int, size: int, like: Any
) -> None:
    """Write every row of ``a``, in scratch, by weight to ``out``, a map or scratch."""
    lanes = lanes_of(like)
    for j in range(0, width, 2 * lanes):
        i = j + lanes
        w0, w1 = load(weights, j), load(weights, i)
        if i + lanes <= limit:
            for c in range(size):
                expect(out, c * step + j + width)
                expect(out, c * step + i + width)
                store(out, c * step + j, w0 * load(a, c * width + j))
                store(out, c * step + i, w1 * load(a, c * width + i))
        else:
            for c in range(size):
                store_up_to(out, c * step + j, limit - j, w0 * load(a, c * width + j))
                store_up_to(out, c * step + i, limit - i, w1 * load(a, c * width + i))


@kernel
def clear(out: Any, count: int, like: Any) -> None:
    """Zeros in ``count`` numbers."""
    for j in range(0, count, lanes_of(like)):
        store_up_to(out, j, count - j, filled(like, 0.0))


@kernel
def expect_all(source: Any, count: int, like: Any) -> None:
    """Fetch ``count`` numbers into the second-level cache."""
    for j in range(0, count, lanes_of(like)):
        expect(source, j)
