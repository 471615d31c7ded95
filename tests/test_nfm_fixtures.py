"""NFM against arrays made by its authors' code: values, attention and all gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import nfm
from fixtures import Arrays, files, read, tensor, weights
from nfm.module import NFM

TOLERANCE: Any = {"rtol": 1e-9, "atol": 1e-9}


def modules_of(arrays: Arrays) -> list[NFM]:
    def told(name: str) -> Any:
        return arrays[f"meta.{name}"]

    top_k = int(told("top_k"))
    made = [
        NFM(
            int(channels),
            key_size=int(told("key_size")),
            value_size=int(told("value_size")),
            num_heads=int(told("num_heads")),
            top_k=None if top_k < 0 else top_k,
            topk_rule="threshold",
            rescale="space_to_depth" if told("position_attend") else "nearest",
        )
        .double()
        .eval()
        for channels in told("channels")[: int(told("num_positions"))]
    ]
    nfm.load_authors_weights(made, weights(arrays))
    for module, reads, writes in zip(made, told("read"), told("write"), strict=True):
        module.reads, module.writes = bool(reads), bool(writes)
    return made


@pytest.mark.parametrize("path", files("nfm_*.npz"))
def test_nfm_equals_the_authors_code(path: Path) -> None:
    arrays = read(path)
    modules = modules_of(arrays)
    inputs = [tensor(arrays[f"inputs.{p}"]).requires_grad_() for p in range(len(modules))]
    seen: dict[int, torch.Tensor] = {}
    for p, module in enumerate(modules):
        module.attention.register_forward_hook(
            lambda _module, _args, out, p=p: seen.update({p: out.weights})
        )
    memory: nfm.Memory = ()
    loss = torch.zeros((), dtype=torch.float64)
    for p, (module, input) in enumerate(zip(modules, inputs, strict=True)):
        output, memory = module(input, memory)
        torch.testing.assert_close(output, tensor(arrays[f"outputs.{p}"]), **TOLERANCE)
        loss = loss + (output * tensor(arrays[f"cotangent.{p}"])).sum()
    torch.testing.assert_close(loss, tensor(arrays["loss"]), **TOLERANCE)
    assert seen
    for p, weights_read in seen.items():  # (B, M, S, Y, X), theirs (B, Y, X, M, S)
        expected = tensor(arrays[f"attention_probs.{p}"])
        torch.testing.assert_close(weights_read.permute(0, 3, 4, 1, 2), expected, **TOLERANCE)
    loss.backward()  # type: ignore[no-untyped-call]
    for p, (module, input) in enumerate(zip(modules, inputs, strict=True)):
        expected = tensor(arrays[f"grad.inputs.{p}"])
        torch.testing.assert_close(input.grad, expected, **TOLERANCE)
        for name, parameter in module.named_parameters():
            expected = tensor(arrays[f"grad.{p}.{name}"])
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found, expected, **TOLERANCE)
