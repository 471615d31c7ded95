"""Runs of several models and seeds: what is missing is trained, and what they amount to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from experiments.configs.base import ExperimentConfig, read_config
from experiments.experiment import Experiment, Row
from experiments.fit import fit
from experiments.registry import Task
from experiments.results import RESULTS_NAME, Results, kept_results, read_results
from experiments.snapshot import judged_checkpoint, require_same
from lab import comparing, comparison
from lab.comparing import Flag, by_variant, incomplete
from lab.disk.folder import CONFIG_NAME, is_empty, newest_row, read_progress
from lab.disk.plain_files import require_no_link
from lab.running.memory import require_memory_at_once


@dataclass(frozen=True, kw_only=True)
class Run(comparing.Run[ExperimentConfig]):
    """One training run."""

    varied: ClassVar[str] = "model"

    task: Task

    @property
    def unused(self) -> frozenset[str]:
        """Settings that do nothing in this run."""
        return self.config.unused


@dataclass(frozen=True, kw_only=True)
class Finished(Run):
    """A run with what it left, and the settings it was trained with."""

    results: Results
    curve: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Comparison(comparison.Comparison[Finished, Row]):
    """All that is reported. Only models with at least one finished run are in it.

    Args:
        task: what was trained.
        experiment: the task with the settings of the first finished run.
        command: as typed, if known.
    """

    task: Task
    experiment: Experiment[Any, Any]
    command: str

    @property
    def rows(self) -> Sequence[Row]:
        """Rows of the tables, those that any run has a number for."""
        known = {key for run in self.finished for key in run.results.metrics}
        return [row for row in self.experiment.rows if row.key in known]

    @property
    def main_rows(self) -> Sequence[Row]:
        """Rows that are also drawn."""
        return [row for row in self.rows if row.drawn]

    def sizes(self, model: str) -> Mapping[str, int]:
        """What there is to say of a model besides its number of parameters."""
        return self.task.make(self.runs[model][0].config).sizes

    def value(self, run: Finished, row: Row) -> float | None:
        """The number of a run; ``None`` if it has none."""
        return run.results.metrics.get(row.key)


def plan(
    task: Task, configs: Sequence[ExperimentConfig], seeds: Sequence[int], root: Path
) -> list[Run]:
    """The settings of every model with every seed, each in a folder of its own."""
    return [
        Run(
            task=task,
            config=replace(config, seed=seed),
            folder=root / f"{config.model}-seed{seed}",
        )
        for config in configs
        for seed in seeds
    ]


def check(runs: Sequence[Run], jobs: int = 1) -> None:
    """See that all runs can be trained and every folder is theirs, before any work.

    Args:
        runs: of one task.
        jobs: that are trained at a time.

    Raises:
        ValueError: in one line, if not.
    """
    from lab.running.devices import usable_device

    for run in runs:
        require_no_link(run.folder)
    usable_device(runs[0].config.device)
    needed = {}
    for run in {run.variant: run for run in runs}.values():
        experiment = run.task.make(run.config)
        experiment.check()
        needed[run.variant] = experiment.memory
    missing = [run for run in runs if not (run.folder / RESULTS_NAME).exists()]
    require_memory_at_once([needed[run.variant] for run in missing], jobs)
    for run in runs:
        if run.folder.is_dir() or not run.folder.exists():  # a file there fails this run alone
            require_same(run.folder, run.config)


def train_missing(
    runs: Sequence[Run], jobs: int, on_progress: Callable[[Sequence[Run]], None]
) -> list[Flag]:
    """Train the runs that are not finished; interrupted ones go on.

    Args and result are those of :func:`lab.comparing.train_missing`.
    """
    return comparing.train_missing(runs, _is_missing, train_one, jobs, on_progress)


def _is_missing(run: Run) -> bool:
    return kept_results(run.folder) is None


def train_one(run: Run) -> None:
    """Train a run in this process."""
    fit(run.task.make(run.config), run.folder)


def assemble(
    task: Task, runs: Sequence[Run], *, command: str = "", flags: Sequence[Flag] = ()
) -> Comparison:
    """What the finished ones of ``runs`` amount to, flagged with what is wrong with the others.

    Raises:
        NothingToCompare: if none is finished.
    """
    finished, noticed = comparing.survey(runs, look_at, flags)
    by_model, every = by_variant(runs, finished, [*flags, *noticed])
    return Comparison(
        task=task,
        experiment=task.make(finished[0].config),
        seeds=tuple(dict.fromkeys(run.config.seed for run in runs)),
        runs=by_model,
        command=command,
        flags=(*every, *_other_data(finished)),
    )


def _other_data(runs: Sequence[Finished]) -> list[Flag]:
    """Flags of the runs on other data than the first one that noted its own."""
    known = [run.results.data for run in runs if run.results.data is not None]
    flags = []
    for run in runs:
        data = run.results.data
        if data is None:
            what = (
                "made by an earlier version, which did not note what its data were and counted "
                "making them as training time."
            )
            flags.append(Flag("different", run.name, what))
        elif data != known[0]:
            what = f"made with other data ({data}) than the first run ({known[0]})."
            flags.append(Flag("different", run.name, what))
    return flags


def look_at(run: Run) -> tuple[Finished | None, Flag | None]:
    """What a run left, if it can be used; else what readers have to know of it.

    Raises:
        ValueError: in one line, if something of it is damaged.
    """
    if is_empty(run.folder):
        return None, Flag("missing", run.name, "there is no such run.")
    try:
        require_same(run.folder, run.config)
    except ValueError as error:
        return None, Flag("different", run.name, f"left out: {error}")
    results = read_results(run.folder)
    if results is None:
        epochs = int(newest_row(run.folder).get("epoch", 0))
        return None, incomplete(run, f"{epochs} of {run.config.epochs} epochs")
    if results.checkpoint and judged_checkpoint(run.folder) not in (None, results.checkpoint):
        what = (
            f"left out: its {RESULTS_NAME} is of another checkpoint than the last one there; the "
            "command without --report-only judges it again."
        )
        return None, Flag("different", run.name, what)
    trained = read_config(run.folder / CONFIG_NAME, type(run.config))
    finished = Finished(
        task=run.task,
        config=trained,
        folder=run.folder,
        results=results,
        curve=read_progress(run.folder),
    )
    return finished, None
