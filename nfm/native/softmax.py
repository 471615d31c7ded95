"""Softmax over slots and its gradient, for a tile of points; every lane chooses its own slots.

Arrays of a tile are (slots, width). The rules are those of
:func:`rims.functional.attention_weights`, and
``depth`` is how many of the largest scores have to be known for them.
"""

from __future__ import annotations

import math
from typing import Any

from nfm.native.lanes import filled, smaller, where_above, where_equal
from rims.functional import _THRESHOLD_EPS
from rims.native.simd import exp, kernel, lanes_of, larger, load, store

#: Softmax of all, of exactly ``depth``, or of all and cut at the ``depth``-th.
DENSE, TOPK, THRESHOLD = 0, 1, 2
_EPS = _THRESHOLD_EPS


@kernel
def to_weights(
    scores: Any, best: Any, slots: int, width: int, rule: int, depth: int, like: Any
) -> None:
    """Put weights in the place of scores. ``best`` has room for ``depth`` vectors."""
    lanes = lanes_of(like)
    for j in range(0, width, lanes):
        _find_best(scores, best, j, slots, width, depth, like)
        if rule == TOPK:
            _keep_best(scores, best, j, slots, width, depth, like)
        else:
            _exponentials(scores, best, j, slots, width, like)
        _divide(scores, j, slots, width, filled(like, 0.0), like)
        if rule == THRESHOLD:
            _cut(scores, best, j, slots, width, depth, like)


@kernel
def _find_best(
    scores: Any, best: Any, j: int, slots: int, width: int, depth: int, like: Any
) -> None:
    """The largest scores of each lane, in order; equal ones count one by one."""
    lanes = lanes_of(like)
    for i in range(depth):
        store(best, i * lanes, filled(like, -math.inf))
    for s in range(slots):
        falling = load(scores, s * width + j)
        for i in range(depth):
            held = load(best, i * lanes)
            store(best, i * lanes, larger(held, falling))
            falling = smaller(held, falling)


@kernel
def _exponentials(scores: Any, best: Any, j: int, slots: int, width: int, like: Any) -> None:
    top = load(best, 0)
    for s in range(slots):
        store(scores, s * width + j, exp(load(scores, s * width + j) - top))


@kernel
def _keep_best(
    scores: Any, best: Any, j: int, slots: int, width: int, depth: int, like: Any
) -> None:
    """Exponentials of the ``depth`` best, of equal ones those of the first slots; zero elsewhere.

    NaN counts as large, so that it shows in the sum and hence in all weights.
    """
    zero, one = filled(like, 0.0), filled(like, 1.0)
    top, last = load(best, 0), load(best, (depth - 1) * lanes_of(like))
    room = filled(like, depth)
    for s in range(slots):
        room = room - where_above(load(scores, s * width + j), last, one, zero)
    for s in range(slots):
        score = load(scores, s * width + j)
        tied = where_equal(score, last, one, zero)
        keep = where_above(score, last, one, where_above(room, zero, tied, zero))
        room = room - tied
        store(scores, s * width + j, where_above(keep, zero, exp(score - top), zero))


@kernel
def _divide(scores: Any, j: int, slots: int, width: int, more: Any, like: Any) -> None:
    """Divide by the sum over all slots and ``more``."""
    total = more
    for s in range(slots):
        total = total + load(scores, s * width + j)
    for s in range(slots):
        store(scores, s * width + j, load(scores, s * width + j) / total)


@kernel
def _cut(scores: Any, best: Any, j: int, slots: int, width: int, depth: int, like: Any) -> None:
    """Take the ``depth``-th largest weight from all and keep what is left."""
    zero, eps = filled(like, 0.0), filled(like, _EPS)
    # Sorting weights finds the same as sorting scores, and no rounding lies between.
    _find_best(scores, best, j, slots, width, depth, like)
    bound = load(best, (depth - 1) * lanes_of(like)) + eps
    for s in range(slots):
        rest = load(scores, s * width + j) - bound
        store(scores, s * width + j, where_above(rest, zero, rest, zero))
    _divide(scores, j, slots, width, eps, like)


@kernel
def back_to_scores(
    weights: Any,
    dense: Any,
    d_weights: Any,
    best: Any,
    slots: int,
    width: int,
    rule: int,
    depth: int,
    like: Any,
) -> None:
    """Put gradients of scores in the place of those of weights.

    ``dense`` is scratch which holds the scores if the rule is to cut; without that, weights are
    enough.
    """
    lanes = lanes_of(like)
    for j in range(0, width, lanes):
        if rule == THRESHOLD:
            _find_best(dense, best, j, slots, width, depth, like)
            _exponentials(dense, best, j, slots, width, like)
            _divide(dense, j, slots, width, filled(like, 0.0), like)
            _back_through_cut(weights, dense, d_weights, best, j, slots, width, depth, like)
            _back_through_softmax(dense, d_weights, j, slots, width, like)
        else:
            _back_through_softmax(weights, d_weights, j, slots, width, like)


@kernel
def _back_through_softmax(
    weights: Any, d_weights: Any, j: int, slots: int, width: int, like: Any
) -> None:
    mean = filled(like, 0.0)
    for s in range(slots):
        mean = mean + load(weights, s * width + j) * load(d_weights, s * width + j)
    for s in range(slots):
        at = s * width + j
        store(d_weights, at, load(weights, at) * (load(d_weights, at) - mean))


@kernel
def _back_through_cut(
    weights: Any,
    dense: Any,
    d_weights: Any,
    best: Any,
    j: int,
    slots: int,
    width: int,
    depth: int,
    like: Any,
) -> None:
    """Gradients of dense weights in the place of those of weights; the bound has one too."""
    zero, eps = filled(like, 0.0), filled(like, _EPS)
    _find_best(dense, best, j, slots, width, depth, like)
    at_bound = load(best, (depth - 1) * lanes_of(like))
    total, mean = eps, zero
    for s in range(slots):
        at = s * width + j
        rest = load(dense, at) - (at_bound + eps)
        total = total + where_above(rest, zero, rest, zero)
        mean = mean + load(weights, at) * load(d_weights, at)
    d_bound = zero
    for s in range(slots):
        at = s * width + j
        rest = load(dense, at) - (at_bound + eps)
        d_rest = (load(d_weights, at) - mean) / total
        # as clamp does, a rest of exactly 0 passes its gradient on
        d_rest = where_above(zero, rest, zero, d_rest)
        d_bound = d_bound - d_rest
        store(d_weights, at, d_rest)
    for s in range(slots):  # among equal weights one is the bound
        at = s * width + j
        own = where_equal(load(dense, at), at_bound, d_bound, zero)
        store(d_weights, at, load(d_weights, at) + own)
        d_bound = where_equal(load(dense, at), at_bound, zero, d_bound)
