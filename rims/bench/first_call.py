"""Time of a layer's first calls, compilation included, each in a fresh process.

``python -m rims.bench.first_call`` is such a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


class FirstCalls(NamedTuple):
    """Seconds of the first calls of a process, after everything was imported but compilers."""

    forward: float
    backward: float
    again: float  # forward and backward once more
    self_test: float  # of the first two: comparing both kernels with PyTorch


def measure_first_calls(threads: int) -> tuple[FirstCalls, FirstCalls]:
    """First with an empty cache of compiled kernels, then with the one that process left.

    Raises:
        RuntimeError: if a process fails.
    """
    with tempfile.TemporaryDirectory() as cache:
        return _in_fresh_process(threads, cache), _in_fresh_process(threads, cache)


def to_markdown(runs: tuple[FirstCalls, FirstCalls]) -> str:
    """A table of both."""
    lines = [
        "RIM_LSTM(600, 300, 6, 4), B=16 T=50, seconds:",
        "",
        "| | first forward | first backward | both again | self-tests in the first two |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, run in zip(("nothing compiled before", "a second process"), runs, strict=True):
        lines.append(
            f"| {name} | {run.forward:.2f} | {run.backward:.2f} | {run.again:.3f} "
            f"| {run.self_test:.4f} |"
        )
    return "\n".join(lines) + "\n"


def _in_fresh_process(threads: int, cache: str) -> FirstCalls:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rims.bench.first_call", str(threads)],
        env={**os.environ, "PYTHONPATH": path, "RIMS_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(
            f"the process measuring first calls ended with {done.returncode} ({why})"
        )
    return FirstCalls(*json.loads(done.stdout))


def _measure(threads: int) -> FirstCalls:
    import torch

    import rims
    from rims.native import trust
    from rims.native.build import Code

    spent, plain = [], trust.fault

    def timed(code: Code, pairs: trust.Pairs, what: str) -> str | None:
        begin = time.perf_counter()
        found = plain(code, pairs, what)
        spent.append(time.perf_counter() - begin)
        return found

    trust.fault = timed
    torch.set_num_threads(threads)
    layer, input = rims.RIM_LSTM(600, 300, 6, 4), torch.randn(50, 16, 600)
    times = [time.perf_counter()]
    output, _ = layer(input)
    times.append(time.perf_counter())
    output.sum().backward()
    times.append(time.perf_counter())
    layer(input)[0].sum().backward()
    times.append(time.perf_counter())
    first, second, third = (after - before for before, after in pairwise(times))
    return FirstCalls(first, second, third, sum(spent))


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
