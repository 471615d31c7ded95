"""Figures of a comparison: learning curves, and bars for every task."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents.judging.comparison import Comparison, Measure, Row
from agents.judging.curves import POINTS, SMOOTHED_POINTS, on_one_grid, smooth
from lab.reporting.figures import (
    CHANCE,
    DARK,
    bars_note,
    colours,
    curves_note,
    draw_bars,
    draw_curves,
    from_zero,
    legend_below,
    make_panels,
    save_figures,
    tidy,
)
from lab.reporting.tables import labels


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write each figure as PNG and as SVG; return their paths."""
    figures = {"learning_curves": plot_curves(comparison), "tasks": plot_tasks(comparison)}
    return save_figures(figures, folder)


def plot_curves(comparison: Comparison) -> Figure:
    """Success rate, where it is known, and return during training: mean over seeds, with bands."""
    known, train = comparison.trained_by_success, comparison.suite.train
    columns = {"episode_return_mean": "return"}
    if known:
        columns = {"success_rate": "success rate", **columns}
    figure, axes = make_panels(len(columns), (10, 4.6))
    for ax, (column, label) in zip(axes, columns.items(), strict=True):
        _draw_column(ax, comparison, column)
        ax.set_xlabel("environment steps")
        ax.set_ylabel(f"{label}, latest episodes")
        if label != "return" or comparison.usual_returns([train]):
            ax.set_ylim(-0.02, 1.02)
        from_zero(ax)
        tidy(ax)
    if comparison.suite.chance is not None and known:
        axes[0].axhline(comparison.suite.chance, color=DARK, ls="--", lw=1, label=CHANCE)
    legend_below(figure, axes[0])
    smoothed = f"smoothed over {100 * SMOOTHED_POINTS / (POINTS - 1):.1f} % of the steps"
    figure.suptitle(f"Training on {train.name}: {curves_note(comparison, smoothed)}")
    return figure


def _draw_column(ax: Axes, comparison: Comparison, column: str) -> None:
    for core, own in comparison.runs.items():
        steps, values = on_one_grid([run.curve for run in own], column)
        curves = [(run.curve["env_steps"], run.curve[column]) for run in own]
        look = {"label": labels(comparison)[core], "color": colours(comparison.variants)[core]}
        draw_curves(ax, curves, steps, smooth(values), **look)


def plot_tasks(comparison: Comparison) -> Figure:
    """Success rate, where known, and return on every task: bars with intervals, a dot per seed."""
    tasks, train, chance = comparison.tasks, comparison.suite.train, comparison.suite.chance
    bars = len(comparison.variants) * len(tasks)
    known = comparison.by_success
    figure, axes = make_panels(2 if known else 1, (max(10, 0.52 * bars), 4.6))
    if known:
        draw_bars(axes[0], comparison, _rows(comparison, "success_rate"))
        axes[0].set_ylabel("success rate")
        axes[0].set_ylim(0, 1.04)
        if chance is not None and train in tasks:
            place = tasks.index(train)
            axes[0].hlines(chance, place - 0.45, place + 0.45, DARK, "--", lw=1, label=CHANCE)
    draw_bars(axes[-1], comparison, _rows(comparison, "mean_return"))
    axes[-1].set_ylabel("return")
    if comparison.usual_returns(tasks):
        axes[-1].set_ylim(0, 1.04)
    legend_below(figure, axes[0])
    figure.suptitle(f"Trained on {train.name} ({bars_note(comparison)})")
    return figure


def _rows(comparison: Comparison, key: Measure) -> list[tuple[str, Row]]:
    """A row for every task, with the name below its bars."""
    trained = {comparison.suite.train.id: "\n(trained)"}
    return [
        ("\n".join(task.name.rsplit("-", 1)) + trained.get(task.id, ""), Row(task, key))
        for task in comparison.tasks
    ]
