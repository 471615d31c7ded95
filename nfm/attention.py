"""Attention of every point of a map over slots at that point, written plainly. Pure.

The oracle of :mod:`nfm.fast`, which computes the same without copies of keys and values.
Shapes: B batch, M heads, S slots, P points of the reader's map, ``*size`` its axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nfm.rescale import Rescale, to_slots
from rims.functional import TopKRule, sparse_attention


class MemoryEntry(NamedTuple):
    """Keys and values that one module wrote, at every point of its map."""

    key: Tensor  # (B, M * dk, *source), head-major channels
    value: Tensor  # (B, M * dv, *source)


#: All entries so far, oldest first. Never changed in place: writing makes a longer memory.
Memory = tuple[MemoryEntry, ...]


class SlotRead(NamedTuple):
    """What was read, and how much weight each slot had."""

    read: Tensor  # (B, M * dv, *size), head-major channels
    weights: Tensor  # (B, M, S, *size), the null slot last if there is one


def attend_plainly(
    query: Tensor,
    memory: Sequence[MemoryEntry],
    *,
    num_heads: int,
    top_k: int | None = None,
    topk_rule: TopKRule = "softmax",
    rescale: Rescale = "space_to_depth",
    null_slot: bool = True,
) -> SlotRead:
    r"""Every point and head of a map reads at most ``top_k`` of the slots at that point.

    .. math:: w = \mathrm{topk\,softmax}_s(q \cdot k_s / \sqrt{d_k}), \qquad z = \sum_s w_s v_s

    over the slots of all entries (arXiv:2010.08012, section 3.2.1) and, last, the null slot, whose
    key and value are zero.

    Args:
        query: ``(B, M * dk, *size)``, head-major channels.
        memory: what can be read; at least one entry if there is no null slot.
        num_heads: M.
        top_k: slots kept per point and head; ``None`` (default) keeps all.
        topk_rule: how, see :func:`rims.functional.attention_weights`. Default ``"softmax"``.
        rescale: how a larger entry is read, see :func:`nfm.rescale.to_slots`.
        null_slot: whether there is a slot with zero key and value. Default true.

    Returns:
        ``SlotRead(read (B, M * dv, *size), weights (B, M, S, *size))``.
    """
    size = query.shape[2:]
    keys = torch.cat([to_slots(entry.key, size, rescale=rescale) for entry in memory], 1)
    values = torch.cat([to_slots(entry.value, size, rescale=rescale) for entry in memory], 1)
    if null_slot:
        keys, values = (F.pad(x, (0, 0) * (x.dim() - 2) + (0, 1)) for x in (keys, values))
    read, weights = sparse_attention(
        _by_point(query.unsqueeze(1), num_heads),  # (B, P, M, 1, dk)
        _by_point(keys, num_heads),  # (B, P, M, S, dk)
        _by_point(values, num_heads),
        k=usable_top_k(top_k, keys.shape[1], topk_rule),
        rule=topk_rule,
    )
    return SlotRead(
        torch.unflatten(read.squeeze(3).permute(0, 2, 3, 1).flatten(1, 2), 2, size),
        torch.unflatten(weights.squeeze(3).permute(0, 2, 3, 1), 3, size),
    )


def usable_top_k(top_k: int | None, num_slots: int, rule: TopKRule) -> int | None:
    """``top_k``, or None where it leaves nothing out: early modules have few slots to choose from.

    >>> usable_top_k(5, 3, "softmax"), usable_top_k(5, 8, "softmax")
    (None, 5)
    """
    if top_k is None or num_slots <= top_k + (rule == "threshold"):
        return None
    return top_k


def _by_point(slots: Tensor, num_heads: int) -> Tensor:
    """``(B, S, M * d, *size) -> (B, P, M, S, d)``."""
    heads = torch.unflatten(slots.flatten(3), 2, (num_heads, -1))  # (B, S, M, d, P)
    return heads.permute(0, 4, 2, 1, 3)
