"""Progress on screen while agents are trained or evaluated."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lab.reporting.display import Display, ProgressTable, RunLine, clock, number
from lab.reporting.tables import trained_label

if TYPE_CHECKING:  # they need torch, which is not needed to watch others train
    from agents.judging.comparison import Run
    from agents.judging.evaluate import Evaluation
    from envs import Task
    from lab.reporting.statistics import Estimate

#: Columns of a table that goes into a file or pipe, which has no width of its own.
PIPE_WIDTH = 120

#: In place of a success rate, where neither the environment nor the task says what success is.
NOT_TOLD = "unknown"


_SHOWN = {
    "env_steps_per_second": "steps/s",
    "episode_return_mean": "return, latest episodes",
    "success_rate": "success rate, latest episodes",
    "episode_length_mean": "steps per episode",
    "policy_loss": "policy loss",
    "value_loss": "value loss",
    "entropy": "entropy",
    "approx_kl": "approximate KL",
}


class TrainingDisplay(Display):
    """Progress of one run."""

    def __init__(self, title: str, total_steps: int) -> None:
        super().__init__()
        self.title = title
        self.total_steps = total_steps

    def update(self, row: Mapping[str, float]) -> None:
        """Show the row of the newest update."""
        picture = training_picture(self.title, row, self.total_steps)
        line = training_line(row, self.total_steps)
        self.show(picture, [line], final=row["env_steps"] >= self.total_steps)


def training_picture(title: str, row: Mapping[str, float], total_steps: int) -> RenderableType:
    """The newest metrics of a run, a bar and the time left.

    Args:
        title: stands above.
        row: the row of the newest update.
        total_steps: environment steps to train for.
    """
    table = Table(show_header=False, box=None)
    table.add_column(style="cyan")
    table.add_column(justify="right")
    for name, label in _SHOWN.items():
        if name in row:
            value = success_text(row) if name == "success_rate" else number(row[name])
            table.add_row(label, value)
    steps = row["env_steps"]
    table.add_row("environment steps", f"{int(steps):,} of {total_steps:,}")
    table.add_row("time", f"{clock(row['seconds'])}, {clock(seconds_left(row, total_steps))} left")
    bar = ProgressBar(total=total_steps, completed=min(steps, total_steps), width=60)
    # A title of the table would be wrapped to its width, and a bar alone does not end its line.
    return Group(Text(title, style="italic"), table, Padding(bar, 0))


def training_line(row: Mapping[str, float], total_steps: int) -> str:
    """The newest metrics of a run as one line."""
    return (
        f"{int(row['env_steps']):,}/{total_steps:,} steps  "
        f"{row['env_steps_per_second']:.0f} steps/s  "
        f"return {number(row['episode_return_mean'])}  "
        f"success {success_text(row)}  "
        f"entropy {number(row['entropy'])}  {clock(seconds_left(row, total_steps))} left"
    )


def success_text(row: Mapping[str, float]) -> str:
    """The success rate of the latest episodes, or that the environment does not say.

    >>> nan = math.nan
    >>> success_text({"success_rate": 0.5, "episode_return_mean": 0.4})
    '0.5'
    >>> success_text({"success_rate": nan, "episode_return_mean": 0.4})
    'unknown'
    >>> success_text({"success_rate": nan, "episode_return_mean": nan})  # of nothing yet
    '-'
    """
    rate = row.get("success_rate", math.nan)
    if math.isnan(rate) and math.isfinite(row.get("episode_return_mean", math.nan)):
        return NOT_TOLD
    return number(rate)


def seconds_left(row: Mapping[str, float], total_steps: int) -> float:
    """Time to the end of the training at its mean speed so far."""
    return row["seconds"] / row["env_steps"] * max(0.0, total_steps - row["env_steps"])


class RunsDisplay(ProgressTable):
    """Progress of several agents."""

    def __init__(self) -> None:
        super().__init__("environment steps", "success rate", ("steps", "success"))

    def update(self, runs: Sequence[Run]) -> None:
        """Show every run's newest numbers."""
        rows = [(run, run.row) for run in runs]
        self.show_runs(
            RunLine(run.name, int(row.get("env_steps", 0)), run.config.total_steps, score_of(row))
            for run, row in rows
        )


def score_of(row: Mapping[str, float]) -> float | str:
    """The success rate of a run's newest row; its return, as a text, where there is none.

    >>> score_of({"success_rate": math.nan, "episode_return_mean": 2.5})
    'return 2.5'
    """
    rate, mean = (row.get(name, math.nan) for name in ("success_rate", "episode_return_mean"))
    return f"return {number(mean)}" if math.isnan(rate) and not math.isnan(mean) else rate


def print_evaluations(title: str, evaluations: Sequence[Evaluation], trained: Task) -> None:
    """Print one row per task, with 95 % intervals, to standard output.

    Args:
        title: stands above the table.
        evaluations: the rows.
        trained: the task trained on, which is marked.
    """
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = "95 % intervals over episodes of this one agent; none where all are equal"
    if any(e.success_rate is None for e in evaluations):
        table.caption += (
            "\nsuccess rate -: the environment does not say; it would by is_success or success in "
            "its info at every episode's end"
        )
    for name in ("task", "episodes", "success rate", "return", "steps"):
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for e in evaluations:
        table.add_row(
            trained_label(e.task.name, e.task == trained),
            str(len(e.episodes)),
            "-" if e.success_rate is None else _interval(e.success_rate, ".3f"),
            _interval(e.mean_return, ".3f"),
            _interval(e.mean_length, ".1f"),
        )
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(highlight=False, markup=False, width=width).print(table)


def _interval(estimate: Estimate, form: str) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.mean:{form}}"
    return f"{estimate.mean:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
