"""What a comparison holds: its runs, and what each core did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from agents.config import ActionMode, PPOConfig
from agents.judging.curves import steps_to_reach
from envs import Suite, Task
from lab.comparing import Flag
from lab.cores import core_label
from lab.reporting.statistics import Estimate, interquartile_mean, probability_of_improvement


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of a comparison."""

    config: PPOConfig
    folder: Path

    @property
    def name(self) -> str:
        """Short label."""
        return f"{self.config.core} seed {self.config.seed}"


def labels(cores: Sequence[str]) -> dict[str, str]:
    """What to call each core: short where that tells them apart.

    Example:
        >>> labels(["lstm", "package.module:MyLSTM"])
        {'lstm': 'lstm', 'package.module:MyLSTM': 'MyLSTM'}
    """
    short = {core: core_label(core) for core in cores}
    return short if len(set(short.values())) == len(cores) else {core: core for core in cores}


class Cell(NamedTuple):
    """One core on one task, over seeds."""

    success_rate: Estimate | None  # None: neither the environment nor the task says
    mean_return: Estimate
    mean_length: float
    per_seed_success: list[float]  # empty then
    per_seed_return: list[float]


class CoreCost(NamedTuple):
    """Size of the agents of a core, and what a step of one costs; None where that is unknown."""

    hidden_size: int
    core_parameters: int
    total_parameters: int
    core_multiply_adds: int | None
    total_multiply_adds: int | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that a comparison found. Only cores with at least one complete run are in it."""

    suite: Suite
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]  # asked for
    episodes: int
    mode: ActionMode
    configs: dict[str, tuple[PPOConfig, ...]]  # core -> of its complete runs, as trained
    training_backends: tuple[str, ...]
    backends: tuple[str, ...]  # of the evaluation
    jobs: int | None  # most runs that were trained at a time; None if unknown
    costs: dict[str, CoreCost]  # by core
    env_steps_per_second: dict[str, float]  # by core: median over updates and seeds
    cells: dict[tuple[str, str], Cell]  # (core, task id)
    curves: dict[str, list[dict[str, list[float]]]]  # core -> progress columns per seed
    flags: tuple[Flag, ...] = ()

    @property
    def cores(self) -> tuple[str, ...]:
        """Cores with results."""
        return tuple(self.configs)

    @property
    def failed(self) -> bool:
        """Whether any run could not be trained or evaluated."""
        return any(flag.kind == "failed" for flag in self.flags)

    @property
    def chance(self) -> float | None:
        """Success rate on the training task without learning, where the suite knows it."""
        return self.suite.chance

    @property
    def by_success(self) -> bool:
        """Whether runs are judged by their success rate; else by their return.

        Success has to be known on every task: it is what a task's environment or rule says.
        """
        return all(cell.success_rate is not None for cell in self.cells.values())

    @property
    def judged_by(self) -> str:
        """What runs are judged by, in words."""
        return "success rate" if self.by_success else "return"

    @property
    def trained_by_success(self) -> bool:
        """Whether success is known on the training task."""
        every = (
            rate for own in self.curves.values() for run in own for rate in run["success_rate"]
        )
        return any(map(math.isfinite, every)) or self.by_success

    @property
    def unseen(self) -> tuple[Task, ...]:
        """The evaluated tasks that were not trained on."""
        return tuple(task for task in self.tasks if task != self.suite.train)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Environment steps of the runs, each number once."""
        return tuple(sorted({config.total_steps for config in self._all_configs()}))

    @property
    def threads(self) -> tuple[int, ...]:
        """Threads of the runs, each number once."""
        return tuple(sorted({config.threads for config in self._all_configs()}))

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that all runs share."""
        first, *others = (asdict(config) for config in self._all_configs())
        return {
            name: value
            for name, value in first.items()
            if name not in ("core", "seed") and all(other[name] == value for other in others)
        }

    def seeds_of(self, core: str) -> tuple[int, ...]:
        """Seeds of the complete runs of a core."""
        return tuple(config.seed for config in self.configs[core])

    def interquartile_mean(self, core: str, tasks: Sequence[Task]) -> Estimate:
        """Of what all runs are judged by on ``tasks``."""
        return interquartile_mean(self._scores(core, tasks))

    def probability_of_improvement(self, core: str, other: str, tasks: Sequence[Task]) -> Estimate:
        """Of ``core`` over ``other`` in what they are judged by, averaged over ``tasks``."""
        return probability_of_improvement(self._scores(core, tasks), self._scores(other, tasks))

    def steps_to_learn(self, core: str) -> list[float | None]:
        """Environment steps per seed until the training task counted as learned."""
        return [steps_to_reach(curve) for curve in self.curves[core]]

    def _scores(self, core: str, tasks: Sequence[Task]) -> list[list[float]]:
        """(runs, tasks)."""
        cells = [self.cells[core, task.id] for task in tasks]
        columns = [c.per_seed_success if self.by_success else c.per_seed_return for c in cells]
        return [list(row) for row in zip(*columns, strict=True)]

    def _all_configs(self) -> list[PPOConfig]:
        return [config for own in self.configs.values() for config in own]
