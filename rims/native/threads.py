"""Run machine code on several threads, where possible on those PyTorch computes with."""

from __future__ import annotations

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run(body: int, table: int, num_threads: int) -> None:
    """Call the function at address ``body`` with ``table`` once on each of ``num_threads``."""
    if num_threads <= 1:
        _Body(body)(table)
        return
    team = _torch_team()
    if team is not None:
        # PyTorch's own threads wait, spinning, for the next piece of work: a second team would
        # compete with them for the cores.
        team(body, table, num_threads, 0)
        return
    pool = _pool(num_threads)
    list(pool.map(lambda _: _Body(body)(table), range(num_threads)))


@functools.cache
def _torch_team() -> Any:
    """GOMP_parallel of the OpenMP runtime PyTorch brought along, if it is GNU's."""
    for library in sorted(Path(torch.__file__).parent.glob("lib/libgomp*")):
        try:
            parallel = ctypes.CDLL(str(library)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="rims")


if hasattr(os, "register_at_fork"):
    # A forked process has the pool's queue but none of its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
