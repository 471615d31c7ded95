"""The report of a sweep: a table, everything as JSON, the best settings as TOML, a figure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from agents.config import PPOConfig
from agents.sweep.definition import Searched, Sweep
from agents.sweep.study import Trial
from lab.disk.output import write_bytes, write_text
from lab.reporting.figures import drawn, tidy
from lab.reporting.tables import markdown_table, write_texts
from lab.words import plural

BEST_NAME = "best.toml"

_DOT, _BEST, _FAILED = "#0072B2", "#D55E00", "#7F7F7F"  # Okabe and Ito, as in other figures


def write_tables(sweep: Sweep, trials: list[Trial], folder: Path) -> list[Path]:
    """Write sweep.md, sweep.json and, if any trial succeeded, best.toml; return their paths.

    Args:
        sweep: the sweep.
        trials: best first, as :meth:`agents.sweep.study.Study.trials` gives them.
        folder: the sweep's folder.
    """
    texts = to_markdown(sweep, trials, folder), to_dict(sweep, trials)
    paths = write_texts(folder, "sweep", *texts)
    if trials and trials[0].state == "complete":
        paths.append(folder / BEST_NAME)
        write_text(paths[2], sweep.config(trials[0].settings, seed=sweep.seeds).to_toml())
    return paths


def write_figure(sweep: Sweep, trials: list[Trial], folder: Path) -> Path:
    """Write sweep.png; return its path."""
    path = folder / "sweep.png"
    write_bytes(path, drawn(plot(sweep, trials), "png"))
    return path


def to_dict(sweep: Sweep, trials: list[Trial]) -> dict[str, Any]:
    """Plain values for JSON; what is not known is null."""
    best = next((t for t in trials if t.state == "complete"), None)
    return {
        "trials_asked": sweep.trials,
        "sweep": sweep.identity(),
        "best": None if best is None else best.number,
        "trials": [
            {**t._asdict(), "value": t.value if math.isfinite(t.value) else None} for t in trials
        ],
    }


def to_markdown(sweep: Sweep, trials: list[Trial], folder: Path) -> str:
    """The table, the best settings and how to train them."""
    complete = [trial for trial in trials if trial.state == "complete"]
    failed = [trial for trial in trials if trial.state == "failed"]
    lines = [f"# Sweep of {_task(sweep)}", "", _summary(sweep, complete, failed), ""]
    if complete:
        lines += [_table(sweep, complete), "", *_best(sweep, complete[0], folder)]
    if failed:
        lines += ["", "## Failed", ""]
        for trial in failed:
            settings = _settings_text(sweep, trial)
            lines.append(f"- trial {trial.number} ({settings}): {trial.error}")
    return "\n".join(lines) + "\n"


def trial_line(sweep: Sweep, trial: Trial) -> str:
    """One trial that has ended, in one line."""
    settings = _settings_text(sweep, trial)
    if trial.state == "failed":
        return f"trial {trial.number} failed ({settings}): {trial.error}"
    return f"trial {trial.number}: {trial.value:.3f} ({settings})"


def plot(sweep: Sweep, trials: list[Trial]) -> Figure:
    """Value against each searched setting: one dot per trial, the best one marked."""
    count = len(sweep.search)
    columns = 2 if count == 4 else min(count, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(4.5, 3.6 * columns), 3.1 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place, ax in enumerate(grid.flat):
        if place < count:
            _draw(ax, sweep.search[place], trials)
        else:
            ax.set_visible(False)
    for row in grid:
        row[0].set_ylabel(f"unseen {sweep.measure}" if sweep.unseen else sweep.measure)
        if sweep.measure == "success rate":
            row[0].set_ylim(-0.04, 1.04)  # of all: they share it
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    seeds = "one seed" if sweep.seeds == 1 else f"mean of {sweep.seeds} seeds"
    figure.suptitle(f"{_task(sweep)}: {seeds} per trial")
    return figure


def _draw(ax: Axes, searched: Searched, trials: list[Trial]) -> None:
    def place(trial: Trial) -> float:
        value = trial.settings[searched.name]
        return searched.choices.index(value) if searched.choices else value

    complete = [trial for trial in trials if trial.state == "complete"]
    failed = [t for t in trials if t.state == "failed" and searched.name in t.settings]
    for label, some, style in (
        ("failed", failed, {"marker": "x", "color": _FAILED}),
        ("trial", complete[1:], {"marker": "o", "color": _DOT, "alpha": 0.7}),
        ("best trial", complete[:1], {"marker": "*", "color": _BEST, "s": 130, "zorder": 3}),
    ):
        if some:
            values = [t.value if t.state == "complete" else 0.0 for t in some]
            ax.scatter([place(t) for t in some], values, label=label, **style)
    ax.set_xlabel(searched.name.replace("_", " "))
    if searched.choices:
        names = [str(c).rpartition(":")[2] for c in searched.choices]
        ax.set_xticks(range(len(names)), names)
        ax.set_xlim(-0.5, len(names) - 0.5)
    elif searched.log:
        ax.set_xscale("log")
        ax.set_xlim(searched.low / 1.15, searched.high * 1.15)
    else:
        margin = 0.05 * (searched.high - searched.low)
        ax.set_xlim(searched.low - margin, searched.high + margin)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=searched.is_int))
    tidy(ax)


def _summary(sweep: Sweep, complete: list[Trial], failed: list[Trial]) -> str:
    total_steps = _example(sweep).total_steps
    what = f"{sweep.measure} of training, mean over the last fifth of its steps"
    if sweep.unseen:
        names = ", ".join(task.name for task in sweep.unseen)
        what = (
            f"{sweep.measure} on {names}, mean over these tasks, {sweep.episodes} episodes each, "
            "actions drawn from the policy"
        )
    seeds = "seed 0" if sweep.seeds == 1 else f"mean over {sweep.seeds} runs, seeds from 0"
    missing = sweep.trials - len(complete) - len(failed)
    counts = [plural(len(complete), "trial")]
    if failed:
        counts.append(f"{len(failed)} more failed")
    if missing > 0:
        counts.append(f"{missing} to go")
    return (
        f"{', '.join(counts)}; settings chosen by '{sweep.sampler}', sampler seed "
        f"{sweep.sampler_seed}. {total_steps} environment steps per run. Value: {what}; {seeds}."
    )


def _table(sweep: Sweep, complete: list[Trial]) -> str:
    names = [searched.name for searched in sweep.search]
    several = sweep.seeds > 1
    head = ["trial", "value", *(["per seed"] if several else []), *names, "seconds"]
    lines = []
    for trial in complete:
        per_seed = ", ".join(f"{value:.3f}" for value in trial.per_seed.values())
        cells = [str(trial.number), f"{trial.value:.3f}", *([per_seed] if several else [])]
        cells += [_short(trial.settings[name]) for name in names]
        lines.append([*cells, f"{trial.seconds:.0f}"])
    return markdown_table(head, lines, right=True)


def _best(sweep: Sweep, best: Trial, folder: Path) -> list[str]:
    return [
        "## Best settings",
        "",
        f"Trial {best.number}: {_settings_text(sweep, best)}.",
        "",
        f"    rims train --config {folder / BEST_NAME} --seed {sweep.seeds}",
        "",
        "The best of many trials looks better than it is, being chosen by the very numbers above: "
        "train it with seeds that no trial had, such as this one, before reporting it."
        + (" Nor are the tasks it was chosen on unseen any more." if sweep.unseen else ""),
    ]


def _settings_text(sweep: Sweep, trial: Trial) -> str:
    names = [s.name for s in sweep.search if s.name in trial.settings]
    return ", ".join(f"{name} {_short(trial.settings[name])}" for name in names)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _task(sweep: Sweep) -> str:
    return _example(sweep).task.name


def _example(sweep: Sweep) -> PPOConfig:
    """A configuration of the sweep, for what all of them have in common."""
    return sweep.config(sweep.first, seed=0)
