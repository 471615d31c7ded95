"""Attention over slots without copies of keys and values: the fast form of :mod:`nfm.attention`.

On the CPU it is machine code, :mod:`nfm.native`. What follows is the form for everything else, in
PyTorch: other devices and types, graphs that are compiled or exported, function transforms.

Repeated maps and windows are not copied: reader and source are viewed as blocks of points, and
broadcast. Along each axis, a point of the reader is ``(outer, repeat)`` and a point of the source
``(outer, window)``:

====================== ======= ======= =======
reader n, source m      outer  repeat  window
====================== ======= ======= =======
n == m                    n       1       1
n == m * repeat           m    repeat     1
m == n * window           n       1    window
otherwise                 n       1    ceil(m / n), after picking the points of the windows
====================== ======= ======= =======
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nfm.attention import MemoryEntry, SlotRead, usable_top_k
from nfm.rescale import Rescale, window_index, window_size
from rims.functional import TopKRule, attention_weights
from rims.native.eager import why_not_eager
from rims.native.once import once

_HAS_NUMBA = importlib.util.find_spec("numba") is not None


class _Axis(NamedTuple):
    """Blocks of reader and source along one axis."""

    outer: int
    repeat: int
    window: int
    picked: Tensor | None  # indices of the source's points, if not all in a row


class _Meeting(NamedTuple):
    """Blocks of a reader's map and of an entry's, along all axes."""

    axes: tuple[_Axis, ...]

    @property
    def num_slots(self) -> int:
        count = 1
        for axis in self.axes:  # a loop because TorchDynamo cannot trace math.prod over this
            count *= axis.window
        return count

    def of_reader(self, map: Tensor) -> Tensor:
        """``(..., *size) -> (..., outer, repeat, 1, outer, repeat, 1, ...)``."""
        lead = map.shape[: map.dim() - len(self.axes)]
        return map.reshape(*lead, *(n for a in self.axes for n in (a.outer, a.repeat, 1)))

    def of_source(self, map: Tensor) -> Tensor:
        """``(..., *source) -> (..., outer, 1, window, outer, 1, window, ...)``."""
        lead = map.shape[: map.dim() - len(self.axes)]
        for place, axis in enumerate(self.axes, start=len(lead)):
            if axis.picked is not None:
                map = map.index_select(place, axis.picked)
        return map.reshape(*lead, *(n for a in self.axes for n in (a.outer, 1, a.window)))

    def windows_to_slots(self, map: Tensor) -> Tensor:
        """``(B, M, outer, repeat, window, ...) -> (B, M, S, *size)``."""
        count = len(self.axes)
        windows = [2 + 3 * i + 2 for i in range(count)]
        points = [2 + 3 * i + j for i in range(count) for j in (0, 1)]
        size = [axis.outer * axis.repeat for axis in self.axes]
        return map.permute(0, 1, *windows, *points).reshape(*map.shape[:2], self.num_slots, *size)

    def slots_to_windows(self, map: Tensor) -> Tensor:
        """Back: ``(B, M, S, *size) -> (B, M, outer, repeat, window, ...)``."""
        count = len(self.axes)
        windows = [axis.window for axis in self.axes]
        points = [n for axis in self.axes for n in (axis.outer, axis.repeat)]
        split = map.reshape(*map.shape[:2], *windows, *points)
        order = [i for a in range(count) for i in (2 + count + 2 * a, 3 + count + 2 * a, 2 + a)]
        return split.permute(0, 1, *order)


def attend(
    query: Tensor,
    memory: Sequence[MemoryEntry],
    *,
    num_heads: int,
    top_k: int | None = None,
    topk_rule: TopKRule = "softmax",
    rescale: Rescale = "space_to_depth",
    null_slot: bool = True,
    random_scores: bool = False,
) -> SlotRead:
    """Compute :func:`nfm.attention.attend_plainly`, whose page explains the arguments, faster.

    Args:
        query: ``(B, M * dk, *size)``.
        memory: what can be read; at least one entry.
        num_heads: M.
        top_k: slots kept per point and head.
        topk_rule: how.
        rescale: how a larger entry is read.
        null_slot: whether there is a slot with zero key and value.
        random_scores: draw the scores from a standard normal distribution instead.

    Returns:
        ``SlotRead(read (B, M * dv, *size), weights (B, M, S, *size))``.
    """
    if not random_scores and _is_for_native(query, memory):
        from nfm.native.function import Rules
        from nfm.native.function import attend as attend_natively

        rules = Rules(num_heads, top_k, topk_rule, rescale, null_slot)
        return attend_natively(query, memory, rules, attend_by_views, native_fault)
    return attend_by_views(
        query,
        memory,
        num_heads=num_heads,
        top_k=top_k,
        topk_rule=topk_rule,
        rescale=rescale,
        null_slot=null_slot,
        random_scores=random_scores,
    )


def attend_by_views(
    query: Tensor,
    memory: Sequence[MemoryEntry],
    *,
    num_heads: int,
    top_k: int | None = None,
    topk_rule: TopKRule = "softmax",
    rescale: Rescale = "space_to_depth",
    null_slot: bool = True,
    random_scores: bool = False,
) -> SlotRead:
    """As :func:`attend`, in PyTorch on any device, and differentiable any number of times."""
    size = query.shape[2:]
    query = torch.unflatten(query, 1, (num_heads, -1))
    query = query / math.sqrt(query.shape[2])
    meetings = [_meet(size, entry.key.shape[2:], rescale, query.device) for entry in memory]
    scores = [
        _scores(query, entry.key, meeting) for entry, meeting in zip(memory, meetings, strict=True)
    ]
    if null_slot:
        scores.append(torch.zeros_like(scores[0][:, :, :1]))
    joined = torch.cat(scores, 2)  # (B, M, S, *size)
    if random_scores:
        joined = torch.randn_like(joined)
    k = usable_top_k(top_k, joined.shape[2], topk_rule)
    weights = attention_weights(joined, k, rule=topk_rule, dim=2)
    read, first = None, 0
    for entry, meeting in zip(memory, meetings, strict=True):
        own = weights.narrow(2, first, meeting.num_slots)
        mixed = _mix(own, entry.value, meeting)
        read = mixed if read is None else read + mixed
        first += meeting.num_slots
    assert read is not None, "attention over an empty memory"
    return SlotRead(read.flatten(1, 2), weights)


def _is_for_native(query: Tensor, memory: Sequence[MemoryEntry]) -> bool:
    """Whether a call is one that the native kernels can compute."""
    if torch.compiler.is_compiling() or not _HAS_NUMBA:
        return False
    if query.device.type != "cpu" or query.dtype not in (torch.float32, torch.float64):
        return False
    tensors = (query, *(tensor for entry in memory for tensor in entry))
    if why_not_eager(*tensors):
        return False
    fits = all(tensor.dtype == query.dtype and 0 not in tensor.shape for tensor in tensors)
    return fits and native_fault("forward", query.dtype == torch.float64) is None


@once
def native_fault(name: Literal["forward", "back"], double: bool) -> str | None:
    """Describe why a kernel cannot be used in this process; None if it can."""
    from nfm.native import selftest

    return selftest.fault(name, double, attend_by_views)


def _meet(
    size: Sequence[int], source: Sequence[int], rescale: Rescale, device: torch.device
) -> _Meeting:
    return _Meeting(
        tuple(_meet_axis(n, m, rescale, device) for n, m in zip(size, source, strict=True))
    )


def _meet_axis(target: int, source: int, rescale: Rescale, device: torch.device) -> _Axis:
    if target % source == 0:
        return _Axis(source, target // source, 1, None)
    window = 1 if rescale == "nearest" else window_size(source, target)
    if target * window == source:
        return _Axis(target, 1, window, None)
    index = window_index(source, target, window, device).reshape(-1)
    return _Axis(target, 1, window, index)


def _scores(query: Tensor, key: Tensor, meeting: _Meeting) -> Tensor:
    """``(B, M, dk, *size), (B, M * dk, *source) -> (B, M, S, *size)``."""
    key = torch.unflatten(key, 1, (query.shape[1], -1))
    product = meeting.of_reader(query) * meeting.of_source(key)
    return meeting.windows_to_slots(product.sum(2))


def _mix(weights: Tensor, value: Tensor, meeting: _Meeting) -> Tensor:
    """``(B, M, S, *size), (B, M * dv, *source) -> (B, M, dv, *size)``."""
    value = torch.unflatten(value, 1, (weights.shape[1], -1))
    split = meeting.slots_to_windows(weights).unsqueeze(2)
    mixed = (split * meeting.of_source(value)).sum([5 + 3 * i for i in range(len(meeting.axes))])
    size = [axis.outer * axis.repeat for axis in meeting.axes]
    return mixed.reshape(*value.shape[:3], *size)
