"""Record, on request, which mechanisms of a model were active and who read whom."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rims.base_layer import RIMLayer
from rims.scan import ScanOutput


class Usage(NamedTuple):
    """How the mechanisms of one cell were used, over the steps that are not padding."""

    share: Tensor  # (N,) share of steps and samples in which a mechanism was active
    entropy: Tensor  # () in nats, of the shares scaled to sum to one; log N where all are equal
    switching_rate: Tensor  # (N,) share of steps at which a mechanism became active or inactive


class Call(NamedTuple):
    """Record of one call of one cell, detached, samples in the caller's order."""

    active: Tensor  # (T, B, N) bool
    input_attention: Tensor  # (T, B, N, 1 + S)
    communication: Tensor  # (T, B, M, N, N)
    valid: Tensor  # (T, B) bool, false in padding


class Trace:
    """What the RIM layers of a model did while :func:`trace` was open.

    Every mapping goes from the name of a cell inside the model (``"core.cells.0"``) to tensors.
    Calls made one after the other are joined along time, so stepping an agent gives one record;
    calls of different batch sizes cannot be joined and raise ``ValueError``. In the padding of
    packed or masked sequences nothing is active and the attentions mean nothing: :attr:`valid`
    is false there. ``print(trace)`` shows the usage as a table.
    """

    def __init__(self) -> None:
        self._calls: dict[str, list[Call]] = {}

    def add(self, name: str, call: Call) -> None:
        """Append what one cell did in one call."""
        self._calls.setdefault(name, []).append(call)

    @property
    def active(self) -> dict[str, Tensor]:
        """Which mechanisms were active: bool ``(T, B, N)``."""
        return {n: _join(n, [c.active for c in calls]) for n, calls in self._calls.items()}

    @property
    def valid(self) -> dict[str, Tensor]:
        """Which steps are not padding: bool ``(T, B)``."""
        return {n: _join(n, [c.valid for c in calls]) for n, calls in self._calls.items()}

    @property
    def input_attention(self) -> dict[str, Tensor]:
        """Weight on the null slot and on the input's elements: ``(T, B, N, 1 + S)``."""
        return {n: _join(n, [c.input_attention for c in calls]) for n, calls in self._calls.items()}

    @property
    def communication(self) -> dict[str, Tensor]:
        """Weight from reader to read, per head: ``(T, B, M, N, N)``."""
        return {n: _join(n, [c.communication for c in calls]) for n, calls in self._calls.items()}

    @property
    def usage(self) -> dict[str, Usage]:
        """Statistics of :attr:`active`; like it they take one call to continue the one before."""
        valid = self.valid
        return {name: _usage(active, valid[name]) for name, active in self.active.items()}

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

    Recorded tensors are detached. A layer that is not being traced does no extra work, and one
    that is gives the same numbers as without. What activation checkpointing computes again on the
    backward pass is not recorded again.

    Args:
        model: any module with :class:`rims.RIM_LSTM` or :class:`rims.RIM_GRU` layers inside.

    Yields:
        A :class:`Trace`, filled as the model runs.

    Raises:
        RuntimeError: when a layer runs inside ``torch.vmap``, where it does not see single samples.

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

    def __call__(
        self, index: int, scan: ScanOutput, valid: Tensor | None, order: Tensor | None
    ) -> None:
        assert scan.input_attention is not None
        assert scan.communication is not None
        if _is_inside_vmap():
            raise RuntimeError(
                "rims.trace: a layer inside torch.vmap cannot be recorded. Trace a call of the "
                "layer with the whole batch instead."
            )
        if valid is None:
            valid = torch.ones_like(scan.active[..., 0])
        parts = (scan.active, scan.input_attention, scan.communication, valid)
        # Packed sequences are sorted by length; the caller knows them by another order.
        ordered = parts if order is None else tuple(part.index_select(1, order) for part in parts)
        self.record.add(f"{self.prefix}cells.{index}", Call(*(part.detach() for part in ordered)))


def _is_inside_vmap() -> bool:
    levels = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)


def _join(name: str, parts: list[Tensor]) -> Tensor:
    batches = {part.shape[1] for part in parts}
    if len(batches) > 1:
        raise ValueError(
            f"rims.trace: calls of {name} had batch sizes {sorted(batches)} and cannot be joined "
            "along time. Use one trace per batch size."
        )
    return torch.cat(parts)


def _usage(active: Tensor, valid: Tensor) -> Usage:
    used = active.sum((0, 1)).double()  # (T, B, N) -> (N,)
    pairs = valid[1:] & valid[:-1]  # (T - 1, B): a switch lies between two steps that are real
    switches = (active[1:] != active[:-1]) & pairs.unsqueeze(-1)
    part = used / used.sum()
    return Usage(
        share=used / valid.sum(),
        entropy=-torch.special.xlogy(part, part).sum(),
        switching_rate=switches.sum((0, 1)).double() / pairs.sum().clamp(min=1),
    )
