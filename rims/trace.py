"""Record, on request, which mechanisms of a model were active and who read whom."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rims.layers import RIMLayer
from rims.scan import ScanOutput


class Usage(NamedTuple):
    """How the mechanisms of one cell were used."""

    share: Tensor  # (N,) share of steps and samples in which a mechanism was active
    entropy: Tensor  # () in nats, of the shares scaled to sum to one; log N where all are equal
    switching_rate: Tensor  # (N,) share of steps at which a mechanism became active or inactive


class Trace:
    """What the RIM layers of a model did while :func:`trace` was open.

    Every mapping goes from the name of a cell inside the model (``"core.cells.0"``) to tensors.
    Calls made one after the other are joined along time, so stepping an agent gives one record;
    calls of different batch sizes cannot be joined and raise ``ValueError``. Padding of packed
    sequences counts as inactive. ``print(trace)`` shows the usage as a table.
    """

    def __init__(self) -> None:
        self._scans: dict[str, list[ScanOutput]] = {}

    def add(self, name: str, scan: ScanOutput) -> None:
        """Append what one cell did over one call."""
        self._scans.setdefault(name, []).append(scan)

    @property
    def active(self) -> dict[str, Tensor]:
        """Which mechanisms were active: bool ``(T, B, N)``."""
        return {n: _join(n, [s.active for s in scans]) for n, scans in self._scans.items()}

    @property
    def input_attention(self) -> dict[str, Tensor]:
        """Weight on the null slot and on the input's elements: ``(T, B, N, 1 + S)``."""
        return {n: _join(n, [s.input_attention for s in scans]) for n, scans in self._scans.items()}

    @property
    def communication(self) -> dict[str, Tensor]:
        """Weight from reader to read, per head: ``(T, B, M, N, N)``."""
        return {n: _join(n, [s.communication for s in scans]) for n, scans in self._scans.items()}

    @property
    def usage(self) -> dict[str, Usage]:
        """Statistics of :attr:`active`."""
        return {name: _usage(active) for name, active in self.active.items()}

    def __str__(self) -> str:
        lines = ["cell, mechanism         share active   switching rate"]
        for name, usage in self.usage.items():
            for m, (share, rate) in enumerate(zip(usage.share, usage.switching_rate, strict=True)):
                lines.append(f"{name + ', ' + str(m):<22} {share:>13.1%} {rate:>16.1%}")
            most = math.log(len(usage.share))
            lines.append(f"{name}: entropy of use {usage.entropy:.3f} of at most {most:.3f} nats")
        return "\n".join(lines)


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Record every RIM layer inside ``model`` while the context is open.

    Recorded tensors are detached. A layer that is not being traced does no extra work.

    Args:
        model: any module with :class:`rims.RIM_LSTM` or :class:`rims.RIM_GRU` layers inside.

    Yields:
        A :class:`Trace`, filled as the model runs.

    Example:
        >>> import rims
        >>> layer = rims.RIM_GRU(8, 12, num_rims=3, k=2)
        >>> with rims.trace(layer) as t:
        ...     _ = layer(torch.randn(5, 2, 8))
        >>> t.active["cells.0"].sum(-1).unique().tolist()
        [2]
        >>> t.usage["cells.0"].share.shape
        torch.Size([3])
    """
    record = Trace()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, RIMLayer)}
    added = {n: _Recorder(record, f"{n}." if n else "") for n in layers}
    for name, layer in layers.items():
        layer.recorders.append(added[name])
    try:
        yield record
    finally:
        for name, layer in layers.items():
            layer.recorders.remove(added[name])


class _Recorder:
    def __init__(self, record: Trace, prefix: str) -> None:
        self.record, self.prefix = record, prefix

    def __call__(self, index: int, scan: ScanOutput) -> None:
        detached = scan._replace(
            input_attention=None if scan.input_attention is None else scan.input_attention.detach(),
            communication=None if scan.communication is None else scan.communication.detach(),
        )
        self.record.add(f"{self.prefix}cells.{index}", detached)


def _join(name: str, parts: list[Tensor] | list[Tensor | None]) -> Tensor:
    tensors = [part for part in parts if part is not None]
    batches = {part.shape[1] for part in tensors}
    if len(batches) > 1:
        raise ValueError(
            f"rims.trace: calls of {name} had batch sizes {sorted(batches)} and cannot be joined "
            "along time. Use one trace per batch size."
        )
    return torch.cat(tensors)


def _usage(active: Tensor) -> Usage:
    share = active.double().mean((0, 1))  # (T, B, N) -> (N,)
    part = share / share.sum()
    changed = active[1:] != active[:-1]
    return Usage(
        share=share,
        entropy=-torch.special.xlogy(part, part).sum(),
        switching_rate=changed.double().mean((0, 1)) if len(changed) else torch.zeros_like(share),
    )
