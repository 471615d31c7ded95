"""What a comparison shows: tables as Markdown, everything as JSON, figures as PNG."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents.compare import Cell, Comparison
from agents.run_folder import write_bytes, write_text
from agents.statistics import Estimate

#: One colour per core in every figure (Okabe and Ito, distinguishable for the colour-blind).
COLOURS = {
    "rim_lstm": "#D55E00",
    "rim_gru": "#E69F00",
    "lstm": "#0072B2",
    "gru": "#56B4E9",
    "none": "#7F7F7F",
}


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``comparison.md``, ``comparison.json`` and the figures; return their paths."""
    paths = [
        folder / name
        for name in ("comparison.md", "comparison.json", "learning_curves.png", "tasks.png")
    ]
    write_text(paths[0], to_markdown(comparison))
    write_text(paths[1], json.dumps(to_dict(comparison), indent=2) + "\n")
    _write_figure(paths[2], plot_curves(comparison))
    _write_figure(paths[3], plot_tasks(comparison))
    return paths


def _write_figure(path: Path, figure: Figure) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    write_bytes(path, picture.getvalue())


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain values for JSON; an interval that cannot be given is null."""
    return {
        "suite": comparison.suite.name,
        "trained_on": comparison.suite.train.id,
        "total_steps": comparison.config.total_steps,
        "seeds": list(comparison.seeds),
        "episodes_per_seed": comparison.episodes,
        "mode": comparison.mode,
        "training_backends": list(comparison.training_backends),
        "evaluation_backends": list(comparison.backends),
        "jobs": comparison.jobs,
        "threads": comparison.config.threads,
        "env_steps_per_second_measured": _speed_note(comparison),
        "interval": "95 % Student t over seeds; success rates: at least Wilson over all episodes; "
        "null: one seed, or returns that are equal",
        "config": {k: v for k, v in asdict(comparison.config).items() if k not in ("core", "seed")},
        "cores": {
            core: {
                "core_parameters": comparison.parameters[core][0],
                "total_parameters": comparison.parameters[core][1],
                "env_steps_per_second": comparison.env_steps_per_second[core],
                "tasks": {
                    task.id: _cell_dict(comparison.cells[core, task.id])
                    for task in comparison.tasks
                },
            }
            for core in comparison.cores
        },
    }


def _cell_dict(cell: Cell) -> dict[str, Any]:
    return {
        "success_rate": cell.success_rate.to_dict(),
        "mean_return": cell.mean_return.to_dict(),
        "mean_length": cell.mean_length,
        "per_seed_success": cell.per_seed_success,
        "per_seed_return": cell.per_seed_return,
    }


def to_markdown(comparison: Comparison) -> str:
    """The tables, with what is needed to read them."""
    seeds = len(comparison.seeds)
    interval = (
        f"mean over {seeds} seeds [95 % Student t interval over seeds; for success rates at least "
        "as wide as the Wilson interval of all episodes; none for returns that are all equal]"
        if seeds > 1
        else "one seed, so no interval: this says nothing about other seeds"
    )
    lines = [
        f"# {comparison.suite.name}: {', '.join(comparison.cores)}",
        "",
        f"Trained on {comparison.suite.train.id} for {comparison.config.total_steps} environment "
        f"steps per run, environments by {' and '.join(comparison.training_backends)}. "
        f"Evaluated on {comparison.episodes} episodes per seed and task, one level "
        f"each, actions by '{comparison.mode}', environments by "
        f"{' and '.join(comparison.backends)}.",
        f"Numbers: {interval}.",
        "",
        "## Success rate",
        "",
        *_table(comparison, lambda cell: _text(cell.success_rate)),
        "",
        "## Return (1 - 0.9 steps / step limit on success, else 0)",
        "",
        *_table(comparison, lambda cell: _text(cell.mean_return)),
        "",
        "## Steps per episode",
        "",
        *_table(comparison, lambda cell: f"{cell.mean_length:.0f}"),
        "",
        "## Cores",
        "",
        f"Training speed: median over updates and seeds, {_speed_note(comparison)}.",
        "",
        "| core | parameters of the core | of the agent | training steps/s |",
        "|---|---|---|---|",
    ]
    for core in comparison.cores:
        of_core, total = comparison.parameters[core]
        rate = comparison.env_steps_per_second[core]
        lines.append(f"| {core} | {of_core} | {total} | {rate:.0f} |")
    return "\n".join(lines) + "\n"


def _speed_note(comparison: Comparison) -> str:
    """What a speed depends on besides the core."""
    jobs, threads = comparison.jobs, comparison.config.threads
    shared = (
        "measured while an unknown number of runs shared the machine"
        if jobs is None
        else f"{jobs} job{'s' * (jobs > 1)}: measured while up to {jobs} "
        f"run{'s' * (jobs > 1)} shared the machine"
    )
    return f"{threads} thread{'s' * (threads > 1)} per run, {shared}"


def _table(comparison: Comparison, show: Any) -> list[str]:
    rows = [
        f"| task | {' | '.join(comparison.cores)} |",
        "|---" * (len(comparison.cores) + 1) + "|",
    ]
    for task in comparison.tasks:
        cells = (show(comparison.cells[core, task.id]) for core in comparison.cores)
        trained = " (trained)" if task == comparison.suite.train else ""
        rows.append(f"| {task.name}{trained} | {' | '.join(cells)} |")
    return rows


def _text(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.mean:.2f}"
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def plot_curves(comparison: Comparison) -> Figure:
    """Success rate and return during training: thin line per seed, thick line their mean."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, column, label in (
        (axes[0], "success_rate", "success rate"),
        (axes[1], "episode_return_mean", "return"),
    ):
        for core in comparison.cores:
            _draw_curves(ax, comparison.curves[core], column, core)
        ax.set_xlabel("environment steps")
        ax.set_ylabel(f"{label}, latest episodes")
        ax.set_ylim(-0.02, 1.02)
        ax.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
        _tidy(ax)
    axes[0].legend(frameon=False)
    seeds = len(comparison.seeds)
    figure.suptitle(
        f"Training on {comparison.suite.train.name}, "
        + ("one seed per core" if seeds == 1 else f"{seeds} seeds per core and their mean")
    )
    return figure


def _draw_curves(ax: Axes, seeds: list[dict[str, list[float]]], column: str, core: str) -> None:
    colour = COLOURS.get(core, "black")
    grid = np.linspace(0, max(seed["env_steps"][-1] for seed in seeds), 200)
    on_grid = []
    for seed in seeds:
        ax.plot(seed["env_steps"], seed[column], color=colour, linewidth=0.8, alpha=0.45)
        on_grid.append(np.interp(grid, seed["env_steps"], seed[column]))
    ax.plot(grid, np.mean(on_grid, axis=0), color=colour, linewidth=2.2, label=core)


def plot_tasks(comparison: Comparison) -> Figure:
    """Success rate and return on every task, bars with intervals, one dot per seed."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    width = 0.8 / len(comparison.cores)
    places = np.arange(len(comparison.tasks))
    for i, core in enumerate(comparison.cores):
        cells = [comparison.cells[core, task.id] for task in comparison.tasks]
        x = places + (i - (len(comparison.cores) - 1) / 2) * width
        for ax, estimates, dots in (
            (axes[0], [c.success_rate for c in cells], [c.per_seed_success for c in cells]),
            (axes[1], [c.mean_return for c in cells], [c.per_seed_return for c in cells]),
        ):
            means = [e.mean for e in estimates]
            ax.bar(x, means, width * 0.92, color=COLOURS.get(core, "black"), label=core)
            _draw_intervals(ax, x, estimates)
            for place, values in zip(x, dots, strict=True):
                ax.plot([place] * len(values), values, "o", color="white", mec="#222222", ms=4)
    for ax, label in ((axes[0], "success rate"), (axes[1], "return")):
        ax.set_xticks(places, ["\n".join(t.name.rsplit("-", 1)) for t in comparison.tasks])
        ax.set_ylabel(label)
        ax.set_ylim(0, 1.04)
        _tidy(ax)
    # Outside the axes: on easy tasks every bar reaches the top.
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    interval = (
        "bars: mean and 95 % interval over seeds" if len(comparison.seeds) > 1 else "one seed"
    )
    figure.suptitle(f"Trained on {comparison.suite.train.name} ({interval}; dots: seeds)")
    return figure


def _draw_intervals(ax: Axes, x: Any, estimates: list[Estimate]) -> None:
    known = [(p, e) for p, e in zip(x, estimates, strict=True) if not math.isnan(e.low)]
    if known:
        ax.errorbar(
            [place for place, _ in known],
            [e.mean for _, e in known],
            yerr=[[e.mean - e.low for _, e in known], [e.high - e.mean for _, e in known]],
            fmt="none",
            ecolor="#222222",
            capsize=3,
        )


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.3)
