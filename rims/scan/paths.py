"""The paths that compute a sequence, and the choice between them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from rims.native.eager import why_not_eager
from rims.native.once import once
from rims.parameters import Parameters
from rims.scan.problem import Weights, why_no_kernel, why_not
from rims.scan.recurrence import Recurrence
from rims.scan.torch.recurrence import TorchRecurrence
from rims.step import RIMCell

#: ``reference``: the readable loop. ``torch``: hoisted, PyTorch only. ``native``: machine code for
#: the CPU. ``triton``: kernels for CUDA.
Path = Literal["reference", "torch", "native", "triton"]

_HAS_NUMBA = importlib.util.find_spec("numba") is not None


class _Forced:
    """Holds the argument of :func:`scan_path`; TorchDynamo cannot trace context variables."""

    path: Path | None = None


_forced = _Forced()


@contextmanager
def scan_path(path: Path | None) -> Iterator[None]:
    """Compute sequences by one path while open; ``None`` restores the default choice.

    By default a RIM layer takes the fastest path for its device, type and options. The setting
    holds for the whole process.

    Args:
        path: ``"reference"`` loops over the cell and is differentiated by autograd; it is slow,
            and all others are tested against it. ``"torch"`` has the input side before the loop and
            a gradient of its own, in PyTorch on any device. ``"native"`` is machine code for the
            CPU, compiled by Numba on first use. ``"triton"`` runs on CUDA, and only if asked for.

    Raises:
        ValueError: for another name.
        RuntimeError: when a layer runs that this path cannot compute; the message names why.

    Example:
        >>> import rims
        >>> layer = rims.RIM_LSTM(8, 12, 4, 2)
        >>> with rims.scan_path("reference"):
        ...     output, _ = layer(torch.zeros(5, 3, 8))
    """
    if path is not None and path not in get_args(Path):
        raise ValueError(f"scan_path: expected one of {get_args(Path)} or None; got {path!r}.")
    before, _forced.path = _forced.path, path
    try:
        yield
    finally:
        _forced.path = before


def choose(
    cell: RIMCell,
    input: Tensor,
    p: Parameters | None = None,
    others: Sequence[Tensor | None] = (),
) -> Path:
    """The path to run ``cell``, whose parameters are ``p``, over ``input``, (T, B, I).

    ``others`` are its other arguments: states and flags.

    Raises:
        RuntimeError: if a path is forced that is unavailable.
    """
    forced = _forced.path
    if forced == "reference":
        return "reference"
    p = Parameters.of(cell) if p is None else p
    obstacle = why_not(cell) or _obstacle(input, p, others)
    if forced is not None:
        obstacle = obstacle or unavailable(forced, input, cell)
        if obstacle:
            raise RuntimeError(f"scan_path: {forced!r} cannot compute this layer: {obstacle}.")
        return forced
    if obstacle:
        return "reference"
    # Triton's kernels run only if forced: they have not been tested on a real GPU yet.
    return "native" if unavailable("native", input, cell) is None else "torch"


def unavailable(path: Path, input: Tensor, cell: RIMCell) -> str | None:
    """Why ``path`` cannot be taken for tensors like ``input``; None if it can."""
    if path == "native":
        if input.device.type != "cpu":
            return f"it is for the CPU, the input is on {input.device.type}"
        if not _HAS_NUMBA:
            return "numba is not installed"
        # A graph decides when it runs: see :func:`recurrence`.
        is_graph = torch.compiler.is_compiling()
        fault = None if is_graph else native_fault("forward", input.dtype == torch.float64)
        return why_no_kernel(cell, gates=True) or fault
    if path == "triton":
        from rims.scan.triton.recurrence import why_not as why_not_triton

        obstacle = why_no_kernel(cell, gates=False)
        return obstacle or why_not_triton(input.device, input.dtype, Weights.of(cell))
    return None


@once
def native_fault(name: Literal["forward", "back"], double: bool) -> str | None:
    """Why machine code cannot be used in this process; None if it can."""
    from rims.scan.native import selftest

    return selftest.fault(name, double)


def recurrence(path: str, like: Tensor, name: Literal["forward", "back"]) -> type[Recurrence]:
    """Class that computes the recurrent part, or its gradient, for tensors such as ``like``.

    An exported program names the path of the machine it was made on; where that path is unavailable
    PyTorch computes the same.
    """
    device, double = like.device.type, like.dtype == torch.float64
    if path == "native" and device == "cpu" and _HAS_NUMBA and native_fault(name, double) is None:
        from rims.scan.native.recurrence import NativeRecurrence

        return NativeRecurrence
    if path == "triton" and device == "cuda":
        from rims.scan.triton.recurrence import TritonRecurrence

        return TritonRecurrence
    return TorchRecurrence


def _obstacle(input: Tensor, p: Parameters, others: Sequence[Tensor | None]) -> str | None:
    """Why only the readable loop can compute a call, whatever the layer; None if others can."""
    obstacle = why_not_eager(input, *p, *others)
    if obstacle or torch.compiler.is_compiling():
        return obstacle
    dtype = p.weight_hh.dtype
    if any(weight.dtype != dtype for weight in p if weight is not None):
        return "its parameters have different types"
    if input.device.type == "meta" or 0 in input.shape:
        return "there is nothing to compute"
    return None
