"""Record, on request, which mechanisms of a model were active and who read whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rims.layers import RIMLayer
from rims.scan import ScanOutput


class Trace:
    """What the RIM layers of a model did while :func:`trace` was open.

    Every mapping goes from the name of a cell inside the model (``"core.cells.0"``) to one tensor.
    Calls made one after the other are joined along time, so stepping an agent gives one record.
    """

    def __init__(self) -> None:
        self._scans: dict[str, list[ScanOutput]] = {}

    def add(self, name: str, scan: ScanOutput) -> None:
        """Append what one cell did over one call."""
        self._scans.setdefault(name, []).append(scan)

    @property
    def active(self) -> dict[str, Tensor]:
        """Which mechanisms were active: bool ``(T, B, N)``."""
        return {n: torch.cat([s.active for s in scans]) for n, scans in self._scans.items()}

    @property
    def input_attention(self) -> dict[str, Tensor]:
        """Weight on the null slot and on the input: ``(T, B, N, 2)``."""
        return {n: _join([s.input_attention for s in scans]) for n, scans in self._scans.items()}

    @property
    def communication(self) -> dict[str, Tensor]:
        """Weight from reader to read, per head: ``(T, B, M, N, N)``."""
        return {n: _join([s.communication for s in scans]) for n, scans in self._scans.items()}


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


def _join(parts: list[Tensor | None]) -> Tensor:
    return torch.cat([part for part in parts if part is not None])
