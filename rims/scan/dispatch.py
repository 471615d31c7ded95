"""One function for a sequence, whatever does the work behind it."""

from __future__ import annotations

from torch import Tensor

from rims.batching import RepeatedInput
from rims.scan import fast, paths, reference
from rims.scan.reference import ScanOutput
from rims.step import RIMCell, State


def scan(
    cell: RIMCell,
    input: Tensor,
    state: State,
    *,
    reset: Tensor | None = None,
    valid: Tensor | None = None,
    record: bool = False,
    repeated: RepeatedInput | None = None,
) -> ScanOutput:
    """Run ``cell`` over ``input`` from ``state``, the fastest way there is.

    Args:
        cell: the step.
        input: ``(T, B, I)``, with slots ``(T, B, S, I)``; at least one step.
        state: ``(h, c)`` or ``(h,)``, each ``(B, D)``.
        reset: bool ``(T, B)``; where true the state starts anew before that step.
        valid: bool ``(T, B)``; where false the step is padding and the state stays as it was.
        record: also return both attentions of every step.
        repeated: the same as ``input``, each different row once; what can, makes use of it.

    Returns:
        ``ScanOutput``; the attentions are ``None`` unless recorded.
    """
    path = paths.choose(cell, input, record=record)
    if path == "reference":
        return reference.loop(cell, input, state, reset=reset, valid=valid, record=record)
    return fast.scan(path, cell, input, state, reset=reset, valid=valid, repeated=repeated)
