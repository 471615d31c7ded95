"""Training several cores over several seeds, and judging them on every task of a suite."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from agents.checkpoint import CHECKPOINT_NAME, load_checkpoint
from agents.config import ActionMode, PPOConfig
from agents.evaluate import evaluate
from agents.policy import count_parameters
from agents.run_folder import PROGRESS_NAME, read_progress, write_text
from agents.statistics import Estimate, mean_over_seeds, success_over_seeds
from agents.train import Trainer
from envs import Suite, Task, resolve_backend

EVALUATION_NAME = "evaluation.json"


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
    backends: tuple[str, ...]
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
    missing = [run for run in runs if not is_complete(run)]
    for run in missing:
        _set_aside(run.folder)
    failures = []
    waiting = deque(missing)
    running: dict[Future[None], Run] = {}
    # Processes are spawned, not forked: an environment pool made before a fork would hang. No more
    # runs are handed over than can start at once: the pool would still train them after a Ctrl-C.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.popleft()
                running[pool.submit(_train, run)] = run
            done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            on_progress([_progress(run) for run in missing])
            for future in done:
                run = running.pop(future)
                error = future.exception()
                if error is not None:
                    failures.append(f"{run.name} ({run.folder}): {error}")
    return failures


def judge(
    runs: Sequence[Run],
    suite: Suite,
    tasks: Sequence[Task],
    *,
    episodes: int,
    mode: ActionMode,
    jobs: int,
    on_run: Callable[[Run], None],
) -> Comparison:
    """Evaluate complete runs on ``tasks``; what was evaluated before is not done again."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_evaluate, run, tuple(tasks), episodes, mode): run for run in runs}
        results: dict[Path, dict[str, Any]] = {}
        while futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in done:
                run = futures.pop(future)
                results[run.folder] = future.result()
                on_run(run)
    cores: tuple[str, ...] = tuple(dict.fromkeys(run.config.core for run in runs))
    curves = {c: [read_progress(r.folder) for r in runs if r.config.core == c] for c in cores}
    return Comparison(
        suite=suite,
        tasks=tuple(tasks),
        cores=cores,
        seeds=tuple(dict.fromkeys(run.config.seed for run in runs)),
        episodes=episodes,
        mode=mode,
        config=runs[0].config,
        backends=tuple(sorted({t["backend"] for r in results.values() for t in r.values()})),
        parameters={c: _parameters(next(r for r in runs if r.config.core == c)) for c in cores},
        env_steps_per_second={
            c: _median([x for curve in curves[c] for x in curve["env_steps_per_second"]])
            for c in cores
        },
        cells={
            (core, task.id): _cell(
                [results[r.folder][task.id] for r in runs if r.config.core == core]
            )
            for core in cores
            for task in tasks
        },
        curves=curves,
    )


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


def _train(run: Run) -> None:
    Trainer(run.config, run.folder).run()


def _evaluate(
    run: Run, tasks: tuple[Task, ...], episodes: int, mode: ActionMode
) -> dict[str, dict[str, Any]]:
    """Evaluations by task id, from the run's cache where it has them."""
    import torch

    torch.set_num_threads(run.config.threads)
    checkpoint = load_checkpoint(run.folder)
    path = run.folder / EVALUATION_NAME
    key = {"env_steps": checkpoint.env_steps, "episodes": episodes, "mode": mode}
    cached: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    results = cached.get("tasks", {}) if cached.get("key") == key else {}
    policy = None
    for task in tasks:
        if task.id not in results:
            policy = policy or checkpoint.make_policy(run.config.device)
            results[task.id] = evaluate(
                policy,
                task,
                episodes=episodes,
                seed=run.config.seed,
                mode=mode,
                backend=run.config.backend,
            ).to_dict()
            write_text(path, json.dumps({"key": key, "tasks": results}, indent=1))
    return {task.id: results[task.id] for task in tasks}


def _check_same_experiment(run: Run) -> None:
    """Refuse a folder trained with other settings rather than mix two experiments in a table."""
    if not (run.folder / CHECKPOINT_NAME).is_file():
        return
    there = asdict(load_checkpoint(run.folder).config)
    for name, value in asdict(run.config).items():
        if there[name] != value:
            raise ValueError(
                f"{str(run.folder)!r} was trained with {name}={there[name]!r}, now asked for "
                f"{value!r}. Give another --run-root, or the same settings."
            )


def _set_aside(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        number = 1
        while (target := folder.with_name(f"{folder.name}.interrupted-{number}")).exists():
            number += 1
        os.replace(folder, target)


def _progress(run: Run) -> RunProgress:
    if not (run.folder / PROGRESS_NAME).is_file():
        return RunProgress(run, 0, float("nan"))
    columns = read_progress(run.folder)
    if not columns:
        return RunProgress(run, 0, float("nan"))
    return RunProgress(run, int(columns["env_steps"][-1]), columns["success_rate"][-1])


def _parameters(run: Run) -> tuple[int, int]:
    policy = load_checkpoint(run.folder).make_policy()
    return count_parameters(policy.core), count_parameters(policy)


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else float("nan")
