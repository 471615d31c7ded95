"""Figures of a trace. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rims.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_activations(trace: Trace, *, sample: int | None = 0) -> Figure:
    """Draw the raster of active mechanisms over time, one panel per cell.

    Args:
        trace: what :func:`rims.trace` recorded.
        sample: which sequence of the batch. Default: the first. ``None``: at every step the share
            of all sequences in which a mechanism is active.

    Returns:
        A matplotlib figure; ``figure.savefig("raster.png")`` writes it.

    Raises:
        ValueError: if nothing was recorded or the batch is smaller than ``sample``.

    Example:
        >>> import torch, rims
        >>> layer = rims.RIM_LSTM(8, 12, num_rims=3, k=2)
        >>> with rims.trace(layer) as t:
        ...     _ = layer(torch.randn(20, 2, 8))
        >>> len(rims.plot_activations(t, sample=1).axes)
        1
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    active = trace.active
    if not active:
        raise ValueError(
            "plot_activations: the trace is empty. Run a model with RIM layers inside rims.trace."
        )
    batch = min(cell.shape[1] for cell in active.values())
    if sample is not None and not 0 <= sample < batch:
        raise ValueError(f"plot_activations: sample must lie in [0, {batch}); got {sample}.")
    rows = [cell.shape[2] for cell in active.values()]
    figure = Figure(figsize=(8, 0.9 * len(rows) + 0.28 * sum(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
    for panel, (name, cell) in zip(panels, active.items(), strict=True):
        chosen = cell.double()[:, slice(None) if sample is None else [sample]]  # (T, B or 1, N)
        raster = chosen.mean(1).T.cpu().numpy()  # (N, T)
        panel.imshow(raster, aspect="auto", cmap="Oranges", vmin=0, vmax=1.4, interpolation="none")
        share = chosen.mean((0, 1)).tolist()
        labels = [f"{m}  {part:.0%}" for m, part in enumerate(share)]
        panel.set_yticks(range(len(labels)), labels)
        panel.set_title(f"{name}: active mechanisms (share of steps)", fontsize=10, loc="left")
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
