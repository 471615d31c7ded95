"""The kernels of reading against PyTorch, on small maps that take all their branches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nfm.native import build, function
from nfm.native.function import InPyTorch, Rules
from rims.native import trust

#: The reader's map, and maps that are as large, smaller, larger, and of sizes that do not divide.
_SIZE, _SOURCES = (4, 6), ((4, 6), (2, 3), (8, 12), (5, 7))
_BATCH, _HEADS, _KEY, _VALUE = 1, 2, 3, 5

_RULES = (
    Rules(_HEADS, 3, "softmax", "nearest", null_slot=False),
    Rules(_HEADS, 2, "threshold", "space_to_depth", null_slot=True),
)


def fault(name: Literal["forward", "back"], double: bool, in_pytorch: InPyTorch) -> str | None:
    """Describe what is wrong with a kernel on this machine; None if nothing is.

    Args:
        name: which kernel.
        double: the precision.
        in_pytorch: computes the same.
    """
    code = build.code(name, double)
    what = f"{'gradients of ' if name == 'back' else ''}NFM's reading, float{64 if double else 32}"
    dtype = torch.float64 if double else torch.float32
    return trust.fault(code, _pairs(name, dtype, in_pytorch), what)


def _pairs(name: str, dtype: torch.dtype, in_pytorch: InPyTorch) -> trust.Pairs:
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(size: int, source: tuple[int, ...]) -> Tensor:
        shape = (_BATCH, _HEADS * size, *source)
        return torch.randn(shape, generator=generator, dtype=dtype, device="cpu")

    for rules in _RULES:
        query = draw(_KEY, _SIZE)
        memory = [draw(size, source) for source in _SOURCES for size in (_KEY, _VALUE)]
        options = rules._asdict()
        if name == "forward":
            with torch.no_grad():
                expected = in_pytorch(query, function.entries(memory), **options)
                yield from zip(function.forward(rules, query, memory), expected, strict=True)
            continue
        # Also where gradients are off, as in inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [tensor.clone().requires_grad_() for tensor in (query, *memory)]
            found = in_pytorch(leaves[0], function.entries(leaves[1:]), **options)
            read, weights = (part.detach() for part in found)
            wanted = torch.autograd.grad([*found], leaves, [read, weights])
        got = function.backward(rules, read, weights, query, memory, weights)
        yield from zip(got, wanted, strict=True)
