"""Figures of a comparison: learning curves, and bars for every row of the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from experiments.comparison import Comparison, Finished, Run, look_at
from experiments.experiment import Curve, Row
from experiments.fit import judging
from experiments.registry import ROLLOUT, Show
from experiments.snapshot import load_weights
from lab.disk.folder import write_bytes
from lab.reporting.figures import (
    FEW_SEEDS,
    colours,
    draw_dots,
    draw_intervals,
    drawn,
    legend_below,
    save_figures,
    slant,
    tidy,
)
from lab.reporting.statistics import Estimate, mean_band

_DARK = "#222222"
_PUBLISHED = "published"
_FAR = 100  # times: from there on a logarithmic axis
_NONE = Estimate(math.nan, math.nan, math.nan)


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write each figure as PNG and as SVG; return their paths."""
    figures = {"learning_curves": plot_curves(comparison), "results": plot_rows(comparison)}
    return save_figures(figures, folder)


def plot_curves(comparison: Comparison) -> Figure:
    """The columns that the task names, over epochs: mean over seeds and its bootstrap band."""
    curves = comparison.experiment.curves
    figure = Figure(figsize=(max(7.0, 4.6 * len(curves)), 4.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for ax, curve in zip(panels, curves, strict=True):
        for model in comparison.models:
            _draw_curve(ax, comparison, model, curve)
        ax.set_xlabel("epochs")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylabel(curve.label + (", %" if curve.unit else ""))
        if curve.unit:
            ax.set_ylim(0, 100)
        ax.set_xlim(left=0)
        tidy(ax)
    legend_below(figure, panels[0])
    counts = [len(comparison.runs[model]) for model in comparison.models]
    note = "mean over seeds and its 95 % bootstrap band" if max(counts) > 1 else "one seed"
    if max(counts) > 1 and min(counts) <= FEW_SEEDS:
        note += "; thin lines: seeds"
    figure.suptitle(f"{comparison.task.name}: {note}")
    return figure


def _draw_curve(ax: Axes, comparison: Comparison, model: str, curve: Curve) -> None:
    colour = colours(comparison.models)[model]
    runs = [run.curve for run in comparison.runs[model] if curve.column in run.curve]
    if not runs:
        return
    length = min(len(run["epoch"]) for run in runs)  # all the same, unless a file was cut
    epochs = runs[0]["epoch"][:length]
    scale = 100.0 if curve.unit else 1.0
    values = [scale * np.asarray(run[curve.column][:length]) for run in runs]
    if 1 < len(runs) <= FEW_SEEDS:
        for own in values:
            ax.plot(epochs, own, color=colour, linewidth=0.8, alpha=0.45)
    band = mean_band(values)
    ax.fill_between(epochs, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    marker = "o" if length == 1 else None
    ax.plot(epochs, band.mean, color=colour, linewidth=2, label=model, marker=marker)


def plot_rows(comparison: Comparison) -> Figure:
    """Bars with intervals, one dot per seed, and what is published."""
    drawn = [row for row in comparison.rows if row.drawn]
    kinds = list(dict.fromkeys(row.unit for row in drawn))
    panels = [[row for row in drawn if row.unit == unit] for unit in kinds]
    bars = sum(map(len, panels)) * len(comparison.models)
    figure = Figure(figsize=(max(6.0, 0.55 * bars + 2), 4.8), layout="constrained")
    widths = [len(rows) for rows in panels]
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for ax, rows in zip(axes, panels, strict=True):
        _draw_bars(ax, comparison, rows)
    legend_below(figure, axes[0], last=_PUBLISHED)
    seeds = max(len(own) for own in comparison.runs.values())
    note = "bars: mean and 95 % interval over seeds; dots: seeds" if seeds > 1 else "one seed"
    figure.suptitle(f"{comparison.task.name} ({note})")
    return figure


def _draw_bars(ax: Axes, comparison: Comparison, rows: list[Row]) -> None:
    width, places = 0.8 / len(comparison.models), np.arange(len(rows))
    scale = 100.0 if rows[0].unit == "%" else 1.0
    published, shades = comparison.experiment.published, colours(comparison.models)
    for i, model in enumerate(comparison.models):
        x = places + (i - (len(comparison.models) - 1) / 2) * width
        found = [comparison.estimate(model, row) or _NONE for row in rows]
        estimates = [Estimate(*(scale * number for number in estimate)) for estimate in found]
        heights = [estimate.mean for estimate in estimates]
        ax.bar(x, heights, width * 0.92, color=shades[model], label=model)
        draw_intervals(ax, x, estimates)
        draw_dots(ax, x, [[scale * v for v in comparison.values(model, r)] for r in rows], width)
        marked = [
            (place, published[model][row.key].mean)
            for place, row in zip(x, rows, strict=True)
            if row.key in published.get(model, {})
        ]
        for place, mean in marked:
            half = 0.46 * width
            ax.hlines(mean, place - half, place + half, _DARK, "--", lw=1.2)
        if marked and _PUBLISHED not in ax.get_legend_handles_labels()[1]:
            ax.plot([], [], "--", color=_DARK, lw=1.2, label=_PUBLISHED)
    ax.set_xticks(places, [row.label.replace(", ", ",\n") for row in rows])
    if len(rows) > 4 or max(len(row.label) for row in rows) > 20:
        slant(ax)
    ax.set_ylabel("per cent" if rows[0].unit == "%" else "")
    if rows[0].unit == "%":
        ax.set_ylim(0, 104)
    elif _are_far_apart(
        [v for m in comparison.models for r in rows for v in comparison.values(m, r)]
    ):
        ax.set_yscale("log")
    tidy(ax)


def _are_far_apart(values: Sequence[float]) -> bool:
    """Whether the small ones of some numbers would not be seen beside the large ones."""
    return min(values) > 0 and max(values) > _FAR * min(values)


def draw(show: Show, runs: Sequence[Run], path: Path) -> bool:
    """Draw what a command was asked for.

    Args:
        show: which picture: of the first finished run, or of that of each model.
        runs: of any models.
        path: the picture; the ending of its name says of what kind.

    Returns:
        Whether there was a run it can be drawn of.

    Raises:
        ValueError: in one line, if the weights of one cannot be used.
    """
    first: dict[str, Run] = {}
    for run in runs:
        name = run.config.model
        if show.can_show(name) and name not in first and isinstance(look_at(run), Finished):
            first[name] = run
    if not first:
        return False
    if show is ROLLOUT:
        from experiments.rollouts import write_rollouts

        write_rollouts({name: _trained(run) for name, run in first.items()}, path)
        return True
    run = next(iter(first.values()))
    experiment, model = _trained(run)
    with judging(model, run.config.seed, experiment.device):
        figure: Figure = getattr(experiment, show.name)(model)
    write_bytes(path, drawn(figure, path.suffix[1:].lower()))
    return True


def _trained(run: Run) -> tuple[Any, nn.Module]:
    """The task of a finished run and the model by whose weights it was judged."""
    experiment = run.task.make(run.config)
    model = experiment.make_model()
    load_weights(run.folder, model)
    return experiment, model.to(experiment.device)
