"""Figures of a comparison: learning curves, and bars for every task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents.judging.comparison import Comparison, labels
from agents.judging.curves import POINTS, SMOOTHED_POINTS, on_one_grid, smooth
from envs import Task, return_range
from lab.reporting.figures import (
    CHANCE,
    DARK,
    FEW_SEEDS,
    colours,
    draw_dots,
    draw_intervals,
    draw_line,
    from_zero,
    legend_below,
    save_figures,
    slant,
    tidy,
)
from lab.reporting.statistics import mean_band

_CHARACTER = 0.095  # inches of one, a little more than the average


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write each figure as PNG and as SVG; return their paths."""
    figures = {"learning_curves": plot_curves(comparison), "tasks": plot_tasks(comparison)}
    return save_figures(figures, folder)


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
        axes[0].axhline(comparison.chance, color=DARK, ls="--", lw=1, label=CHANCE)
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
            comparison.chance, place - 0.45, place + 0.45, DARK, "--", lw=1, label=CHANCE
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
