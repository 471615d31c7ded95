"""Training several cores over several seeds, and judging them on every task of a suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from agents.config import WITHOUT_EFFECT, ActionMode, PPOConfig, folder_name
from agents.judging.comparison import Comparison, Measured, Run
from agents.judging.evaluations import cached_results, evaluate_run
from agents.judging.measurements import measure
from agents.learning.checkpoint import Checkpoint, is_trained, load_checkpoint
from agents.learning.initial_weights import initial_weights
from agents.learning.resuming import trainer_for
from agents.learning.run_settings import notice, require_unedited
from agents.model.cores import require_usable
from agents.model.footprint import require_all_fit
from agents.model.trainable import require_trainable
from envs import Suite, Task, resolve_backend
from lab import comparing
from lab.comparing import Flag, by_variant, incomplete
from lab.disk.folder import is_empty, newest_row, note_failure
from lab.disk.lock import require_unlocked
from lab.disk.plain_files import require_no_link
from lab.disk.store import DamagedCheckpoint, has_checkpoint
from lab.running.processes import Outcome, run_all


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
    """Train the runs of :func:`plan` that are not complete; interrupted ones go on.

    Args and result are those of :func:`lab.comparing.train_missing`.
    """
    return comparing.train_missing(
        runs,
        _is_missing,
        _train,
        jobs,
        lambda missing: on_progress([_progress(run) for run in missing]),
        launch,
    )


def _is_missing(run: Run) -> bool:
    if is_trained(run.folder, run.config.total_steps):
        return False
    if not is_empty(run.folder):
        require_unlocked(run.folder)  # nobody else may be writing there
    return True


def _train(run: Run) -> None:
    trainer = trainer_for(run.config, run.folder)
    try:
        trainer.run()
    except Exception as error:
        note_failure(run.folder, error)
        raise


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
        NothingToCompare: if there is no such run.
    """
    complete, noticed = survey(runs, flags)
    if on_cpu:
        complete = [replace(r, config=replace(r.config, device="cpu")) for r in complete]
    tasks = tuple(tasks)
    todo = [run for run in complete if cached_results(run, tasks, episodes, mode) is None]
    on_progress(len(runs) - len(todo))
    calls = [(run, tasks, episodes, mode) for run in todo]
    outcomes = run_all(evaluate_run, calls, jobs, on_progress)
    errors = {run.name: o.error for run, o in zip(todo, outcomes, strict=True) if o.error}

    def measured(run: Run) -> tuple[Measured | None, Flag | None]:
        try:
            if run.name not in errors:
                return measure(run, tasks, episodes, mode), None
        except (ValueError, OSError) as error:
            errors[run.name] = str(error)
        return None, Flag("failed", run.name, f"not evaluated: {errors[run.name]}")

    found, failures = comparing.survey(complete, measured)
    by_core, every = by_variant(runs, found, [*flags, *noticed, *failures])
    return Comparison(
        suite=suite,
        tasks=tasks,
        seeds=tuple(dict.fromkeys(run.config.seed for run in runs)),
        episodes=episodes,
        mode=mode,
        runs=by_core,
        flags=every,
    )


def survey(runs: Sequence[Run], known: Sequence[Flag] = ()) -> tuple[list[Run], list[Flag]]:
    """Find the complete runs; flags for the rest and for runs that differ from what was asked."""
    return comparing.survey(runs, _look_at, known)


def _look_at(run: Run) -> tuple[Run | None, Flag | None]:
    """The run if it can be judged, and what readers have to know of it."""
    if is_empty(run.folder):
        return None, Flag("missing", run.name, "there is no such run.")
    asked = run.config
    checkpoint = load_checkpoint(run.folder) if has_checkpoint(run.folder) else None
    if checkpoint is None or checkpoint.env_steps < checkpoint.config.total_steps:
        total = asked.total_steps if checkpoint is None else checkpoint.config.total_steps
        steps = _progress(run).env_steps
        return None, incomplete(run, f"{steps:,} of {total:,} environment steps")
    there = checkpoint.config
    differing = "; ".join(
        f"{name}={before!r}, asked for {now!r}"
        for name, (before, now) in _differences(run, checkpoint).items()
    )
    if (there.core, there.seed, there.task) != (asked.core, asked.seed, asked.task):
        return None, Flag("different", run.name, f"another run, left out: {differing}.")
    if differing:
        return run, Flag("different", run.name, f"trained with {differing}.")
    if edited := notice(run.folder, there):
        return run, Flag("different", run.name, f"{edited}.")
    return run, None


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
    there = asdict(checkpoint.config)
    pairs = {
        name: (there[name], asked)
        for name, asked in asdict(run.config).items()
        if name not in WITHOUT_EFFECT
    }
    if checkpoint.env_steps >= checkpoint.config.total_steps:  # else it will be trained again
        now = resolve_backend(run.config.task, run.config.backend)
        pairs["environments"] = (checkpoint.backend, now)
    return {name: (before, asked) for name, (before, asked) in pairs.items() if before != asked}


def _progress(run: Run) -> RunProgress:
    return RunProgress(run, newest_row(run.folder))
