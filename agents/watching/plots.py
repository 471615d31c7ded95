"""Learning curves of any run folders as one figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agents.watching.run_list import FoundRun, Group, group_runs
from lab.disk.output import write_bytes
from lab.reporting.figures import COLOURS, draw_curves, draw_line, drawn, from_zero, tidy
from lab.words import did_you_mean

ENDINGS = (".png", ".svg", ".pdf")

#: Quantities for the x axis, with their labels.
X_AXES = {"env_steps": "environment steps", "seconds": "seconds", "update": "updates"}

#: Labels of metrics whose name alone would mislead.
LABELS = {
    "episode_return_mean": "return, latest episodes",
    "episode_length_mean": "steps per episode",
    "success_rate": "success rate, latest episodes",
    "env_steps_per_second": "environment steps per second",
    "approx_kl": "approximate KL",
}

#: For runs that their core does not tell apart (Okabe and Ito).
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_STYLES = ("-", "--", ":")

_POINTS = 201


class Look(NamedTuple):
    """The look of a group's line."""

    colour: str
    style: str


class Curve(NamedTuple):
    """A metric of one run where it is known."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]


def check_metrics(runs: Sequence[FoundRun], metrics: Sequence[str]) -> None:
    """Refuse a metric that no run has.

    Raises:
        ValueError: if none has; the message names the closest one and all there are.

    >>> check_metrics([FoundRun(Path("x"), {}, {"update": [1.0]})], ["updaet"])
    Traceback (most recent call last):
        ...
    ValueError: --metrics: there is no column 'updaet'; did you mean 'update'? Columns: update.
    """
    known = list(dict.fromkeys(name for run in runs for name in run.progress))
    for name in metrics:
        if name not in known:
            hint, there_is = did_you_mean(name, known), ", ".join(known)
            raise ValueError(f"--metrics: there is no column {name!r}{hint} Columns: {there_is}.")


def shown_by_default(runs: Sequence[FoundRun]) -> tuple[str, ...]:
    """Success rate and return; the return alone where no run's environment reports success.

    >>> shown_by_default([FoundRun(Path("x"), {}, {"success_rate": [math.nan],
    ...                                            "episode_return_mean": [2.5]})])
    ('episode_return_mean',)
    """
    told, known = (
        any(math.isfinite(value) for run in runs for value in run.progress.get(name, []))
        for name in ("success_rate", "episode_return_mean")
    )
    return (() if known and not told else ("success_rate",)) + ("episode_return_mean",)


def save_curves(
    runs: Sequence[FoundRun], metrics: Sequence[str], x: str, path: Path
) -> list[Group]:
    """Draw the curves and write them, whole or not at all, in the format of the name's ending.

    Returns:
        The groups drawn.
    """
    groups = group_runs(runs)
    figure = plot_groups(groups, metrics, x)
    write_bytes(path, drawn(figure, path.suffix.lower().removeprefix(".")))
    return groups


def plot_groups(groups: Sequence[Group], metrics: Sequence[str], x: str) -> Figure:
    """One panel per metric; groups of several runs as mean and band.

    Args:
        groups: the groups to draw, each with rows.
        metrics: columns, one panel each.
        x: the column on the x axis, of :data:`X_AXES`.
    """
    columns = 2 if len(metrics) == 4 else min(len(metrics), 3)
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(max(4.8 * columns, 6.4), 3.6 * rows + 0.9), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    looks = choose_looks(groups)
    names = {group.label: _legend_name(group, metrics, x) for group in groups}
    for panel, metric in zip(panels, metrics, strict=False):
        for group in groups:
            _draw_group(panel, group, metric, x, looks[group.label], names[group.label])
        _finish_panel(panel, metric, x)
    for panel in panels[len(metrics) :]:
        panel.set_axis_off()
    _legend(figure, panels[: len(metrics)])
    figure.suptitle(_title(groups), fontsize=12)
    return figure


def choose_looks(groups: Sequence[Group]) -> dict[str, Look]:
    """The look of each label: its core's colour in every figure, unless groups share a core."""
    counts = Counter(group.core for group in groups)
    if all(core in COLOURS and count == 1 for core, count in counts.items()):
        return {group.label: Look(COLOURS[group.core], "-") for group in groups}
    styled = cycle([Look(colour, style) for style in _STYLES for colour in _PALETTE])
    return {group.label: look for group, look in zip(groups, styled, strict=False)}


def curve_of(progress: Mapping[str, Sequence[float]], metric: str, x: str) -> Curve:
    """The finite points of a metric; none if the run does not have it.

    >>> curve_of({"update": [1, 2, 3], "entropy": [float("nan"), 0.5, 0.25]}, "entropy", "update")
    Curve(x=array([2., 3.]), y=array([0.5 , 0.25]))
    """
    if metric not in progress or x not in progress:
        return Curve(np.empty(0), np.empty(0))
    places = np.asarray(progress[x], dtype=np.float64)
    values = np.asarray(progress[metric], dtype=np.float64)
    known = np.isfinite(places) & np.isfinite(values)
    return Curve(places[known], values[known])


def on_common_grid(curves: Sequence[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interpolate curves where all of them are known.

    Returns:
        The x values (points,), none if there is no such place, and the values (curves, points).

    >>> grid, values = on_common_grid([Curve(np.array([0., 4.]), np.array([0., 1.]))] * 2)
    >>> float(grid[-1]), values.shape
    (4.0, (2, 201))
    """
    first = max((curve.x[0] if len(curve.x) else math.inf) for curve in curves)
    last = min((curve.x[-1] if len(curve.x) else -math.inf) for curve in curves)
    grid = np.linspace(first, last, _POINTS) if first < last else np.empty(0)
    return grid, np.stack([np.interp(grid, *c) if len(grid) else grid for c in curves])


def _legend_name(group: Group, metrics: Sequence[str], x: str) -> str:
    """The name of a group in the legend, which all panels share."""
    count = len(group.runs)
    name = group.label if count == 1 else f"{group.label} ({count} seeds)"
    shown = any(len(curve_of(r.progress, metric, x).x) for r in group.runs for metric in metrics)
    return name if shown else f"{name}: no values"


def _draw_group(panel: Axes, group: Group, metric: str, x: str, look: Look, name: str) -> None:
    curves = [curve_of(run.progress, metric, x) for run in group.runs]
    colour, style = look
    grid, values = on_common_grid(curves)
    if len(curves) == 1:
        draw_line(panel, *curves[0], color=colour, ls=style, label=name)
    elif len(grid):
        draw_curves(panel, curves, grid, values, label=name, color=colour, ls=style)
    else:  # there is no place at which all are known
        for curve in curves:
            draw_line(panel, *curve, color=colour, ls=style, lw=0.8, alpha=0.45)
        panel.plot([], [], color=colour, linestyle=style, linewidth=2, label=name)


def _finish_panel(panel: Axes, metric: str, x: str) -> None:
    panel.set_xlabel(X_AXES[x])
    panel.set_ylabel(LABELS.get(metric, metric.replace("_", " ")))
    from_zero(panel)
    if metric == "success_rate":
        panel.set_ylim(-0.02, 1.02)
    tidy(panel)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Below the panels: curves reach the top on easy tasks."""
    handles = panels[0].get_legend_handles_labels()
    longest = max(len(label) for label in handles[1])
    columns = int(figure.get_figwidth() * 11 // (longest + 6))
    figure.legend(
        *handles, loc="outside lower center", ncols=min(max(columns, 1), 6), frameon=False
    )


def _title(groups: Sequence[Group]) -> str:
    tasks = {group.runs[0].task for group in groups} - {""}
    lines = [f"Training on {', '.join(tasks)}"] if len(tasks) == 1 else ["Training"]
    if any(len(group.runs) > 1 for group in groups):
        lines.append("(mean over seeds and its 95 % bootstrap band)")
    return "\n".join(lines) if len(lines[0]) > 24 else " ".join(lines)
