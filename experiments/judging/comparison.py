"""Runs of several models and seeds: training of missing ones, and their comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.configs.base import ExperimentConfig
from experiments.experiment import Experiment, Published, Row
from experiments.fit import fit
from experiments.registry import Task
from experiments.results import RESULTS_NAME, Results, kept_results, read_results
from experiments.snapshot import judged_checkpoint, require_same
from lab import comparing, comparison
from lab.comparing import Flag, by_variant, survey
from lab.cores import folder_name
from lab.disk.folder import CONFIG_NAME, is_empty, read_progress
from lab.disk.plain_files import require_no_link
from lab.running.memory import require_memory_at_once
from lab.variants import base_of


@dataclass(frozen=True, kw_only=True)
class Run(comparing.Run[ExperimentConfig]):
    """One training run."""

    task: Task

    def is_missing(self) -> bool:
        """Whether it has no results of its last checkpoint."""
        return kept_results(self.folder) is None

    def train(self) -> None:
        """Train it in this process; an interrupted run is resumed."""
        fit(self.task.make(self.config), self.folder)

    def look_at(self) -> tuple[Finished | None, Flag | None]:
        """The run with what it left, if that can be used; else what readers have to know of it."""
        if is_empty(self.folder):
            return None, Flag("missing", self.name, "there is no such run.")
        try:
            require_same(self.folder, self.config)
        except ValueError as error:
            return None, Flag("different", self.name, f"left out: {error}")
        results = read_results(self.folder)
        if results is None:
            epochs = int(self.row.get("epoch", 0))
            return None, self.incomplete(f"{epochs} of {self.config.epochs} epochs")
        if results.checkpoint and judged_checkpoint(self.folder) not in (None, results.checkpoint):
            what = (
                f"left out: its {RESULTS_NAME} is of another checkpoint than the last one there; "
                "the command without --report-only judges it again."
            )
            return None, Flag("different", self.name, what)
        trained = type(self.config).read(self.folder / CONFIG_NAME)
        finished = Finished(
            task=self.task,
            variant=self.variant,
            config=trained,
            folder=self.folder,
            results=results,
            curve=read_progress(self.folder),
        )
        return finished, None


@dataclass(frozen=True, kw_only=True)
class Finished(Run):
    """A run with what it left, and the settings it was trained with."""

    results: Results
    curve: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Comparison(comparison.Comparison[Finished, Row]):
    """Everything that is reported. It holds only models with at least one finished run.

    Args:
        task: the task that was trained.
        experiment: the task with the settings of the first finished run.
        command: the command as typed, if known.
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
        """Sizes of a model besides its number of parameters."""
        return self.task.make(self.runs[model][0].config).sizes

    @cached_property
    def published(self) -> Mapping[str, Mapping[str, Published]]:
        """Numbers of a paper by model and key of a row, each for the settings of its model."""
        found = dict(self.experiment.published)
        for model, runs in self.runs.items():
            found[model] = self.task.make(runs[0].config).published.get(base_of(model), {})
        return {model: numbers for model, numbers in found.items() if numbers}

    def value(self, run: Finished, row: Row) -> float | None:
        """The number of a run; ``None`` if it has none."""
        return run.results.metrics.get(row.key)


def plan(
    task: Task, configs: Mapping[str, ExperimentConfig], seeds: Sequence[int], root: Path
) -> list[Run]:
    """The settings of every variant with every seed, each in a folder of its own."""
    return [
        Run(
            task=task,
            variant=variant,
            config=replace(config, seed=seed),
            folder=root / f"{folder_name(variant)}-seed{seed}",
        )
        for variant, config in configs.items()
        for seed in seeds
    ]


def check(runs: Sequence[Run], jobs: int = 1) -> None:
    """Refuse, before any work, runs that cannot be trained and folders of other runs.

    Args:
        runs: runs of one task.
        jobs: number of runs trained at a time.

    Raises:
        ValueError: in one line.
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


def assemble(
    task: Task, runs: Sequence[Run], *, command: str = "", flags: Sequence[Flag] = ()
) -> Comparison:
    """The comparison of the finished ``runs``, with flags for the others.

    Raises:
        NothingToCompare: if none is finished.
    """
    finished, noticed = survey(runs, flags)
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
        elif data != known[0]:
            what = f"made with other data ({data}) than the first run ({known[0]})."
        else:
            continue
        flags.append(Flag("different", run.name, what))
    return flags
