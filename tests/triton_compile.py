"""Compile Triton's kernels for a device that need not be there; a script.

It calls the recurrence with tensors on the CPU, as a layer would, but every kernel is compiled and
not launched. Prints one line of JSON per kernel.
"""

from __future__ import annotations

import functools
import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget

from rims import RIM_GRUCell, RIM_LSTMCell
from rims.scan import hoisted
from rims.scan.problem import Flags, Rules, States, Weights
from rims.scan.recurrence import Carry
from rims.scan.triton.recurrence import TritonRecurrence


class _AbsentDevice:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@torch.no_grad()
def compile_kernels(kind: type[RIM_LSTMCell] | type[RIM_GRUCell], dtype: torch.dtype) -> None:
    """Both kernels of a layer of 6 mechanisms of 50 features, 4 of them active."""
    cell = kind(600, 300, 6, 4, dtype=dtype)
    w = Weights.of(cell)
    state = torch.zeros(5, 300, dtype=dtype)
    c = state if cell.num_states == 2 else None
    carry = Carry(state.clone(), c, state.clone(), c)
    flags = Flags(torch.zeros(2, 5, dtype=torch.bool), None)
    input = torch.zeros(2, 5, 600, dtype=dtype)
    recurrence = TritonRecurrence(w, Rules(4, 4, False), States(state, c), flags)
    out, saved = hoisted.forward(recurrence, input, save=True)
    assert saved is not None
    hoisted.backward(recurrence, out.h, carry, input, saved, input_needs_grad=True)


def main(capability: str, *names: str) -> None:
    """For a compute capability such as 80: ``lstm float32`` and the like."""
    triton.runtime.driver.set_active(_AbsentDevice(int(capability)))
    run = triton.JITFunction.run

    @functools.wraps(run)
    def only_compile(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        compiled = run(self, *args, **kwargs | {"warmup": True})
        size, shared = len(compiled.asm["cubin"]), compiled.metadata.shared
        name = self.__name__
        print(json.dumps({"kernel": name, "cubin": size, "shared": shared}), flush=True)

    triton.JITFunction.run = only_compile
    for name in names:
        kind, dtype = name.split()
        compile_kernels({"lstm": RIM_LSTMCell, "gru": RIM_GRUCell}[kind], getattr(torch, dtype))


if __name__ == "__main__":
    main(*sys.argv[1:])
