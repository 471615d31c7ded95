"""What is reported of each run, and what the runs of a comparison amount to together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median_high
from typing import Any, NamedTuple

from agents.config import ActionMode, PPOConfig
from agents.judging.comparison import Cell, Comparison, CoreCost, Run
from agents.judging.evaluations import Results
from agents.learning.checkpoint import load_checkpoint
from agents.model.cost import multiply_adds
from agents.model.policy import RecurrentActorCritic, count_parameters
from envs import Suite, Task, return_range
from lab.comparing import Flag
from lab.disk.folder import PROGRESS_NAME, read_progress
from lab.disk.plain_files import read_plain_text
from lab.reporting.statistics import mean_over_seeds, success_over_seeds

#: Holds how many runs were trained at a time, without which a run's speed says little.
JOBS_NAME = "jobs.txt"


class Measured(NamedTuple):
    """All that is reported of one run."""

    config: PPOConfig  # as it was trained
    results: Results
    curve: dict[str, list[float]]
    cost: CoreCost
    training_backend: str
    jobs: int | None


def measure(run: Run, results: Results) -> Measured:
    """Collect what is reported of a run that was trained and evaluated, with these results.

    Raises:
        ValueError: if something of it is not there any more.
    """
    curve = read_progress(run.folder)
    if not curve:
        raise ValueError(f"{PROGRESS_NAME} holds no rows.")
    for name in ("env_steps", "success_rate", "env_steps_per_second"):
        if name not in curve:
            raise ValueError(f"{PROGRESS_NAME} holds no column {name!r}.")
    checkpoint = load_checkpoint(run.folder)
    return Measured(
        config=checkpoint.config,
        results=results,
        curve=curve,
        cost=_cost(checkpoint.make_policy(), checkpoint.config.hidden_size),
        training_backend=checkpoint.backend,
        jobs=_read_jobs(run.folder),
    )


def _cost(policy: RecurrentActorCritic, hidden_size: int) -> CoreCost:
    try:
        operations = multiply_adds(policy)
    except Exception:  # a user's own core may do what cannot be counted; all else is still known
        operations = None
    return CoreCost(
        hidden_size=hidden_size,
        core_parameters=count_parameters(policy.core),
        total_parameters=count_parameters(policy),
        core_multiply_adds=operations.core if operations else None,
        total_multiply_adds=operations.total if operations else None,
    )


def assemble(
    runs: Sequence[Run],
    suite: Suite,
    tasks: Sequence[Task],
    episodes: int,
    mode: ActionMode,
    measured: Sequence[Measured],
    flags: Sequence[Flag],
) -> Comparison:
    """Put together what the runs amount to.

    Args:
        runs: all that were asked for.
        suite: their suite.
        tasks: tasks evaluated on.
        episodes: per run and task.
        mode: how actions were chosen.
        measured: of those runs that could be judged; at least one.
        flags: what there is to know of the others.
    """
    of_core: dict[str, list[Measured]] = {}
    for one in measured:
        of_core.setdefault(one.config.core, []).append(one)
    left_out = dict.fromkeys(run.config.core for run in runs if run.config.core not in of_core)
    empty = [Flag("missing", core, "no run to judge, so not in the tables.") for core in left_out]
    jobs = [m.jobs for m in measured]
    return Comparison(
        suite=suite,
        tasks=tuple(tasks),
        seeds=tuple(dict.fromkeys(run.config.seed for run in runs)),
        episodes=episodes,
        mode=mode,
        configs={core: tuple(m.config for m in own) for core, own in of_core.items()},
        training_backends=tuple(sorted({m.training_backend for m in measured})),
        backends=tuple(sorted({r["backend"] for m in measured for r in m.results.values()})),
        jobs=None if None in jobs else max(j for j in jobs if j is not None),
        costs={core: own[0].cost for core, own in of_core.items()},
        env_steps_per_second={
            core: median_high(x for m in own for x in m.curve["env_steps_per_second"])
            for core, own in of_core.items()
        },
        cells={
            (core, task.id): _cell([m.results[task.id] for m in own], task)
            for core, own in of_core.items()
            for task in tasks
        },
        curves={core: [m.curve for m in own] for core, own in of_core.items()},
        flags=(*empty, *flags),
    )


def _cell(evaluations: list[dict[str, Any]], task: Task) -> Cell:
    rates = [e["success_rate"] for e in evaluations]
    success = [] if None in rates else [rate["mean"] for rate in rates]
    bounds = return_range(task.id) or (-math.inf, math.inf)
    returns = [e["mean_return"]["mean"] for e in evaluations]
    lengths = [e["mean_length"]["mean"] for e in evaluations]
    return Cell(
        success_rate=success_over_seeds(success, evaluations[0]["episodes"]) if success else None,
        mean_return=mean_over_seeds(returns, bounds=bounds),
        mean_length=sum(lengths) / len(lengths),
        per_seed_success=success,
        per_seed_return=returns,
    )


def _read_jobs(folder: Path) -> int | None:
    """How many runs were trained at a time; None for a run that was not trained by a comparison."""
    try:
        return int(read_plain_text(folder / JOBS_NAME, 2**10))
    except (OSError, ValueError):
        return None
