"""The handler that XLA calls, called by a frame made by hand."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from rims.jax.native import handler
from rims.native import trust

_Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def fault() -> str | None:
    """Describe what is wrong with the handler on this machine; None if nothing is."""
    handle, help_out = handler.parts()
    what = "calls from XLA"
    return trust.fault(handle, [_handled(handle.address)], what) or trust.fault(
        help_out, [_helped(help_out.address)], what
    )


def _handled(address: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a call without helpers leaves in the table, the job and the frame; and should leave."""
    first, job = np.array([3], dtype=np.int32), _words(32)
    buffers = [_buffer(_address_of(array)) for array in (first, job)]
    operand, result = _buffer(1000), _buffer(2000)
    # The table, then operand (entry, bytes of a step), result (entry), scratch (entry, offset).
    plan = np.array([6, 0, 0, 1, 1, *(10, 11, 12, 13, 14, 15), *(2, 8), 3, *(4, 64)], np.int64)
    attributes = np.array([_address_of(attribute := _words(3))], np.int64)
    attribute[handler._ARRAY_DATA] = _address_of(plan)
    args = np.array([_address_of(buffers[0]), _address_of(operand)], np.int64)
    rets = np.array([_address_of(result), _address_of(buffers[1])], np.int64)
    frame = _words(32)
    for where, array in ((handler._ARGS, args), (handler._RETS, rets)):
        frame[where + handler._COUNT] = len(array)
        frame[where + handler._POINTERS] = _address_of(array)
    frame[handler._ATTRS + handler._ATTRIBUTES] = _address_of(attributes)
    seen: list[int] = []
    kernel = _Kernel(lambda table: seen.append(table))
    entry = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(address)
    error = entry(_address_of(frame), ctypes.cast(kernel, ctypes.c_void_p).value, 0)
    table = _address_of(job) + 8 * handler.TABLE
    got = [error, *seen, *job[handler.TABLE : handler.TABLE + 6], job[handler._PENDING]]
    wanted = [0, table, 13, 14, 1000 + 3 * 8, 2000, _address_of(job) + 64, 15, 0]
    return torch.tensor([int(n) for n in got]), torch.tensor(wanted)


def _helped(address: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What one of two threads leaves, and should leave."""
    seen: list[int] = []
    kernel = _Kernel(lambda table: seen.append(table))
    job = _words(handler.TABLE)
    job[handler._PENDING], job[handler._KERNEL] = 2, ctypes.cast(kernel, ctypes.c_void_p).value
    ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)(_address_of(job))
    table = _address_of(job) + 8 * handler.TABLE
    return torch.tensor([*seen, int(job[handler._PENDING])]), torch.tensor([table, 1])


def _words(count: int) -> np.ndarray:
    return np.zeros(count, dtype=np.int64)


def _buffer(data: int) -> np.ndarray:
    buffer = _words(8)
    buffer[handler._BUFFER_DATA] = data
    return buffer


def _address_of(array: np.ndarray) -> int:
    return int(array.ctypes.data)
