"""Training several cores over several seeds, and judging them on every task of a suite."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from agents.checkpoint import CHECKPOINT_NAME, Checkpoint, load_checkpoint
from agents.config import ActionMode, PPOConfig
from agents.evaluate import evaluate
from agents.policy import count_parameters
from agents.processes import run_all
from agents.run_folder import PROGRESS_NAME, is_empty, lock_folder, read_progress, write_text
from agents.statistics import Estimate, mean_over_seeds, success_over_seeds
from agents.train import Trainer
from envs import Suite, Task, resolve_backend

EVALUATION_NAME = "evaluation.json"

#: Holds how many runs were trained at a time, without which a run's speed says little.
JOBS_NAME = "jobs.txt"

#: Settings that change how long a run takes, not what comes out of it.
_WITHOUT_EFFECT = ("checkpoint_every", "threads")


class JudgingError(RuntimeError):
    """Some runs could not be evaluated; one line names each and why."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of a comparison."""

    config: PPOConfig
    folder: Path

    @property
    def name(self) -> str:
        """Short label."""
        return f"{self.config.core} seed {self.config.seed}"


class RunProgress(NamedTuple):
    """How far a run is."""

    run: Run
    env_steps: int
    success_rate: float


class Cell(NamedTuple):
    """One core on one task, over seeds."""

    success_rate: Estimate
    mean_return: Estimate
    mean_length: float
    per_seed_success: list[float]
    per_seed_return: list[float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that a comparison found."""

    suite: Suite
    tasks: tuple[Task, ...]
    cores: tuple[str, ...]
    seeds: tuple[int, ...]
    episodes: int
    mode: ActionMode
    config: PPOConfig
    training_backends: tuple[str, ...]
    backends: tuple[str, ...]  # of the evaluation
    jobs: int | None  # most runs that were trained at a time; None if unknown
    parameters: dict[str, tuple[int, int]]  # core -> (of the core, in total)
    env_steps_per_second: dict[str, float]  # median over updates and seeds
    cells: dict[tuple[str, str], Cell]  # (core, task id)
    curves: dict[str, list[dict[str, list[float]]]]  # core -> progress columns per seed


def plan(base: PPOConfig, cores: Sequence[str], seeds: Sequence[int], root: Path) -> list[Run]:
    """Every core with every seed, each in a folder of its own.

    Raises:
        ValueError: for a core that cannot be built, or a folder that holds another experiment.
    """
    if not cores:
        raise ValueError("the comparison names no core.")
    runs = []
    for core in cores:
        for seed in seeds:
            config = replace(base, core=core, seed=seed)  # type: ignore[arg-type]
            runs.append(Run(config=config, folder=root / f"{core}-seed{seed}"))
    for run in runs:
        _check_same_experiment(run)
    resolve_backend(base.task, base.backend)
    return runs


def is_complete(run: Run) -> bool:
    """Whether the run's training reached its budget."""
    if not (run.folder / CHECKPOINT_NAME).is_file():
        return False
    return load_checkpoint(run.folder).env_steps >= run.config.total_steps


def train_missing(
    runs: Sequence[Run], jobs: int, on_progress: Callable[[list[RunProgress]], None]
) -> list[str]:
    """Train the runs that are not complete, ``jobs`` at a time, each in its own process.

    What an interrupted run left is kept beside the new folder under another name.

    Returns:
        One line for each run that failed; the others were trained all the same.
    """
    missing, failures = [], []
    for run in runs:
        if not is_complete(run):
            try:
                _set_aside(run.folder)
                missing.append(run)
            except (ValueError, OSError) as error:  # such as: another command is writing there
                failures.append(_failure(run, str(error)))
    jobs = min(jobs, len(missing))
    outcomes = run_all(
        _train,
        [(run, jobs) for run in missing],
        jobs,
        lambda _: on_progress([_progress(run) for run in missing]),
    )
    return failures + [
        _failure(run, outcome.error)
        for run, outcome in zip(missing, outcomes, strict=True)
        if outcome.error is not None
    ]


def judge(
    runs: Sequence[Run],
    suite: Suite,
    tasks: Sequence[Task],
    *,
    episodes: int,
    mode: ActionMode,
    jobs: int,
    on_progress: Callable[[int], None],
) -> Comparison:
    """Evaluate complete runs on ``tasks``; what was evaluated before is not done again.

    Args:
        runs: the runs of :func:`plan`, trained.
        suite: their suite.
        tasks: tasks of the suite.
        episodes: per run and task.
        mode: how actions are chosen.
        jobs: runs at a time.
        on_progress: called with the number of runs newly done.

    Raises:
        JudgingError: if any run cannot be evaluated; the others are evaluated all the same.
    """
    calls = [(run, tuple(tasks), episodes, mode) for run in runs]
    todo = [call for call in calls if _cached_results(*call) is None]
    on_progress(len(calls) - len(todo))
    outcomes = run_all(_evaluate, todo, jobs, on_progress)
    errors = {call[0].folder: o.error for call, o in zip(todo, outcomes, strict=True) if o.error}
    measured: dict[Path, _Measured] = {}
    for call in calls:
        run = call[0]
        try:
            if run.folder not in errors:
                measured[run.folder] = _measure(*call)
        except (ValueError, OSError) as error:
            errors[run.folder] = str(error)
    if errors:
        lines = [_failure(run, errors[run.folder]) for run in runs if run.folder in errors]
        raise JudgingError("some runs could not be evaluated. " + " ".join(lines))
    return _assemble(runs, suite, tasks, episodes, mode, measured)


class _Measured(NamedTuple):
    """All that is reported of one run."""

    results: dict[str, dict[str, Any]]  # by task id
    curve: dict[str, list[float]]
    parameters: tuple[int, int]
    training_backend: str
    jobs: int | None


def _measure(run: Run, tasks: tuple[Task, ...], episodes: int, mode: ActionMode) -> _Measured:
    results = _cached_results(run, tasks, episodes, mode)
    if results is None:
        raise ValueError(f"{EVALUATION_NAME} was changed by something else meanwhile.")
    curve = read_progress(run.folder)
    if not curve:
        raise ValueError(f"{PROGRESS_NAME} holds no rows.")
    checkpoint = load_checkpoint(run.folder)
    policy = checkpoint.make_policy()
    return _Measured(
        results=results,
        curve=curve,
        parameters=(count_parameters(policy.core), count_parameters(policy)),
        training_backend=checkpoint.backend,
        jobs=_read_jobs(run.folder),
    )


def _assemble(
    runs: Sequence[Run],
    suite: Suite,
    tasks: Sequence[Task],
    episodes: int,
    mode: ActionMode,
    measured: dict[Path, _Measured],
) -> Comparison:
    of_core: dict[str, list[_Measured]] = {}
    for run in runs:
        of_core.setdefault(run.config.core, []).append(measured[run.folder])
    jobs = [m.jobs for m in measured.values()]
    backends = {r["backend"] for m in measured.values() for r in m.results.values()}
    return Comparison(
        suite=suite,
        tasks=tuple(tasks),
        cores=tuple(of_core),
        seeds=tuple(dict.fromkeys(run.config.seed for run in runs)),
        episodes=episodes,
        mode=mode,
        config=runs[0].config,
        training_backends=tuple(sorted({m.training_backend for m in measured.values()})),
        backends=tuple(sorted(backends)),
        jobs=None if None in jobs else max(j for j in jobs if j is not None),
        parameters={core: own[0].parameters for core, own in of_core.items()},
        env_steps_per_second={
            core: _median([x for m in own for x in m.curve["env_steps_per_second"]])
            for core, own in of_core.items()
        },
        cells={
            (core, task.id): _cell([m.results[task.id] for m in own])
            for core, own in of_core.items()
            for task in tasks
        },
        curves={core: [m.curve for m in own] for core, own in of_core.items()},
    )


def _failure(run: Run, reason: str) -> str:
    return f"{run.name} ({run.folder}): {reason}"


def _cell(evaluations: list[dict[str, Any]]) -> Cell:
    success = [e["success_rate"]["mean"] for e in evaluations]
    returns = [e["mean_return"]["mean"] for e in evaluations]
    lengths = [e["mean_length"]["mean"] for e in evaluations]
    return Cell(
        success_rate=success_over_seeds(success, evaluations[0]["episodes"]),
        mean_return=mean_over_seeds(returns, bounds=(0.0, 1.0)),
        mean_length=sum(lengths) / len(lengths),
        per_seed_success=success,
        per_seed_return=returns,
    )


def _train(run: Run, jobs: int) -> None:
    Trainer(run.config, run.folder).run()
    write_text(run.folder / JOBS_NAME, f"{jobs}\n")


def _read_jobs(folder: Path) -> int | None:
    """How many runs were trained at a time; None for a run that was not trained by a comparison."""
    try:
        return int((folder / JOBS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _evaluate(run: Run, tasks: tuple[Task, ...], episodes: int, mode: ActionMode) -> None:
    """Evaluate a run on those tasks that its cache does not have, and write them there."""
    import torch

    torch.set_num_threads(run.config.threads)
    checkpoint = load_checkpoint(run.folder)
    results = _read_cache(run, checkpoint, episodes, mode)
    key = _cache_key(checkpoint, episodes, mode)
    policy = checkpoint.make_policy(run.config.device)
    for task in tasks:
        if task.id not in results:
            evaluation = evaluate(
                policy,
                task,
                episodes=episodes,
                seed=run.config.seed,
                mode=mode,
                backend=run.config.backend,
            )
            results[task.id] = evaluation.to_dict()
            content = json.dumps({"key": key, "tasks": results}, indent=1)
            write_text(run.folder / EVALUATION_NAME, content)


def _cached_results(
    run: Run, tasks: tuple[Task, ...], episodes: int, mode: ActionMode
) -> dict[str, dict[str, Any]] | None:
    """Evaluations by task id if the run's cache has all of them."""
    try:
        known = _read_cache(run, load_checkpoint(run.folder), episodes, mode)
    except ValueError:  # the evaluation will say what is wrong
        return None
    if not all(task.id in known for task in tasks):
        return None
    return {task.id: known[task.id] for task in tasks}


def _cache_key(checkpoint: Checkpoint, episodes: int, mode: ActionMode) -> dict[str, Any]:
    return {
        "env_steps": checkpoint.env_steps,
        "training_backend": checkpoint.backend,
        "episodes": episodes,
        "mode": mode,
    }


def _read_cache(
    run: Run, checkpoint: Checkpoint, episodes: int, mode: ActionMode
) -> dict[str, dict[str, Any]]:
    """What is known of this very agent on the backend that would run each task now."""
    try:
        content = json.loads((run.folder / EVALUATION_NAME).read_text(encoding="utf-8"))
        if content["key"] != _cache_key(checkpoint, episodes, mode):
            return {}
        return {
            id: result
            for id, result in content["tasks"].items()
            if result["backend"] == resolve_backend(id, run.config.backend)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # none, or damaged: it is only a cache


def _check_same_experiment(run: Run) -> None:
    """Refuse a folder trained with other settings rather than mix two experiments in a table."""
    if not (run.folder / CHECKPOINT_NAME).is_file():
        return
    checkpoint = load_checkpoint(run.folder)
    there = asdict(checkpoint.config)
    changed = {
        name: (there[name], value)
        for name, value in asdict(run.config).items()
        if name not in _WITHOUT_EFFECT
    }
    if checkpoint.env_steps >= run.config.total_steps:  # else it will be trained again
        now = resolve_backend(run.config.task, run.config.backend)
        changed["environments"] = (checkpoint.backend, now)
    for name, (before, asked) in changed.items():
        if before != asked:
            raise ValueError(
                f"{str(run.folder)!r} was trained with {name}={before!r}, now asked for "
                f"{asked!r}. Give another folder, or the same settings."
            )


def _set_aside(folder: Path) -> None:
    """Move what an interrupted run left, unless something is still writing it."""
    if is_empty(folder):
        return
    lock_folder(folder).release()
    number = 1
    while (target := folder.with_name(f"{folder.name}.interrupted-{number}")).exists():
        number += 1
    os.replace(folder, target)


def _progress(run: Run) -> RunProgress:
    if not (run.folder / PROGRESS_NAME).is_file():
        return RunProgress(run, 0, math.nan)
    columns = read_progress(run.folder)
    if not columns:
        return RunProgress(run, 0, math.nan)
    return RunProgress(run, int(columns["env_steps"][-1]), columns["success_rate"][-1])


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else math.nan
