"""Pictures of what a trace recorded. Matplotlib is imported when one is drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nfm.trace import Reading, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: ``...sets.PASS.PLACE``, the name of an NFM in a network with several passes.
_IN_PASSES = re.compile(r"(?:^|\.)sets\.(\d+)\.(\d+)$")


def plot_attention(trace: Trace, *, places: Sequence[str] = ()) -> Figure:
    """Draw which earlier modules each NFM reads: a panel per head, and one for their mean.

    A row is an NFM that reads, a column an earlier module or the null slot; the colour is the share
    of the attention, mean over the batch and all points of the map. Calls of the network that were
    recorded one after the other are averaged. Modules are called by pass and place, from 1.

    Args:
        trace: what :func:`nfm.trace` recorded.
        places: names of the modules in a pass, in their order, to be shown instead of numbers.

    Returns:
        A matplotlib figure; ``figure.savefig("attention.png")`` writes it.

    Raises:
        ValueError: if nothing was recorded.

    Example:
        >>> import torch
        >>> from nfm import NFMNetwork, trace
        >>> network = NFMNetwork([torch.nn.Conv2d(1, 4, 3)] , [4], passes=2, num_heads=2)
        >>> with trace(network) as record:
        ...     _ = network(torch.zeros(2, 1, 8, 8))
        >>> [panel.get_title() for panel in plot_attention(record).axes[:3]]
        ['all heads', 'head 1', 'head 2']
    """
    from matplotlib.figure import Figure

    rows = _mean_of_calls(trace.readings)
    if not rows:
        raise ValueError("plot_attention: the trace is empty. Run a network inside nfm.trace.")
    columns = list(dict.fromkeys(source for row in rows.values() for source in row))
    columns.sort(key=lambda source: source == "null")  # behind all modules
    heads = len(next(iter(next(iter(rows.values())).values())))
    size = (1.4 + (heads + 1) * (0.5 + 0.3 * len(columns)), 1.3 + 0.32 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, heads + 1, sharey=True, squeeze=False)[0]
    for head, panel in enumerate(panels):
        shares = np.full((len(rows), len(columns)), np.nan)
        for y, row in enumerate(rows.values()):
            for source, share in row.items():
                shares[y, columns.index(source)] = share[head - 1] if head else share.mean()
        image = panel.imshow(shares, vmin=0, vmax=1, cmap="Oranges", aspect="auto")
        panel.set_facecolor("0.92")  # what did not exist yet
        panel.set_title(f"head {head}" if head else "all heads", fontsize=10)
        labels = [_label(column, places) for column in columns]
        panel.set_xticks(range(len(columns)), labels, rotation=90, fontsize=8)
    panels[0].set_yticks(range(len(rows)), [_label(row, places) for row in rows], fontsize=8)
    panels[0].set_ylabel("reads (pass.module)")
    figure.supxlabel("what is read (pass.module)", fontsize=10)
    figure.colorbar(image, ax=list(panels), label="share of attention", fraction=0.05)
    return figure


def _mean_of_calls(readings: Sequence[Reading]) -> dict[str, dict[str, np.ndarray]]:
    """Share per head of every source, by reader; readers and sources numbered by pass."""
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for reading in readings:
        shares = reading.weights.mean(0).cpu().numpy()  # (M, sources)
        sources = map(_again, reading.sources, reading.source_visits)
        row = dict(zip(sources, shares.T, strict=True))
        found.setdefault(_again(reading.reader, reading.visit), []).append(row)
    return {
        reader: {source: np.mean([row[source] for row in rows], axis=0) for source in rows[0]}
        for reader, rows in found.items()
    }


def _again(name: str, count: int) -> str:
    """The name of an NFM when it is called for the ``count``-th time.

    >>> _again("nfms.sets.0.2", 1), _again("nfms.sets.0.2", 2), _again("nfm", 2)
    ('nfms.sets.0.2', 'nfms.sets.1.2', 'nfm (2)')
    """
    if count == 1:
        return name
    match = _IN_PASSES.search(name)
    if match is None:
        return f"{name} ({count})"
    return f"{name[: match.start(1)]}{int(match[1]) + count - 1}.{match[2]}"


def _label(name: str, places: Sequence[str]) -> str:
    match = _IN_PASSES.search(name)
    if match is None:
        return name
    place = int(match[2])
    return f"{int(match[1]) + 1}.{places[place] if places else place + 1}"
