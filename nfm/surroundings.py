"""Context that changes a call: gradients, recomputation, function transforms.

A layer that depends on more than its arguments needs this: the context of a recomputation can
differ from that of the first computation.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import NamedTuple, Self

import torch


class Surroundings(NamedTuple):
    """Whether gradients are on, and how many checkpoints and transforms something is inside of."""

    gradients: bool
    checkpoints: int
    transforms: int

    @classmethod
    def now(cls) -> Self:
        """The surroundings of the caller."""
        if torch.compiler.is_compiling():  # which handles these itself
            return cls(True, 0, 0)
        level = torch._C._functorch.maybe_current_level() or 0
        return cls(torch.is_grad_enabled(), num_checkpoints(), level)

    def unlike(self, outer: Surroundings) -> str | None:
        """Describe how a part differs from the call it belongs to; ``None`` if it does not."""
        if self.transforms != outer.transforms:
            return "inside a function transform (torch.func)"
        if outer.gradients and self.checkpoints > outer.checkpoints:
            return "inside torch.utils.checkpoint"
        if outer.gradients and not self.gradients:
            return "without gradients (torch.no_grad)"
        return None


def num_checkpoints() -> int:
    """Number of functions of :mod:`torch.utils.checkpoint` that the caller is inside of.

    PyTorch does not report this. Recomputed parts are inside of some, too.
    """
    if torch.compiler.is_compiling():  # there is no stack
        return 0
    frame: FrameType | None = sys._getframe(1)
    count = 0
    while frame is not None:
        count += frame.f_globals.get("__name__") == torch.utils.checkpoint.__name__
        frame = frame.f_back
    return count


def refuse_checkpoint(where: str, what: str) -> None:
    """Raise if something would be recomputed that cannot be the same.

    Raises:
        RuntimeError: inside of :mod:`torch.utils.checkpoint`.
    """
    if num_checkpoints():
        raise RuntimeError(
            f"{where}: {what} inside torch.utils.checkpoint would be other numbers when they are "
            "computed again. Leave it out, or the checkpoint."
        )
