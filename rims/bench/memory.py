"""Peak memory of one pass.

On the CPU every figure comes from a fresh process, ``python -m rims.bench.memory``: in one that has
worked already, the allocator's leftovers would hide what a pass needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rims.bench.cases import Case, Device
from rims.bench.timing import Work, make_layers, run_once

#: Bytes of a megabyte here.
MB = 10**6

#: Below this the allocator's rounding is much of a figure, and a ratio to it means nothing.
_LEAST_MB_OF_A_RATIO = 0.1


class Memory(NamedTuple):
    """Peak memory of one pass above the level just before it, in megabytes of 10**6 bytes."""

    ours_mb: float
    baseline_mb: float

    @property
    def ratio(self) -> float | None:
        """Ours over the baseline's; None where the baseline's is next to nothing."""
        return self.ours_mb / self.baseline_mb if self.baseline_mb >= _LEAST_MB_OF_A_RATIO else None


def can_measure(device: Device) -> bool:
    """Whether peak memory can be read: not on the CPU under Windows, which has no ``resource``."""
    return device == "cuda" or importlib.util.find_spec("resource") is not None


def measure_memory(case: Case, device: Device, threads: int) -> Memory:
    """Measure both layers of ``case``.

    Raises:
        RuntimeError: if a process ends without a figure, as one that ran out of memory.
    """
    if device == "cuda":
        ours, baseline = (_cuda_peak(layer, case) for layer in make_layers(case, device))
    else:
        ours, baseline = (_in_fresh_process(case, place, threads) for place in (0, 1))
    return Memory(round(ours / MB, 3), round(baseline / MB, 3))


def _cuda_peak(layer: nn.Module, case: Case) -> int:
    _warm_up(layer, case)
    device = next(layer.parameters()).device
    input = torch.randn(case.steps, case.batch, case.size.input_size, device=device)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run_once(layer, input, case.work)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    layer.zero_grad(set_to_none=True)
    return peak


def _in_fresh_process(case: Case, place: int, threads: int) -> int:
    order = {"case": case.to_dict(), "place": place, "threads": threads}
    return peak_in_fresh_process("rims.bench.memory", order)


def peak_in_fresh_process(module: str, order: dict[str, Any]) -> int:
    """The number that ``python -m module`` prints when given ``order`` as JSON.

    Raises:
        RuntimeError: if the process ends without a figure.
    """
    # -P and the path: the process has to import this package, not one that lies in the folder the
    # user happens to be in.
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, json.dumps(order)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the process measuring memory ended with {done.returncode} ({why})")
    return int(done.stdout.split()[-1])


def _cpu_peak(case: Case, place: int, threads: int) -> int:
    """Bytes that one pass adds to the peak of this process, which has done nothing else."""
    torch.set_num_threads(threads)
    layer = make_layers(case, "cpu")[place]
    _warm_up(layer, case)
    input = torch.randn(case.steps, case.batch, case.size.input_size)
    return peak_of(lambda: run_once(layer, input, case.work))


def peak_of(work: Work) -> int:
    """Bytes that ``work`` adds to this process's memory at its peak."""
    _give_back_free_memory()
    _forget_peak()
    before = _peak_bytes()
    work()
    return _peak_bytes() - before


def _warm_up(layer: nn.Module, case: Case) -> None:
    """A tiny pass, so that what is loaded or compiled at the first one is there."""
    device = next(layer.parameters()).device
    run_once(layer, torch.randn(2, 2, case.size.input_size, device=device), case.work)
    layer.zero_grad(set_to_none=True)


def _give_back_free_memory() -> None:
    """So that the pass has to take anew what loading and compiling left to the allocator."""
    gc.collect()
    # there is malloc_trim in glibc only; elsewhere the figure may be a little too small
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _forget_peak() -> None:
    """Reset the peak to the present level, if the system can (Linux)."""
    # elsewhere a pass shows only as far as it exceeds the peak of loading torch
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    # Linux: not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource  # there is none on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(_cpu_peak(Case.from_dict(given["case"]), given["place"], given["threads"]))
