"""Earlier maps at the size of the one that reads them: "automatic type conversion". Pure.

arXiv:2010.08012, section 3.2.2. Shapes: B batch, C channels, S slots, ``*size`` one to three axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

#: How a map larger than its reader is read, see :func:`to_slots`.
Rescale = Literal["space_to_depth", "nearest"]


def window_size(source: int, target: int) -> int:
    """Points of a window along one axis: how many of ``source`` one of ``target`` may read.

    Args:
        source: length of the map that is read.
        target: length of the map that reads.

    Returns:
        1 where the source is not larger, else ``source / target`` rounded up.

    Example:
        >>> window_size(8, 4), window_size(7, 4), window_size(2, 4)
        (2, 2, 1)
    """
    return math.ceil(source / target) if source > target else 1


def window_index(source: int, target: int, window: int, device: torch.device) -> Tensor:
    """Indices of the source's points in the window of each point of the target.

    The window of point y begins at ``floor(y * source / target)``, the point that nearest
    neighbour would take. With ``window = ceil(source / target)`` the windows cover every point of
    the source and end with its last, also where the sizes do not divide; there they overlap.

    Args:
        source: length of the map that is read.
        target: length of the map that reads.
        window: of :func:`window_size`; 1 gives nearest neighbour in both directions.
        device: where the index is to be.

    Returns:
        ``(target, window)`` integers.

    Example:
        >>> window_index(7, 4, 2, torch.device("cpu")).tolist()
        [[0, 1], [1, 2], [3, 4], [5, 6]]
    """
    first = torch.arange(target, device=device) * source // target
    return first[:, None] + torch.arange(window, device=device)


def to_slots(map: Tensor, size: Sequence[int], *, rescale: Rescale = "space_to_depth") -> Tensor:
    r"""Slots of an earlier map that each point of a map of ``size`` may read: one or more.

    Along each axis: equal lengths are left as they are; a shorter map is repeated (nearest
    neighbour, ``floor(y * source / target)``); a longer one gives every point of its window (see
    :func:`window_index`) as a slot of its own, or with ``rescale="nearest"`` only the first.

    Args:
        map: ``(B, C, *source)``.
        size: of the reader, as many axes as the map has.
        rescale: ``"space_to_depth"`` (default) or ``"nearest"``.

    Returns:
        ``(B, S, C, *size)``. With windows of b points along each axis, slot ``dy * b + dx`` holds
        the points at offset (dy, dx) of the windows.

    Example:
        >>> to_slots(torch.arange(4.0).view(1, 1, 4), (2,)).tolist()
        [[[[0.0, 2.0]], [[1.0, 3.0]]]]
        >>> to_slots(torch.arange(2.0).view(1, 1, 2), (4,)).tolist()
        [[[[0.0, 0.0, 1.0, 1.0]]]]
    """
    slots = map.unsqueeze(1)
    for axis, target in enumerate(size, start=3):
        source = slots.shape[axis]
        window = 1 if rescale == "nearest" else window_size(source, target)
        index = window_index(source, target, window, map.device)
        # (B, S, C, ..., target * window, ...) -> (B, S, window, C, ..., target, ...)
        chosen = slots.index_select(axis, index.T.reshape(-1))
        chosen = torch.unflatten(chosen, axis, (window, target))
        slots = chosen.movedim(axis, 2).flatten(1, 2)
    return slots
