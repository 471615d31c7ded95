"""What a process does with machine code, as a process: ``python history_cases.py KIND``.

It prints how far its numbers are from those computed without machine code, in parts of the largest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def _layer(kind: str, dtype: str, gradients: bool) -> float:
    import torch

    import rims

    torch.manual_seed(0)
    layer = getattr(rims, kind)(7, 40, 4, 2, dtype=getattr(torch, dtype))
    input = torch.randn(6, 5, 7, dtype=getattr(torch, dtype))

    def numbers() -> list[Any]:
        layer.zero_grad()
        with torch.set_grad_enabled(gradients):
            output, _ = layer(input)
        if gradients:
            output.square().sum().backward()
        return [output.detach(), *(p.grad for p in layer.parameters() if gradients)]

    got = numbers()
    with rims.scan_path("reference"):
        return _worst(got, numbers())


def _nfm() -> float:
    import torch

    from nfm import fast
    from nfm.attention import MemoryEntry

    torch.manual_seed(0)
    shapes = [(2, 8, 6, 6), *([(2, 8, 6, 6), (2, 12, 6, 6), (2, 8, 3, 3), (2, 12, 3, 3)])]
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]

    def numbers(attend: Callable[..., Any]) -> list[Any]:
        memory = [MemoryEntry(*tensors[i : i + 2]) for i in (1, 3)]
        read, weights = attend(tensors[0], memory, num_heads=4, top_k=2)
        gradients = torch.autograd.grad(read.square().sum() + weights.square().sum(), tensors)
        return [read.detach(), weights.detach(), *gradients]

    return _worst(numbers(fast.attend), numbers(fast.attend_by_views))


#: What XLA makes of its own part is not in question here, and it takes long.
QUICK = {"xla_backend_optimization_level": 0}


def _jax() -> float:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rims.jax import CellSpec, init, scan

    spec = CellSpec(kind="lstm", input_size=7, hidden_size=40, num_rims=4, k=2)
    p, input = init(jax.random.key(0), spec), jax.random.normal(jax.random.key(1), (6, 5, 7))

    def numbers(fast: bool) -> list[Any]:
        def loss(p: Any, input: Any) -> Any:
            output = scan(p, input, fast=fast).output
            return (output**2).sum(), output

        run = jax.jit(
            jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK
        )
        (_, output), grads = run(p, input)
        return [np.asarray(a) for a in jax.tree.leaves((output, grads)) if jnp.size(a)]

    return _worst(numbers(True), numbers(False))


def _worst(got: Iterable[Any], expected: Iterable[Any]) -> float:
    pairs = zip(got, expected, strict=True)
    return max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs if abs(b).max() > 0)


KINDS: dict[str, Callable[[], float]] = {
    "forward": lambda: _layer("RIM_LSTM", "float32", False),
    "training": lambda: _layer("RIM_LSTM", "float32", True),
    "double": lambda: _layer("RIM_LSTM", "float64", True),
    "gru": lambda: _layer("RIM_GRU", "float32", True),
    "nfm": _nfm,
    "jax": _jax,
}


def start(kind: str, cache: Path | None, **variables: str) -> subprocess.Popen[str]:
    """A process of this kind with its kernels in ``cache``, or where these tests have theirs."""
    paths = [str(ROOT), str(ROOT / "tests")]
    given = {"PYTHONPATH": os.pathsep.join(paths), **variables}
    if cache is not None:
        given["RIMS_CACHE_DIR"] = str(cache)
    return subprocess.Popen(
        [sys.executable, __file__, kind],
        env={**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def difference(kind: str, cache: Path | None, **variables: str) -> tuple[float, str]:
    """What a process of this kind prints: the difference, and its warnings."""
    process = start(kind, cache, **variables)
    printed, warned = process.communicate(timeout=300)
    assert process.returncode == 0, warned
    return float(printed), warned


if __name__ == "__main__":
    warnings.simplefilter("always", RuntimeWarning)
    print(KINDS[sys.argv[1]]())
