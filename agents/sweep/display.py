"""Progress of a sweep on standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.progress_bar import ProgressBar
from rich.table import Table

from agents.sweep.definition import Sweep
from agents.sweep.report import trial_line
from agents.sweep.run import COLUMNS
from agents.sweep.study import RunState, Trial
from lab.reporting.display import Display


class SweepDisplay(Display):
    """A line for every trial that has ended, and the runs under way."""

    def __init__(self, sweep: Sweep, done: Sequence[Trial]) -> None:
        super().__init__()
        self._sweep = sweep
        self._done = len(done)
        self._best = done[0] if done and done[0].state == "complete" else None

    def ended(self, trial: Trial) -> None:
        """Print what became of a trial."""
        self._done += 1
        line = f"[{self._done}/{self._sweep.trials}] {trial_line(self._sweep, trial)}"
        if trial.state == "complete" and (self._best is None or trial.value > self._best.value):
            self._best = trial
            line += ", the best so far"
        self.console.print(line, soft_wrap=True, markup=False)

    def update(self, runs: Sequence[RunState]) -> None:
        """Show the newest numbers of the runs under way."""
        table = Table(box=None, header_style="cyan")
        for column in ("run", "progress", "environment steps", self._sweep.measure):
            table.add_column(column)
        lines = []
        for run in runs:
            value = run.row.get(COLUMNS[self._sweep.measure], math.nan)
            rate = "-" if math.isnan(value) else f"{value:.2f}"
            env_steps = int(run.row.get("env_steps", 0))
            steps = f"{env_steps:,}/{run.total_steps:,}"
            done = min(env_steps, run.total_steps)
            bar = ProgressBar(total=run.total_steps, completed=done, width=30)
            table.add_row(run.name, bar, steps, rate)
            lines.append(f"{run.name}: {steps} steps, {self._sweep.measure.split()[0]} {rate}")
        self.show(table, lines)
