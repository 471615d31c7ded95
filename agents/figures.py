"""Figures of a comparison: learning curves, and bars for every task."""

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

from agents.comparison import Comparison, labels
from agents.curves import POINTS, SMOOTHED_POINTS, on_one_grid, smooth
from agents.run_folder import write_bytes
from agents.statistics import Estimate, mean_band
from envs import Task, return_range

#: One colour per core in every figure (Okabe and Ito, distinguishable for the colour-blind).
COLOURS = {
    "rim_lstm": "#D55E00",
    "rim_gru": "#E69F00",
    "lstm": "#0072B2",
    "gru": "#56B4E9",
    "none": "#7F7F7F",
}
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#8C6D31", "#332288")
_DARK = "#222222"
_CHANCE = "chance"
_CHARACTER = 0.095  # inches of one, a little more than the average

#: With up to so many seeds, each of them is drawn too.
FEW_SEEDS = 3


def colours(cores: Sequence[str]) -> dict[str, str]:
    """A colour for each core, also for those from elsewhere."""
    others = cycle(_OTHER_COLOURS)
    return {core: COLOURS.get(core) or next(others) for core in cores}


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write each figure as PNG and as SVG; return their paths."""
    figures = {"learning_curves": plot_curves(comparison), "tasks": plot_tasks(comparison)}
    return save_figures(figures, folder)


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


def plot_curves(comparison: Comparison) -> Figure:
    """Success rate, where it is known, and return during training: mean over seeds, with bands."""
    known = comparison.trained_by_success
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = [("success_rate", "success rate")] * known + [("episode_return_mean", "return")]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    usual = _usual_returns([comparison.suite.train])
    for ax, (column, label) in zip(axes, panels, strict=True):
        for core in comparison.cores:
            _draw_curves(ax, comparison, core, column)
        ax.set_xlabel("environment steps")
        ax.set_ylabel(f"{label}, latest episodes")
        if usual or label != "return":
            ax.set_ylim(-0.02, 1.02)
        from_zero(ax)
        tidy(ax)
    if comparison.chance is not None and known:
        axes[0].axhline(comparison.chance, color=_DARK, ls="--", lw=1, label=_CHANCE)
    legend_below(figure, axes[0])
    figure.suptitle(f"Training on {comparison.suite.train.name}: {_curve_note(comparison)}")
    return figure


def _usual_returns(tasks: Sequence[Task]) -> bool:
    """Whether all returns lie between 0 and 1, as in MiniGrid's own tasks."""
    return all(return_range(task.id) == (0.0, 1.0) for task in tasks)


def _curve_note(comparison: Comparison) -> str:
    counts = {len(comparison.seeds_of(core)) for core in comparison.cores}
    smoothed = f"smoothed over {100 * SMOOTHED_POINTS / (POINTS - 1):.1f} % of the steps"
    if counts == {1}:
        return f"one seed (thick: {smoothed})"
    lines = "thin lines: seeds; " if min(counts) <= FEW_SEEDS else ""
    return f"mean over seeds and its 95 % bootstrap band\n({lines}{smoothed})"


def _draw_curves(ax: Axes, comparison: Comparison, core: str, column: str) -> None:
    colour, runs = colours(comparison.cores)[core], comparison.curves[core]
    if len(runs) <= FEW_SEEDS:
        for run in runs:
            draw_line(ax, run["env_steps"], run[column], color=colour, lw=0.8, alpha=0.45)
    steps, values = on_one_grid(runs, column)
    band = mean_band(smooth(values))
    ax.fill_between(steps, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    draw_line(ax, steps, band.mean, color=colour, lw=2, label=series_labels(comparison)[core])


def series_labels(comparison: Comparison) -> dict[str, str]:
    """Name of each core, with the number of its seeds where that differs between cores."""
    names = labels(comparison.cores)
    counts = {core: len(comparison.seeds_of(core)) for core in comparison.cores}
    if len(set(counts.values())) == 1:
        return names
    return {c: f"{names[c]} ({n} seed{'s' * (n > 1)})" for c, n in counts.items()}


def plot_tasks(comparison: Comparison) -> Figure:
    """Success rate, where known, and return on every task: bars with intervals, a dot per seed."""
    bars = len(comparison.cores) * len(comparison.tasks)
    figure = Figure(figsize=(max(10, 0.52 * bars), 4.6), layout="constrained")
    known = comparison.by_success
    axes = figure.subplots(1, 1 + known, squeeze=False)[0]
    width = 0.8 / len(comparison.cores)
    places = np.arange(len(comparison.tasks))
    names, shades = series_labels(comparison), colours(comparison.cores)
    for i, core in enumerate(comparison.cores):
        cells = [comparison.cells[core, task.id] for task in comparison.tasks]
        x = places + (i - (len(comparison.cores) - 1) / 2) * width
        rates = [c.success_rate for c in cells if c.success_rate is not None]
        successes = (axes[0], rates, [c.per_seed_success for c in cells])
        returns = (axes[-1], [c.mean_return for c in cells], [c.per_seed_return for c in cells])
        for ax, estimates, dots in [successes] * known + [returns]:
            heights = [e.mean for e in estimates]
            ax.bar(x, heights, width * 0.92, color=shades[core], label=names[core])
            draw_intervals(ax, x, estimates)
            draw_dots(ax, x, dots, width)
    usual = _usual_returns(comparison.tasks)
    for ax, label in zip(axes, ["success rate"] * known + ["return"], strict=True):
        _name_tasks(ax, comparison, figure.get_figwidth() / len(axes))
        ax.set_ylabel(label)
        if usual or label != "return":
            ax.set_ylim(0, 1.04)
        tidy(ax)
    if comparison.chance is not None and known and comparison.suite.train in comparison.tasks:
        place = comparison.tasks.index(comparison.suite.train)
        axes[0].hlines(
            comparison.chance, place - 0.45, place + 0.45, _DARK, "--", lw=1, label=_CHANCE
        )
    legend_below(figure, axes[0])
    figure.suptitle(f"Trained on {comparison.suite.train.name} ({_bar_note(comparison)})")
    return figure


def _bar_note(comparison: Comparison) -> str:
    if all(len(comparison.seeds_of(core)) == 1 for core in comparison.cores):
        return "one seed"
    return "bars: mean and 95 % interval over seeds; dots: seeds"


def _name_tasks(ax: Axes, comparison: Comparison, width: float) -> None:
    """Below an axis of so many inches."""
    names = [_task_label(comparison, i) for i in range(len(comparison.tasks))]
    ax.set_xticks(np.arange(len(names)), names)
    longest = max(len(line) for name in names for line in name.split("\n"))
    if longest * _CHARACTER > 0.85 * width / len(names):
        slant(ax)


def _task_label(comparison: Comparison, index: int) -> str:
    task = comparison.tasks[index]
    trained = "\n(trained)" if task == comparison.suite.train else ""
    return "\n".join(task.name.rsplit("-", 1)) + trained


def draw_intervals(ax: Axes, x: NDArray[np.floating[Any]], estimates: Sequence[Estimate]) -> None:
    """Error bars of those that have an interval."""
    known = [(p, e) for p, e in zip(x, estimates, strict=True) if not math.isnan(e.low)]
    if known:
        ax.errorbar(
            [place for place, _ in known],
            [e.mean for _, e in known],
            yerr=[[e.mean - e.low for _, e in known], [e.high - e.mean for _, e in known]],
            fmt="none",
            ecolor=_DARK,
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
        style: dict[str, Any] = {"color": "white", "mec": _DARK, "mew": 0.6, "ms": 3, "zorder": 3}
        ax.plot(place + np.asarray(offsets), own, "o", clip_on=False, **style)


def legend_below(figure: Figure, ax: Axes, last: str = _CHANCE) -> None:
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
