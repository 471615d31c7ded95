"""Machine code is compared with PyTorch before a process uses it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from rims.native.build import Code

#: How far numbers may be apart, in parts of the largest: sums of some hundred terms differ by less.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


#: What machine code computed, and the same by PyTorch.
Pairs = Iterable[tuple[Tensor | None, Tensor | None]]


def fault(code: Code, pairs: Pairs, what: str) -> str | None:
    """Describe what is wrong with machine code, and warn; None if nothing is.

    Args:
        code: the machine code.
        pairs: see :data:`Pairs`.
        what: what it is, for people.
    """
    with torch.autocast("cpu", enabled=False):  # its rounding is not a fault of machine code
        right = all(_near(got, expected) for got, expected in pairs)
    if right:
        return None
    remedy = (
        "Set RIMS_CACHE_DIR to another folder, and report this"
        if code.path is None
        else f"Delete {code.path}, start again, and report it if this warning comes back"
    )
    warnings.warn(
        f"rims: the machine code of {what} computes wrong numbers. PyTorch computes in its place, "
        f"more slowly. {remedy}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return f"the machine code of {what} computes wrong numbers on this machine"


def _near(got: Tensor | None, expected: Tensor | None) -> bool:
    if got is None or expected is None:
        return got is expected
    if not expected.is_floating_point():
        return torch.equal(got, expected)
    # Not abs().max() <= bound alone: that is false for NaN as it has to be.
    bound = _TOLERANCE[expected.dtype] * (1e-3 + expected.abs().max())
    return bool((got - expected).abs().max() <= bound)
