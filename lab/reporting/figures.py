"""The look of all figures: colours, lines, intervals, axes; and how they are written."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from lab.disk.folder import write_bytes
from lab.reporting.statistics import Estimate

#: One colour per core in every figure (Okabe and Ito, distinguishable for the colour-blind).
COLOURS = {
    "rim_lstm": "#D55E00",
    "rim_gru": "#E69F00",
    "lstm": "#0072B2",
    "gru": "#56B4E9",
    "none": "#7F7F7F",
}
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#8C6D31", "#332288")
DARK = "#222222"
CHANCE = "chance"

#: With up to so many seeds, each of them is drawn too.
FEW_SEEDS = 3


def colours(cores: Sequence[str]) -> dict[str, str]:
    """A colour for each core, also for those from elsewhere."""
    others = cycle(_OTHER_COLOURS)
    return {core: COLOURS.get(core) or next(others) for core in cores}


def save_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure, by its name, as PNG and as SVG; return their paths."""
    paths = []
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            path = folder / f"{name}.{kind}"
            write_bytes(path, drawn(figure, kind))
            paths.append(path)
    return paths


def drawn(figure: Figure, kind: str) -> bytes:
    """The file that a figure makes; ``kind`` is what its name ends in, without the dot."""
    picture = io.BytesIO()
    # The same comparison gives the same file: no date, no random names inside.
    with mpl.rc_context({"svg.hashsalt": "rims"}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(picture, dpi=120, format=kind, metadata=metadata)
    return picture.getvalue()


def draw_intervals(ax: Axes, x: NDArray[np.floating[Any]], estimates: Sequence[Estimate]) -> None:
    """Error bars of those that have an interval."""
    known = [(p, e) for p, e in zip(x, estimates, strict=True) if not math.isnan(e.low)]
    if known:
        ax.errorbar(
            [place for place, _ in known],
            [e.mean for _, e in known],
            yerr=[[e.mean - e.low for _, e in known], [e.high - e.mean for _, e in known]],
            fmt="none",
            ecolor=DARK,
            elinewidth=1,
            capsize=2,
        )


def draw_dots(
    ax: Axes, x: NDArray[np.floating[Any]], values: Sequence[Sequence[float]], width: float
) -> None:
    """One per seed, side by side in the bar: equal seeds would hide each other."""
    for place, own in zip(x, values, strict=True):
        if not own:  # nothing is known of it
            continue
        offsets = np.linspace(-0.28, 0.28, len(own)) * width if len(own) > 1 else [0.0]
        # Not clipped: dots at 0 lie on the edge.
        style: dict[str, Any] = {"color": "white", "mec": DARK, "mew": 0.6, "ms": 3, "zorder": 3}
        ax.plot(place + np.asarray(offsets), own, "o", clip_on=False, **style)


def legend_below(figure: Figure, ax: Axes, last: str = CHANCE) -> None:
    """Below the axes: on easy tasks curves and bars reach the top.

    Args:
        figure: that gets it.
        ax: whose lines and bars it names.
        last: the name that stands behind all others.
    """
    pairs = zip(*ax.get_legend_handles_labels(), strict=True)
    handles, names = zip(*sorted(pairs, key=lambda pair: pair[1] == last), strict=True)
    columns = min(len(names), 6)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)


def slant(ax: Axes) -> None:
    """Turn what stands below the x axis, so that long words do not meet."""
    ax.tick_params(axis="x", labelrotation=30)
    for tick in ax.get_xticklabels():
        tick.set_horizontalalignment("right")


def draw_line(ax: Axes, x: ArrayLike, y: ArrayLike, **look: Any) -> None:
    """A line of this look; a single value is no line, so it gets a dot."""
    ax.plot(x, y, marker="o" if np.isfinite(y).sum() == 1 else "", ms=4, **look)


def from_zero(ax: Axes) -> None:
    """An x axis of steps or seconds, from 0, for the lines drawn; says so if they show nothing."""
    points = np.concatenate([np.empty((0, 2)), *(line.get_xydata() for line in ax.lines)])
    known = points[np.isfinite(points).all(axis=1), 0]
    if len(known):
        # Room for half a dot: matplotlib leaves none beside a single value.
        ax.set_xlim(0, max(ax.get_xlim()[1], 1.03 * known.max()))
    else:
        ax.set_xlim(0, np.nanmax(points[:, 0], initial=1))
        ax.text(0.5, 0.5, "no values yet", ha="center", va="center", transform=ax.transAxes)
    large = mpl.ticker.EngFormatter(sep="")
    # Below 1 the formatter writes 500m, which looks like millions.
    ax.xaxis.set_major_formatter(lambda x, _: large(x) if abs(x) >= 1 else f"{x:g}")


def tidy(ax: Axes) -> None:
    """The look of all axes: open, a faint grid behind."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
