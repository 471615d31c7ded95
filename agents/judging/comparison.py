"""A comparison of agents: its runs, and the results of each core."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import Any, Literal, NamedTuple

from agents.config import ActionMode, PPOConfig
from agents.judging.curves import steps_to_reach
from agents.learning.checkpoint import Checkpoint, is_trained, load_checkpoint
from agents.learning.resuming import trainer_for
from agents.learning.run_settings import notice
from envs import Suite, Task, resolve_backend, return_range
from lab import comparing, comparison
from lab.comparing import Flag
from lab.cores import core_label
from lab.disk.folder import is_empty, note_failure
from lab.disk.lock import require_unlocked
from lab.disk.store import has_checkpoint
from lab.reporting.statistics import (
    Estimate,
    interquartile_mean,
    probability_of_improvement,
    success_over_seeds,
)


@dataclass(frozen=True, kw_only=True)
class Run(comparing.Run[PPOConfig]):
    """One training run of a comparison."""

    def is_missing(self) -> bool:
        """Whether it is not trained to its budget; raises if another command is writing there."""
        if is_trained(self.folder, self.config.total_steps):
            return False
        if not is_empty(self.folder):
            require_unlocked(self.folder)
        return True

    def train(self) -> None:
        """Train it in this process; an interrupted run is resumed."""
        trainer = trainer_for(self.config, self.folder)
        try:
            trainer.run()
        except Exception as error:
            note_failure(self.folder, error)
            raise

    def look_at(self) -> tuple[Run | None, Flag | None]:
        """The run if it can be judged, and what readers have to know of it."""
        if is_empty(self.folder):
            return None, Flag("missing", self.name, "there is no such run.")
        asked = self.config
        checkpoint = load_checkpoint(self.folder) if has_checkpoint(self.folder) else None
        if checkpoint is None or checkpoint.env_steps < checkpoint.config.total_steps:
            total = asked.total_steps if checkpoint is None else checkpoint.config.total_steps
            steps = int(self.row.get("env_steps", 0))
            return None, self.incomplete(f"{steps:,} of {total:,} environment steps")
        there = checkpoint.config
        differing = "; ".join(
            f"{name}={before!r}, asked for {now!r}"
            for name, (before, now) in self.differences(checkpoint).items()
        )
        if (there.core, there.seed, there.task) != (asked.core, asked.seed, asked.task):
            return None, Flag("different", self.name, f"another run, left out: {differing}.")
        if differing:
            return self, Flag("different", self.name, f"trained with {differing}.")
        if edited := notice(self.folder, there):
            return self, Flag("different", self.name, f"{edited}.")
        return self, None

    def differences(self, checkpoint: Checkpoint) -> dict[str, tuple[Any, Any]]:
        """Settings of a trained run that are not those asked for: as they are, as asked for."""
        found = checkpoint.config.differences(self.config)
        if checkpoint.env_steps >= checkpoint.config.total_steps:  # else it will be trained again
            now = resolve_backend(self.config.task, self.config.backend)
            if now != checkpoint.backend:
                found["environments"] = (checkpoint.backend, now)
        return found


class CoreCost(NamedTuple):
    """Size of the agents of a core, and what a step of one costs; None where that is unknown."""

    hidden_size: int
    core_parameters: int
    total_parameters: int
    core_multiply_adds: int | None
    total_multiply_adds: int | None


@dataclass(frozen=True, kw_only=True)
class Measured(Run):
    """A run that was trained, with the settings of that training, and evaluated."""

    results: dict[str, dict[str, Any]]  # by task id
    curve: dict[str, list[float]]
    cost: CoreCost
    training_backend: str


#: Names of numbers in an evaluation.
Measure = Literal["success_rate", "mean_return", "mean_length"]


class Row(NamedTuple):
    """A number of every run on a task."""

    task: Task
    key: Measure

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value there can be."""
        if self.key == "success_rate":
            return (0.0, 1.0)
        bounds = return_range(self.task.id) if self.key == "mean_return" else (0.0, math.inf)
        return bounds or (-math.inf, math.inf)


@dataclass(frozen=True, kw_only=True)
class Comparison(comparison.Comparison[Measured, Row]):
    """The results of a comparison.

    Args:
        suite: the suite of the training task.
        tasks: evaluated on.
        episodes: per run and task.
        mode: how actions were chosen.
    """

    suite: Suite
    tasks: tuple[Task, ...]
    episodes: int
    mode: ActionMode

    @property
    def names(self) -> dict[str, str]:
        """The name of each core in tables and figures: the short one where it is unique."""
        short = {core: core_label(core) for core in self.variants}
        return short if len(set(short.values())) == len(short) else super().names

    @property
    def by_success(self) -> bool:
        """Whether runs are judged by their success rate; else by their return.

        Success has to be known on every task: it is what a task's environment or rule says.
        """
        return all(self.has_success(task) for task in self.tasks)

    @property
    def judged_by(self) -> str:
        """The measure that runs are judged by, in words."""
        return "success rate" if self.by_success else "return"

    @property
    def trained_by_success(self) -> bool:
        """Whether success is known on the training task."""
        every = (rate for run in self.finished for rate in run.curve["success_rate"])
        return any(map(math.isfinite, every)) or self.by_success

    @property
    def unseen(self) -> tuple[Task, ...]:
        """The evaluated tasks that were not trained on."""
        return tuple(task for task in self.tasks if task != self.suite.train)

    @property
    def pooled(self) -> tuple[Task, ...]:
        """Tasks that aggregates are over: the unseen ones, or where there are none, all."""
        return self.unseen or self.tasks

    @property
    def budgets(self) -> tuple[int, ...]:
        """Environment steps of the runs, each number once."""
        return tuple(sorted({run.config.total_steps for run in self.finished}))

    @property
    def training_backends(self) -> tuple[str, ...]:
        """Backends used in training."""
        return tuple(sorted({run.training_backend for run in self.finished}))

    @property
    def backends(self) -> tuple[str, ...]:
        """Backends used in evaluation."""
        results = (result for run in self.finished for result in run.results.values())
        return tuple(sorted({result["backend"] for result in results}))

    def usual_returns(self, tasks: Sequence[Task]) -> bool:
        """Whether all returns lie between 0 and 1, as in MiniGrid's own tasks."""
        return all(return_range(task.id) == (0.0, 1.0) for task in tasks)

    def has_success(self, task: Task) -> bool:
        """Whether success is known on a task."""
        return all(run.results[task.id]["success_rate"] is not None for run in self.finished)

    def value(self, run: Measured, row: Row) -> float | None:
        """The mean over the episodes of a run; ``None`` if it is unknown."""
        found = run.results[row.task.id][row.key]
        return None if found is None else float(found["mean"])

    def values(self, variant: str, row: Row) -> list[float]:
        """The number of each seed; none if one is unknown, as seeds that succeed may be the others.

        An environment may report success only where there is one.
        """
        found = super().values(variant, row)
        return found if len(found) == len(self.runs[variant]) else []

    def estimate(self, variant: str, row: Row) -> Estimate | None:
        """Mean over seeds with its interval; ``None`` if it is unknown."""
        values = self.values(variant, row)
        if values and row.key == "success_rate":
            return success_over_seeds(values, self.episodes)
        return super().estimate(variant, row)

    def cost(self, core: str) -> CoreCost:
        """Size of the agents of a core."""
        return self.runs[core][0].cost

    def env_steps_per_second(self, core: str) -> float:
        """Training speed of a core: median over updates and seeds."""
        return median_high(x for run in self.runs[core] for x in run.curve["env_steps_per_second"])

    def interquartile_mean(self, core: str, tasks: Sequence[Task]) -> Estimate:
        """Interquartile mean of what all runs are judged by on ``tasks``."""
        return interquartile_mean(self._scores(core, tasks))

    def probability_of_improvement(self, core: str, other: str, tasks: Sequence[Task]) -> Estimate:
        """Probability that ``core`` beats ``other`` in what they are judged by, mean over tasks."""
        return probability_of_improvement(self._scores(core, tasks), self._scores(other, tasks))

    def steps_to_learn(self, core: str) -> list[float | None]:
        """Environment steps per seed until the training task counted as learned."""
        return [steps_to_reach(run.curve) for run in self.runs[core]]

    def _scores(self, core: str, tasks: Sequence[Task]) -> list[list[float]]:
        """(runs, tasks)."""
        key: Measure = "success_rate" if self.by_success else "mean_return"
        columns = [self.values(core, Row(task, key)) for task in tasks]
        return [list(row) for row in zip(*columns, strict=True)]
