"""Tensors for machine code, which reads and writes memory by its address, unchecked."""

from __future__ import annotations

import torch
from torch import Tensor

#: Types of tensors that are numbers in memory and nothing else.
PLAIN = (Tensor, torch.nn.Parameter)


def address(tensor: Tensor | None, dtype: torch.dtype, count: int) -> int:
    """Address of a dense tensor of ``count`` numbers; 0 if there is no tensor.

    Raises:
        RuntimeError: if the CPU would not find just so many numbers of type ``dtype`` there.
    """
    if tensor is None:
        return 0
    if (
        type(tensor) in PLAIN
        and tensor.is_cpu
        and not tensor.is_neg()
        and tensor.dtype == dtype
        and tensor.numel() == count
        and ((place := tensor.data_ptr()) or not count)
    ):
        return place
    raise RuntimeError(
        f"rims: machine code was to read {count} numbers of {dtype} on the CPU; it was given a "
        f"{type(tensor).__name__} of {tensor.numel()} of {tensor.dtype} on {tensor.device}. Give "
        "all tensors of a call the same batch, type and device and parameters the shapes of their "
        "module, and let hooks give back what they got."
    )
