"""Training several cores over several seeds, and judging them on every task of a suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from agents.config import ActionMode, PPOConfig
from agents.judging.comparison import Comparison, Run
from agents.judging.evaluations import cached_results, evaluate_run
from agents.judging.measurements import JOBS_NAME, Measured, assemble, measure
from agents.learning.checkpoint import Checkpoint, is_trained, load_checkpoint
from agents.learning.initial_weights import initial_weights
from agents.learning.resuming import trainer_for
from agents.learning.run_settings import notice, require_unedited
from agents.model.cores import require_usable
from agents.model.footprint import require_all_fit
from agents.model.trainable import require_trainable
from envs import Suite, Task, resolve_backend
from lab.comparing import Flag, grouped
from lab.cores import folder_name
from lab.disk.folder import (
    is_empty,
    newest_row,
    note_failure,
    noted_failure,
    write_text,
)
from lab.disk.lock import require_unlocked
from lab.disk.plain_files import require_no_link
from lab.disk.store import DamagedCheckpoint, has_checkpoint
from lab.running.processes import Outcome, run_all


class JudgingError(RuntimeError):
    """There is nothing to compare; one line says of each run why."""


class RunProgress(NamedTuple):
    """How far a run is."""

    run: Run
    row: dict[str, float]  # of its newest update; empty before the first

    @property
    def env_steps(self) -> int:
        """Environment steps so far."""
        return int(self.row.get("env_steps", 0))


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
        cores: names or import paths.
        seeds: of the runs of each core.
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
    configs = [replace(base, core=core) for core in cores]
    for config in configs:
        require_usable(config)
    if match_params:
        configs = _matched(configs)
    runs = [
        Run(
            config=replace(config, seed=seed),
            folder=root / f"{folder_name(config.core)}-seed{seed}",
        )
        for config in configs
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


def _matched(configs: Sequence[PPOConfig]) -> list[PPOConfig]:
    from agents.model.matching import matched_hidden_size

    first, *others = configs
    return [
        first,
        *(replace(c, hidden_size=matched_hidden_size(c, first)) for c in others),
    ]


def require_memory(runs: Sequence[Run], jobs: int) -> None:
    """See that there is memory to train what is missing, before anything is made.

    Raises:
        ValueError: in one line, if not.
    """
    require_all_fit([run.config for run in runs if not _is_known_complete(run)], jobs)


def _is_known_complete(run: Run) -> bool:
    try:
        return is_trained(run.folder, run.config.total_steps)
    except (ValueError, OSError):  # damaged: it is not trained
        return True


def train_missing(
    runs: Sequence[Run],
    jobs: int,
    on_progress: Callable[[list[RunProgress]], None],
    launch: Callable[..., list[Outcome]] = run_all,
) -> list[Flag]:
    """Train the runs that are not complete, ``jobs`` at a time, each in its own process.

    Interrupted ones go on where they were.

    Args:
        runs: the runs of :func:`plan`.
        jobs: runs at a time.
        on_progress: called about every second with how far the runs in training are.
        launch: makes the calls that train: :func:`lab.running.processes.run_all`, here, or a
            :class:`lab.slurm.launcher.SlurmLauncher`.

    Returns:
        A flag for each run that failed; the others were trained all the same.
    """
    missing, failures = [], []
    for run in runs:
        try:
            if not is_trained(run.folder, run.config.total_steps):
                if not is_empty(run.folder):
                    require_unlocked(run.folder)  # nobody else may be writing there
                missing.append(run)
        except (ValueError, OSError) as error:  # such as: another command is writing there
            failures.append(Flag("failed", run.name, f"not trained: {error}"))
    jobs = min(jobs, len(missing))
    shared = jobs if launch is run_all else None  # of a cluster's machines it is not known
    outcomes = launch(
        _train,
        [(run, shared) for run in missing],
        jobs,
        lambda _: on_progress([_progress(run) for run in missing]),
    )
    return failures + [
        Flag("failed", run.name, f"training failed: {outcome.error}")
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
        flags: what is known to be wrong already, of :func:`train_missing`.
        on_cpu: judge there, whatever the runs were trained on: it may be another machine.

    Returns:
        What the runs that could be evaluated amount to, flagged with all that is wrong.

    Raises:
        JudgingError: if there is no such run.
    """
    known = {flag.of for flag in flags}
    complete, noticed = survey(runs)
    flags = [*flags, *(flag for flag in noticed if flag.of not in known)]
    if on_cpu:
        complete = [replace(r, config=replace(r.config, device="cpu")) for r in complete]
    calls = [(run, tuple(tasks), episodes, mode) for run in complete]
    outcomes = {call[0].name: Outcome(cached_results(*call)) for call in calls}
    todo = [call for call in calls if outcomes[call[0].name].result is None]
    on_progress(len(runs) - len(todo))
    for call, outcome in zip(todo, run_all(evaluate_run, todo, jobs, on_progress), strict=True):
        outcomes[call[0].name] = outcome
    errors = {name: outcome.error for name, outcome in outcomes.items() if outcome.error}
    measured: list[Measured] = []
    for run in complete:
        try:
            if run.name not in errors:
                measured.append(measure(run, outcomes[run.name].result))
        except (ValueError, OSError) as error:
            errors[run.name] = str(error)
    flags += [Flag("failed", name, f"not evaluated: {why}") for name, why in errors.items()]
    if not measured:
        raise JudgingError("no run could be compared. " + " ".join(grouped(flags)))
    return assemble(runs, suite, tasks, episodes, mode, measured, flags)


def survey(runs: Sequence[Run]) -> tuple[list[Run], list[Flag]]:
    """Which runs are complete, and what there is to know of the others and of differing ones."""
    complete, flags = [], []
    for run in runs:
        try:
            flag, usable = _look_at(run)
        except ValueError as error:  # damaged
            flag, usable = Flag("failed", run.name, str(error)), False
        flags += [flag] if flag else []
        complete += [run] if usable else []
    return complete, flags


def _look_at(run: Run) -> tuple[Flag | None, bool]:
    """What there is to know of a run, and whether it can be judged."""
    if is_empty(run.folder):
        return Flag("missing", run.name, "there is no such run."), False
    asked = run.config
    checkpoint = load_checkpoint(run.folder) if has_checkpoint(run.folder) else None
    if checkpoint is None or checkpoint.env_steps < checkpoint.config.total_steps:
        total = asked.total_steps if checkpoint is None else checkpoint.config.total_steps
        steps = _progress(run).env_steps
        what = f"not complete, {steps:,} of {total:,} environment steps{_reason(run.folder)}."
        return Flag("incomplete", run.name, what), False
    there = checkpoint.config
    differing = "; ".join(
        f"{name}={before!r}, asked for {now!r}"
        for name, (before, now) in _differences(run, checkpoint).items()
    )
    if (there.core, there.seed, there.task) != (asked.core, asked.seed, asked.task):
        return Flag("different", run.name, f"another run, left out: {differing}."), False
    if differing:
        return Flag("different", run.name, f"trained with {differing}."), True
    if edited := notice(run.folder, there):
        return Flag("different", run.name, f"{edited}."), True
    return None, True


def _reason(folder: Path) -> str:
    """Why its training ended, if that is known."""
    why = noted_failure(folder)
    return f": {why}" if why else ""


def _train(run: Run, jobs: int | None) -> None:
    trainer = trainer_for(run.config, run.folder)
    try:
        trainer.run()
    except Exception as error:
        note_failure(run.folder, error)
        raise
    if jobs is not None:
        write_text(run.folder / JOBS_NAME, f"{jobs}\n")


def _check_same_experiment(run: Run) -> None:
    """Refuse a folder trained with other settings rather than mix two experiments in a table."""
    if not has_checkpoint(run.folder):
        return
    try:
        checkpoint = load_checkpoint(run.folder)
    except DamagedCheckpoint:
        return  # train_missing flags it; the other runs are none the worse for it
    require_unedited(run.folder, checkpoint.config)
    for name, (before, asked) in _differences(run, checkpoint).items():
        raise ValueError(
            f"{str(run.folder)!r} was trained with {name}={before!r}, now asked for "
            f"{asked!r}. Give another folder, or the same settings."
        )


def _differences(run: Run, checkpoint: Checkpoint) -> dict[str, tuple[Any, Any]]:
    """Settings of a trained run that are not those asked for: as they are, as asked for."""
    found = checkpoint.config.differences(run.config)
    if checkpoint.env_steps >= checkpoint.config.total_steps:  # else it will be trained again
        now = resolve_backend(run.config.task, run.config.backend)
        if now != checkpoint.backend:
            found["environments"] = (checkpoint.backend, now)
    return found


def _progress(run: Run) -> RunProgress:
    return RunProgress(run, newest_row(run.folder))
