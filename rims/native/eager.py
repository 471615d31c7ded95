"""Whether a call suits machine code and hand-written gradients: probes of PyTorch's internals."""

from __future__ import annotations

import torch
from torch import Tensor

from rims.native.memory import PLAIN


def why_not_eager(*tensors: Tensor | None) -> str | None:
    """Why a call cannot read the memory of ``tensors`` by its address; None if it can.

    A graph that is being compiled decides this when it runs; only its export to ONNX is refused.
    """
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms it"
    if torch.compiler.is_compiling():  # exporting to ONNX either compiles or traces
        return "it is being exported to ONNX" if torch.onnx.is_in_onnx_export() else None
    if torch._C._get_tracing_state() is not None:
        return "it is being traced"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode watches every operation"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode derivatives are on"
    return _unusual([tensor for tensor in tensors if tensor is not None])


def _unusual(tensors: list[Tensor]) -> str | None:
    for tensor in tensors:
        if type(tensor) not in PLAIN:
            return f"it is made of {type(tensor).__name__}"
        if tensor.is_neg():
            return "it is made of numbers that are negated when they are read"
        if tensor.device != tensors[0].device:
            return f"it is made of tensors on {tensor.device} and on {tensors[0].device}"
    return None


def needs_autograd(*grads: Tensor | None) -> bool:
    """Whether autograd must replace a hand-written gradient.

    It must where a gradient is itself differentiated, where gradients of many outputs are taken at
    once, and where the numbers of ``grads`` differ from those in memory, as behind
    ``z.conj().imag``.
    """
    batched = torch._C._functorch
    return torch.is_grad_enabled() or any(
        grad is not None
        and (
            grad.is_neg() or batched.is_batchedtensor(grad) or batched.is_legacy_batchedtensor(grad)
        )
        for grad in grads
    )


def is_recomputing() -> bool:
    """Whether a backward pass is running, in which checkpointing recomputes a forward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
