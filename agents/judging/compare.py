"""Training several cores over several seeds, and judging them on every task of a suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.config import ActionMode, PPOConfig
from agents.judging.comparison import Comparison, CoreCost, Measured, Run
from agents.judging.evaluations import cached_results, evaluate_run
from agents.learning.checkpoint import is_trained, load_checkpoint
from agents.learning.initial_weights import initial_weights
from agents.learning.run_settings import require_unedited
from agents.model.cores import require_usable
from agents.model.cost import multiply_adds
from agents.model.footprint import require_all_fit
from agents.model.policy import RecurrentActorCritic, count_parameters
from agents.model.trainable import require_trainable
from envs import Suite, Task
from lab.comparing import Flag, by_variant, survey
from lab.cores import folder_name
from lab.disk.folder import PROGRESS_NAME, read_progress
from lab.disk.plain_files import require_no_link
from lab.disk.store import DamagedCheckpoint, has_checkpoint
from lab.running.processes import Outcome, run_all
from lab.variants import each_variant, with_equal_sizes


def plan(
    base: PPOConfig,
    cores: Sequence[str],
    seeds: Sequence[int],
    root: Path,
    *,
    tasks: Sequence[Task] = (),
    match_params: bool = False,
    as_found: bool = False,
) -> list[Run]:
    """Every core with every seed, each in a folder of its own.

    Args:
        base: settings of all runs but for core and seed.
        cores: names or import paths, with settings of their own: see :mod:`lab.variants`.
        seeds: seeds of the runs of each core.
        root: folder of the runs' folders.
        tasks: to be judged on; that each can be made is seen now, not after the training.
        match_params: choose each core's hidden size so that it has as many parameters as the first.
        as_found: take folders whatever is in them; :func:`judge` says where that differs.

    Raises:
        ValueError: for a core that cannot be built or matched, or a folder that is a link or holds
            another experiment.
    """
    if not cores:
        raise ValueError("the comparison names no core.")
    configs = each_variant(base, cores, "core")
    for config in configs.values():
        require_usable(config)
    if match_params:
        from agents.model.matching import matched_hidden_size

        configs = with_equal_sizes(
            configs, lambda own, first: replace(own, hidden_size=matched_hidden_size(own, first))
        )
    runs = [
        Run(
            variant=core,
            config=replace(config, seed=seed),
            folder=root / f"{folder_name(core)}-seed{seed}",
        )
        for core, config in configs.items()
        for seed in seeds
    ]
    for run in runs:
        require_no_link(run.folder)
    if not as_found:
        for run in runs:
            _check_same_experiment(run)
            if not has_checkpoint(run.folder):
                initial_weights(run.config)
    require_trainable(base, others=tasks)
    return runs


def require_memory(runs: Sequence[Run], jobs: int) -> None:
    """Refuse to train missing runs for which there is no memory, before anything is made.

    Raises:
        ValueError: in one line.
    """
    require_all_fit([run.config for run in runs if not _is_known_complete(run)], jobs)


def _is_known_complete(run: Run) -> bool:
    try:
        return is_trained(run.folder, run.config.total_steps)
    except (ValueError, OSError):  # damaged: it is not trained
        return True


def judge(
    runs: Sequence[Run],
    suite: Suite,
    tasks: Sequence[Task],
    *,
    episodes: int,
    mode: ActionMode,
    jobs: int,
    on_progress: Callable[[int], None],
    flags: Sequence[Flag] = (),
    on_cpu: bool = False,
) -> Comparison:
    """Evaluate the complete ones of ``runs``; what was evaluated before is not done again.

    Args:
        runs: the runs of :func:`plan`.
        suite: their suite.
        tasks: tasks of the suite.
        episodes: per run and task.
        mode: how actions are chosen.
        jobs: runs at a time.
        on_progress: called with the number of runs newly done.
        flags: flags that :func:`lab.comparing.train_missing` returned.
        on_cpu: judge there, whatever the runs were trained on: it may be another machine.

    Returns:
        What the runs that could be evaluated amount to, flagged with all that is wrong.

    Raises:
        NothingToCompare: if there is no such run.
    """
    complete, noticed = survey(runs, flags)
    if on_cpu:
        complete = [replace(r, config=replace(r.config, device="cpu")) for r in complete]
    tasks = tuple(tasks)
    calls = [(run, tasks, episodes, mode) for run in complete]
    outcomes = {call[0].name: Outcome(cached_results(*call)) for call in calls}
    todo = [call for call in calls if outcomes[call[0].name].result is None]
    on_progress(len(runs) - len(todo))
    for call, outcome in zip(todo, run_all(evaluate_run, todo, jobs, on_progress), strict=True):
        outcomes[call[0].name] = outcome
    errors = {name: outcome.error for name, outcome in outcomes.items() if outcome.error}
    measured = []
    for run in complete:
        try:
            if run.name not in errors:
                measured.append(measure(run, outcomes[run.name].result))
        except (ValueError, OSError) as error:
            errors[run.name] = str(error)
    failed = [Flag("failed", name, f"not evaluated: {why}") for name, why in errors.items()]
    by_core, every = by_variant(runs, measured, [*flags, *noticed, *failed])
    return Comparison(
        suite=suite,
        tasks=tasks,
        seeds=tuple(dict.fromkeys(run.config.seed for run in runs)),
        episodes=episodes,
        mode=mode,
        runs=by_core,
        flags=every,
    )


def _check_same_experiment(run: Run) -> None:
    """Refuse a folder trained with other settings rather than mix two experiments in a table."""
    if not has_checkpoint(run.folder):
        return
    try:
        checkpoint = load_checkpoint(run.folder)
    except DamagedCheckpoint:
        return  # train_missing flags it; the other runs are none the worse for it
    require_unedited(run.folder, checkpoint.config)
    for name, (before, asked) in run.differences(checkpoint).items():
        raise ValueError(
            f"{str(run.folder)!r} was trained with {name}={before!r}, now asked for "
            f"{asked!r}. Give another folder, or the same settings."
        )


def measure(run: Run, results: dict[str, dict[str, Any]]) -> Measured:
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
        variant=run.variant,
        config=checkpoint.config,
        folder=run.folder,
        results=results,
        curve=curve,
        cost=_cost(checkpoint.make_policy(), checkpoint.config.hidden_size),
        training_backend=checkpoint.backend,
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
