"""One function for a sequence, whatever does the work behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from rims.batching import RepeatedInput
from rims.parameters import Parameters
from rims.scan import fast, paths, reference
from rims.scan.reference import ScanOutput
from rims.step import RIMCell, State


def scan(
    cell: RIMCell,
    input: Tensor,
    state: State,
    p: Parameters | None = None,
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
        p: the parameters of ``cell``. Default: as they are now.
        reset: bool ``(T, B)``; where true the state starts anew before that step.
        valid: bool ``(T, B)``; where false the step is padding and the state stays as it was.
        record: also return both attentions of every step. The rest stays as it is without.
        repeated: the same as ``input``, each different row once; what can, makes use of it.

    Returns:
        ``ScanOutput``; the attentions are ``None`` unless recorded.
    """
    p = Parameters.of(cell) if p is None else p
    path = paths.choose(cell, input, p, (*state, reset, valid))
    if path == "reference":
        return reference.loop(cell, input, state, p, reset=reset, valid=valid, record=record)
    did = fast.scan(path, cell, input, state, p, reset=reset, valid=valid, repeated=repeated)
    if not record:
        return did
    # Who was active is known; the loop tells with which attentions.
    with torch.no_grad():
        seen = reference.loop(
            cell, input, state, p, reset=reset, valid=valid, record=True, active=did.active
        )
    return did._replace(input_attention=seen.input_attention, communication=seen.communication)
