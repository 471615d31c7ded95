"""Whether autograd must replace a hand-written gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def is_needed(*grads: Tensor | None) -> bool:
    """Whether a gradient is itself to be differentiated, or taken of many outputs at once.

    Or whether its numbers are not those in its memory, as behind ``z.conj().imag``.
    """
    batched = torch._C._functorch
    return torch.is_grad_enabled() or any(
        grad is not None
        and (
            grad.is_neg() or batched.is_batchedtensor(grad) or batched.is_legacy_batchedtensor(grad)
        )
        for grad in grads
    )
