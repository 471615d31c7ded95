"""The values allowed in a checkpoint: plain values, and tensors stored in full."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_PLAIN = (int, float, str, bool, bytes, type(None))

#: Bytes that an expanded tensor may stand for.
_MOST_EXPANDED = 2**28


def require_plain_values(content: Any) -> None:
    """Refuse loaded content that is not a dictionary of tensors and plain values.

    A tensor can claim any shape over a single number, as one that was expanded does. One that
    claims much more than is stored of it is refused: computing with it would take that memory.

    Raises:
        TypeError: for anything else.
        RecursionError: for nesting without end.
    """
    if not isinstance(content, dict):
        raise TypeError("no dictionary")
    _require(content)


def _require(value: Any) -> None:
    if isinstance(value, dict):
        for name, part in value.items():
            if not isinstance(name, str | int):
                raise TypeError(f"a name of type {type(name).__name__}")
            _require(part)
    elif isinstance(value, list | tuple):
        for part in value:
            _require(part)
    elif isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise TypeError("a sparse tensor")
        stored = value.untyped_storage().nbytes()
        if value.numel() * value.element_size() > max(stored, _MOST_EXPANDED):
            raise TypeError("a tensor larger than what is stored of it")
    elif not isinstance(value, _PLAIN):
        raise TypeError(f"a value of type {type(value).__name__}")
