"""Several variants, such as cores or models, over several seeds: their runs, and training them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from lab.disk.folder import newest_row, noted_failure
from lab.disk.output import write_text
from lab.disk.plain_files import read_plain_text
from lab.running.processes import Outcome, run_all

#: Holds how many runs were trained at a time, without which a run's speed says little.
JOBS_NAME = "jobs.txt"


class NothingToCompare(RuntimeError):
    """No run can be compared; one line says of each run why."""


class Flag(NamedTuple):
    """Something about a run, or all runs of a variant, that readers of the tables have to know."""

    kind: Literal["missing", "incomplete", "different", "failed"]
    of: str  # name of the run, or the variant
    what: str  # one line


def grouped(flags: Iterable[Flag]) -> list[str]:
    """One line for flags that say the same of several runs.

    Example:
        >>> grouped([Flag("missing", "a", "no run."), Flag("missing", "b", "no run.")])
        ['a, b: no run.']
    """
    names: dict[str, list[str]] = {}
    for flag in flags:
        names.setdefault(flag.what, []).append(flag.of)
    return [f"{', '.join(of)}: {what}" for what, of in names.items()]


#: A dataclass with ``seed`` and ``threads``.
Settings = TypeVar("Settings", bound=Any)


@dataclass(frozen=True, kw_only=True)
class Run(ABC, Generic[Settings]):
    """One training run: a variant with a seed, in a folder of its own."""

    variant: str  # as it is named: a core or model, see :mod:`lab.variants`
    config: Settings
    folder: Path

    @property
    def name(self) -> str:
        """Short label."""
        return f"{self.variant} seed {self.config.seed}"

    @property
    def row(self) -> dict[str, float]:
        """The newest row of its progress; empty before the first."""
        return newest_row(self.folder)

    @property
    def jobs(self) -> int | None:
        """The number of runs trained at a time; ``None`` if it is unknown."""
        try:
            return int(read_plain_text(self.folder / JOBS_NAME, 2**10))
        except (OSError, ValueError):
            return None

    @abstractmethod
    def is_missing(self) -> bool:
        """Whether it has to be trained; raises ValueError or OSError if it cannot be."""

    @abstractmethod
    def train(self) -> None:
        """Train it in this process; an interrupted run is resumed."""

    @abstractmethod
    def look_at(self) -> tuple[Run[Settings] | None, Flag | None]:
        """The run with what it left, if that can be used; and what readers have to know of it.

        Raises:
            ValueError: in one line, if something of it is damaged.
        """

    def incomplete(self, done: str) -> Flag:
        """The flag of a run that is ``done`` so far, such as "3 of 5 epochs"."""
        why = noted_failure(self.folder)
        return Flag("incomplete", self.name, f"not complete, {done}{': ' if why else ''}{why}.")


AnyRun = TypeVar("AnyRun", bound=Run[Any])


def train_missing(
    runs: Sequence[AnyRun],
    jobs: int,
    on_progress: Callable[[list[AnyRun]], None],
    launch: Callable[..., list[Outcome]] = run_all,
) -> list[Flag]:
    """Train the runs that are not finished, ``jobs`` at a time, each in its own process.

    Args:
        runs: all runs of the comparison.
        jobs: runs at a time.
        on_progress: called about every second with the runs in training.
        launch: makes the calls that train: :func:`lab.running.processes.run_all`, here, or a
            :class:`lab.slurm.launcher.SlurmLauncher`.

    Returns:
        A flag for each run that failed; the others were trained all the same.
    """
    missing, failures = [], []
    for run in runs:
        try:
            if run.is_missing():
                missing.append(run)
        except (ValueError, OSError) as error:  # such as: another command is writing there
            failures.append(Flag("failed", run.name, f"not trained: {error}"))
    jobs = min(jobs, len(missing))
    shared = jobs if launch is run_all else None  # the load of a cluster's machines is unknown
    calls = [(run, shared) for run in missing]
    outcomes = launch(_train, calls, jobs, lambda _: on_progress(missing))
    return failures + [
        Flag("failed", run.name, f"training failed: {outcome.error}")
        for run, outcome in zip(missing, outcomes, strict=True)
        if outcome.error is not None
    ]


def _train(run: Run[Any], jobs: int | None) -> None:
    run.train()
    if jobs is not None:
        write_text(run.folder / JOBS_NAME, f"{jobs}\n")


def survey(runs: Sequence[Run[Any]], known: Sequence[Flag] = ()) -> tuple[list[Any], list[Flag]]:
    """The runs that can be used, and a flag for every other one that has none in ``known``."""
    found, flags = [], []
    for run in runs:
        try:
            usable, flag = run.look_at()
        except (ValueError, OSError) as error:
            usable, flag = None, Flag("failed", run.name, str(error))
        if usable is not None:
            found.append(usable)
        if flag is not None and flag.of not in {other.of for other in known}:
            flags.append(flag)
    return found, flags


def by_variant(
    asked: Sequence[Run[Any]], found: Sequence[AnyRun], flags: Sequence[Flag]
) -> tuple[dict[str, list[AnyRun]], tuple[Flag, ...]]:
    """Runs by variant, and the flags with those of the variants that have no run.

    Raises:
        NothingToCompare: if there is no run.
    """
    if not found:
        raise NothingToCompare("no run could be compared. " + " ".join(grouped(flags)))
    variants = dict.fromkeys(run.variant for run in found)
    runs = {name: [run for run in found if run.variant == name] for name in variants}
    without = dict.fromkeys(run.variant for run in asked if run.variant not in runs)
    empty = [Flag("missing", name, "no run to judge, so not in the tables.") for name in without]
    return runs, (*empty, *flags)
