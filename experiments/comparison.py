"""Runs of several models and seeds: what is missing is trained, and what they amount to."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.configs.base import ExperimentConfig
from experiments.experiment import Experiment, Row
from experiments.fit import fit
from experiments.registry import Task
from experiments.results import RESULTS_NAME, Results, kept_results, read_results
from experiments.snapshot import judged_checkpoint, require_same
from lab.comparing import Flag, grouped
from lab.cores import folder_name
from lab.disk.folder import (
    CONFIG_NAME,
    is_empty,
    newest_row,
    noted_failure,
    read_progress,
)
from lab.disk.plain_files import require_no_link
from lab.reporting.statistics import Estimate, mean_over_seeds
from lab.running.memory import PROCESS, require_memory
from lab.running.processes import run_all


class NothingToCompare(RuntimeError):
    """No run is finished; one line says of each why."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run."""

    task: Task
    config: ExperimentConfig
    folder: Path

    @property
    def name(self) -> str:
        """Short label."""
        return f"{self.config.model} seed {self.config.seed}"


class Differences(NamedTuple):
    """A number of one model minus that of another, seed by seed."""

    seeds: tuple[int, ...]  # that both have
    values: tuple[float, ...]
    estimate: Estimate  # without interval for one seed


class Finished(NamedTuple):
    """A run with what it left."""

    config: ExperimentConfig  # as it was trained
    results: Results
    curve: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is reported. Only models with at least one finished run are in it.

    Args:
        task: what was trained.
        experiment: the task with the settings of the first finished run.
        seeds: asked for.
        runs: by model.
        jobs: runs trained at a time; ``None`` if this was only a report.
        command: as typed, if known.
        flags: what there is to know of runs that are not in it, or differ.
    """

    task: Task
    experiment: Experiment[Any, Any]
    seeds: tuple[int, ...]
    runs: Mapping[str, Sequence[Finished]]
    jobs: int | None
    command: str
    flags: Sequence[Flag]

    @property
    def models(self) -> tuple[str, ...]:
        """Models with results."""
        return tuple(self.runs)

    @property
    def rows(self) -> Sequence[Row]:
        """Rows of the tables, those that any run has a number for."""
        known = {key for own in self.runs.values() for run in own for key in run.results.metrics}
        return [row for row in self.experiment.rows if row.key in known]

    @property
    def failed(self) -> bool:
        """Whether any run could not be trained or used."""
        return any(flag.kind == "failed" for flag in self.flags)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that all runs share; those that do something in some runs only, by them."""
        found = dict[str, list[Any]]()
        for run in (run for own in self.runs.values() for run in own):
            for name, value in asdict(run.config).items():
                if name not in ("model", "seed", *run.config.unused):
                    found.setdefault(name, []).append(value)
        return {
            name: values[0]
            for name, values in found.items()
            if all(value == values[0] for value in values)
        }

    def seeds_of(self, model: str) -> tuple[int, ...]:
        """Seeds of the finished runs of a model."""
        return tuple(run.config.seed for run in self.runs[model])

    def sizes(self, model: str) -> Mapping[str, int]:
        """What there is to say of a model besides its number of parameters."""
        return self.task.make(self.runs[model][0].config).sizes

    def values(self, model: str, row: Row) -> list[float]:
        """The number of each seed; those without are left out."""
        metrics = (run.results.metrics for run in self.runs[model])
        return [own[row.key] for own in metrics if row.key in own]

    def estimate(self, model: str, row: Row) -> Estimate | None:
        """Mean over seeds with Student's t interval; ``None`` if no seed has a number."""
        values = self.values(model, row)
        return mean_over_seeds(values, bounds=row.bounds) if values else None

    @property
    def baseline(self) -> str:
        """The model that the others are compared with: the first one."""
        return self.models[0]

    def differences(self, model: str, row: Row) -> Differences | None:
        """A model minus the baseline, over the seeds that both have; ``None`` if there are none.

        Runs of one seed have the same data, so that what these do to both is taken out.
        """
        first, other = (
            {run.config.seed: run.results.metrics.get(row.key) for run in self.runs[name]}
            for name in (self.baseline, model)
        )
        pairs = [(seed, other[seed], first.get(seed)) for seed in other]
        found = {s: mine - base for s, mine, base in pairs if mine is not None and base is not None}
        if not found:
            return None
        values, (low, high) = tuple(found.values()), row.bounds
        estimate = mean_over_seeds(values, bounds=(low - high, high - low))
        return Differences(tuple(found), values, estimate)


def plan(
    task: Task, configs: Sequence[ExperimentConfig], seeds: Sequence[int], root: Path
) -> list[Run]:
    """The settings of every model with every seed, each in a folder of its own."""
    return [
        Run(
            task=task,
            config=replace(config, seed=seed),
            folder=root / f"{folder_name(config.model)}-seed{seed}",
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
    for run in {run.config.model: run for run in runs}.values():
        experiment = run.task.make(run.config)
        experiment.check()
        needed[run.config.model] = PROCESS + experiment.memory
    missing = [run for run in runs if not (run.folder / RESULTS_NAME).exists()]
    largest = heapq.nlargest(jobs, (needed[run.config.model] for run in missing))
    require_memory(sum(largest), f"training {len(largest)} runs at a time", "give less --jobs")
    for run in runs:
        if run.folder.is_dir() or not run.folder.exists():  # a file there fails this run alone
            require_same(run.folder, run.config)


def train_missing(
    runs: Sequence[Run], jobs: int, on_progress: Callable[[Sequence[Run]], None]
) -> list[Flag]:
    """Train the runs that are not finished, ``jobs`` at a time; interrupted ones go on.

    Returns:
        A flag for each run that failed; the others were trained all the same.
    """
    missing, failures = [], []
    for run in runs:
        try:
            if kept_results(run.folder) is None:
                missing.append(run)
        except ValueError as error:
            failures.append(Flag("failed", run.name, f"not trained: {error}"))
    outcomes = run_all(train_one, [(run,) for run in missing], jobs, lambda _: on_progress(missing))
    return failures + [
        Flag("failed", run.name, f"training failed: {outcome.error}")
        for run, outcome in zip(missing, outcomes, strict=True)
        if outcome.error is not None
    ]


def train_one(run: Run) -> None:
    """Train a run in this process."""
    fit(run.task.make(run.config), run.folder)


def assemble(
    task: Task,
    runs: Sequence[Run],
    *,
    jobs: int | None = None,
    command: str = "",
    flags: Sequence[Flag] = (),
) -> Comparison:
    """What the finished ones of ``runs`` amount to, flagged with what is wrong with the others.

    Raises:
        NothingToCompare: if none is finished.
    """
    known = {flag.of for flag in flags}
    flags, finished = list(flags), dict[str, list[Finished]]()
    for run in runs:
        try:
            found = look_at(run)
        except ValueError as error:
            found = Flag("failed", run.name, str(error))
        if isinstance(found, Finished):
            finished.setdefault(run.config.model, []).append(found)
        elif run.name not in known:
            flags.append(found)
    if not finished:
        raise NothingToCompare("no run could be compared. " + " ".join(grouped(flags)))
    first = next(iter(finished.values()))[0]
    flags += _of_other_data([run for own in finished.values() for run in own])
    return Comparison(
        task=task,
        experiment=task.make(first.config),
        seeds=tuple(dict.fromkeys(run.config.seed for run in runs)),
        runs=finished,
        jobs=jobs,
        command=command,
        flags=flags,
    )


def _of_other_data(runs: Sequence[Finished]) -> list[Flag]:
    """What there is to know of runs on other data than the first one that noted its own."""
    known = [run.results.data for run in runs if run.results.data is not None]
    flags = []
    for run in runs:
        name, data = f"{run.config.model} seed {run.config.seed}", run.results.data
        if data is None:
            what = (
                "made by an earlier version, which did not note what its data were and counted "
                "making them as training time."
            )
            flags.append(Flag("different", name, what))
        elif data != known[0]:
            what = f"made with other data ({data}) than the first run ({known[0]})."
            flags.append(Flag("different", name, what))
    return flags


def look_at(run: Run) -> Finished | Flag:
    """What a run left, or what there is to know of it.

    Raises:
        ValueError: in one line, if something of it is damaged.
    """
    if is_empty(run.folder):
        return Flag("missing", run.name, "there is no such run.")
    try:
        require_same(run.folder, run.config)
    except ValueError as error:
        return Flag("different", run.name, f"left out: {error}")
    results = read_results(run.folder)
    if results is None:
        epochs, why = int(newest_row(run.folder).get("epoch", 0)), noted_failure(run.folder)
        what = f"not complete, {epochs} of {run.config.epochs} epochs{': ' * bool(why)}{why}."
        return Flag("incomplete", run.name, what)
    if results.checkpoint and judged_checkpoint(run.folder) not in (None, results.checkpoint):
        what = (
            f"left out: its {RESULTS_NAME} is of another checkpoint than the last one there; the "
            "command without --report-only judges it again."
        )
        return Flag("different", run.name, what)
    trained = type(run.config).read(run.folder / CONFIG_NAME)
    return Finished(trained, results, read_progress(run.folder))
