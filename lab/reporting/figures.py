"""The look of all figures: colours, lines, intervals, axes; and how they are written."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from lab.comparison import Comparison
from lab.disk.output import write_bytes
from lab.reporting.statistics import Estimate, mean_band
from lab.reporting.tables import labels

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
CHANCE, PUBLISHED = "chance", "published"  # in legends

#: Up to this number of seeds, each seed is drawn too.
FEW_SEEDS = 3

_CHARACTER = 0.095  # inches of one, a little more than the average
_UNKNOWN = Estimate(math.nan, math.nan, math.nan)


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
    # The same numbers give the same file: no date, no random names inside.
    with mpl.rc_context({"svg.hashsalt": "rims"}):
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        figure.savefig(picture, dpi=120, format=kind, metadata=metadata)
    return picture.getvalue()


def make_panels(
    count: int, size: tuple[float, float], ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure of this size in inches, with panels side by side whose widths are as ``ratios``."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, width_ratios=ratios)[0])


def draw_bars(
    ax: Axes,
    comparison: Comparison[Any, Any],
    rows: Sequence[tuple[str, Any]],
    scale: float = 1.0,
    published: Callable[[str, Any], float | None] = lambda _variant, _row: None,
) -> None:
    """Bars of all variants side by side at each row: mean and interval over seeds, a dot per seed.

    Args:
        ax: of a figure with one row of panels.
        comparison: has the numbers.
        rows: each with the name below its bars.
        scale: the numbers are multiplied by it.
        published: numbers of a paper, by variant and row: a dashed line across the bar.
    """
    count, names, shades = len(comparison.runs), labels(comparison), colours(comparison.variants)
    width = 0.8 / count
    for i, variant in enumerate(comparison.variants):
        x = np.arange(len(rows)) + (i - (count - 1) / 2) * width
        known = (comparison.estimate(variant, row) or _UNKNOWN for _, row in rows)
        estimates = [Estimate(*(scale * number for number in estimate)) for estimate in known]
        heights = [estimate.mean for estimate in estimates]
        ax.bar(x, heights, width * 0.92, color=shades[variant], label=names[variant])
        draw_intervals(ax, x, estimates)
        dots = [[scale * v for v in comparison.values(variant, row)] for _, row in rows]
        draw_dots(ax, x, dots, width)
        for place, (_, row) in zip(x, rows, strict=True):
            if (mean := published(variant, row)) is not None:
                ends = place - 0.46 * width, place + 0.46 * width
                ax.hlines(mean, *ends, DARK, "--", lw=1.2, label=PUBLISHED)
    _name_rows(ax, [name for name, _ in rows])
    tidy(ax)


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Names below the bars, slanted where they would meet."""
    ax.set_xticks(np.arange(len(names)), names)
    spec, figure = ax.get_subplotspec(), ax.get_figure()
    assert spec is not None
    assert isinstance(figure, Figure)
    ratios: Any = spec.get_gridspec().get_width_ratios()
    width = figure.get_figwidth() * ratios[spec.colspan.start] / sum(ratios)
    longest = max(len(line) for name in names for line in name.split("\n"))
    if longest * _CHARACTER > 0.85 * width / len(names):
        ax.tick_params(axis="x", labelrotation=30)
        for tick in ax.get_xticklabels():
            tick.set_horizontalalignment("right")


def bars_note(comparison: Comparison[Any, Any]) -> str:
    """The part of a title that explains :func:`draw_bars`."""
    several = comparison.seed_counts[-1] > 1
    return "bars: mean and 95 % interval over seeds; dots: seeds" if several else "one seed"


def draw_curves(
    ax: Axes,
    curves: Sequence[tuple[ArrayLike, ArrayLike]],
    x: ArrayLike,
    values: ArrayLike,
    label: str,
    **look: Any,
) -> None:
    """The mean of several runs' curves with its band; of few runs, each as a thin line.

    Args:
        ax: the panel.
        curves: x and y of each run, as they are.
        x: (points,), the places at which the mean is drawn.
        values: (runs, points), the curves at these places.
        label: label of the mean.
        look: colour, and style if need be, of all lines.
    """
    if len(curves) <= FEW_SEEDS:
        for own in curves:
            draw_line(ax, *own, lw=0.8, alpha=0.45, **look)
    band = mean_band(values)
    ax.fill_between(x, band.low, band.high, color=look["color"], alpha=0.18, linewidth=0)
    draw_line(ax, x, band.mean, lw=2, label=label, **look)


def curves_note(comparison: Comparison[Any, Any], more: str = "") -> str:
    """The part of a title that explains :func:`draw_curves`; ``more`` explains the thick lines."""
    fewest, most = comparison.seed_counts[0], comparison.seed_counts[-1]
    if most == 1:
        return f"one seed (thick: {more})" if more else "one seed"
    thin = "thin lines: seeds" if fewest <= FEW_SEEDS else ""
    notes = "; ".join(note for note in (thin, more) if note)
    return "mean over seeds and its 95 % bootstrap band" + (f"\n({notes})" if notes else "")


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
    """Draw one dot per seed, side by side in the bar: equal values would hide each other."""
    for place, own in zip(x, values, strict=True):
        if not own:  # nothing is known of it
            continue
        offsets = np.linspace(-0.28, 0.28, len(own)) * width if len(own) > 1 else [0.0]
        # Not clipped: dots at 0 lie on the edge.
        style: dict[str, Any] = {"color": "white", "mec": DARK, "mew": 0.6, "ms": 3, "zorder": 3}
        ax.plot(place + np.asarray(offsets), own, "o", clip_on=False, **style)


def legend_below(figure: Figure, ax: Axes) -> None:
    """Below the axes: on easy tasks curves and bars reach the top.

    Args:
        figure: the figure that gets the legend.
        ax: axes whose lines and bars it names, variants first.
    """
    handles, all_names = ax.get_legend_handles_labels()
    known = dict(zip(all_names, handles, strict=True))  # each once
    names = sorted(known, key=lambda name: name in (CHANCE, PUBLISHED))
    look: dict[str, Any] = {"ncols": min(len(names), 6), "frameon": False}
    figure.legend([known[name] for name in names], names, loc="outside lower center", **look)


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
