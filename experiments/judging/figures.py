"""Figures of a comparison: learning curves, and bars for every row of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from experiments.experiment import Curve, Row
from experiments.fit import judging
from experiments.judging.comparison import Comparison, Run
from experiments.registry import ROLLOUT, Show
from experiments.snapshot import load_weights
from lab.disk.output import write_bytes
from lab.reporting.figures import (
    bars_note,
    colours,
    curves_note,
    draw_bars,
    draw_curves,
    drawn,
    from_zero,
    legend_below,
    make_panels,
    save_figures,
    tidy,
)
from lab.reporting.tables import labels
from lab.variants import base_of

_FAR = 100  # times: from there on a logarithmic axis


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write each figure as PNG and as SVG; return their paths."""
    figures = {"learning_curves": plot_curves(comparison), "results": plot_rows(comparison)}
    return save_figures(figures, folder)


def plot_curves(comparison: Comparison) -> Figure:
    """The columns that the task names, over epochs: mean over seeds and its bootstrap band."""
    curves = comparison.experiment.curves
    figure, panels = make_panels(len(curves), (max(7.0, 4.6 * len(curves)), 4.4))
    for ax, curve in zip(panels, curves, strict=True):
        for model in comparison.variants:
            _draw_curve(ax, comparison, model, curve)
        ax.set_xlabel("epochs")
        ax.set_ylabel(curve.label + (", %" if curve.unit else ""))
        if curve.unit:
            ax.set_ylim(0, 100)
        from_zero(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(ax)
    legend_below(figure, panels[0])
    figure.suptitle(f"{comparison.task.name}: {curves_note(comparison)}")
    return figure


def _draw_curve(ax: Axes, comparison: Comparison, model: str, curve: Curve) -> None:
    runs = [run.curve for run in comparison.runs[model] if curve.column in run.curve]
    if not runs:
        return
    length = min(len(run["epoch"]) for run in runs)  # all the same, unless a file was cut
    epochs = runs[0]["epoch"][:length]
    scale = 100.0 if curve.unit else 1.0
    values = [scale * np.asarray(run[curve.column][:length]) for run in runs]
    look = {"label": labels(comparison)[model], "color": colours(comparison.variants)[model]}
    draw_curves(ax, [(epochs, own) for own in values], epochs, values, **look)


def plot_rows(comparison: Comparison) -> Figure:
    """Bars with intervals, one dot per seed, and what is published."""
    units = list(dict.fromkeys(row.unit for row in comparison.main_rows))
    panels = [[row for row in comparison.main_rows if row.unit == unit] for unit in units]
    widths = [len(rows) for rows in panels]
    bars = sum(widths) * len(comparison.variants)
    figure, axes = make_panels(len(panels), (max(6.0, 0.55 * bars + 2), 4.8), widths)
    for ax, rows in zip(axes, panels, strict=True):
        _draw_panel(ax, comparison, rows)
    legend_below(figure, axes[0])
    figure.suptitle(f"{comparison.task.name} ({bars_note(comparison)})")
    return figure


def _draw_panel(ax: Axes, comparison: Comparison, rows: list[Row]) -> None:
    """The rows of one unit."""
    shares = rows[0].unit == "%"
    named = [(row.label.replace(", ", ",\n"), row) for row in rows]

    def published(model: str, row: Row) -> float | None:
        number = comparison.published.get(model, {}).get(row.key)
        return number and number.mean

    draw_bars(ax, comparison, named, 100.0 if shares else 1.0, published)
    values = [v for m in comparison.variants for row in rows for v in comparison.values(m, row)]
    if shares:
        ax.set_ylabel("per cent")
        ax.set_ylim(0, 104)
    elif min(values) > 0 and max(values) > _FAR * min(values):  # else small ones are not seen
        ax.set_yscale("log")


def draw(show: Show, runs: Sequence[Run], path: Path) -> bool:
    """Draw what a command was asked for.

    Args:
        show: the picture: of the first finished run, or of the first one of each model.
        runs: runs of any models.
        path: the picture; the ending of its name says of what kind.

    Returns:
        Whether there was a run it can be drawn of.

    Raises:
        ValueError: in one line, if the weights of one cannot be used.
    """
    first: dict[str, Run] = {}
    for run in runs:
        name = run.variant
        if show.can_show(base_of(name)) and name not in first and run.look_at()[0] is not None:
            first[name] = run
    if not first:
        return False
    if show is ROLLOUT:
        from experiments.judging.rollouts import write_rollouts

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
