"""Several variants, such as cores or models, over several seeds: their runs, and training them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from lab.disk.folder import noted_failure, write_text
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

    def __str__(self) -> str:
        return f"{self.of}: {self.what}"


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


class Settings(Protocol):
    """The settings of a run: a dataclass with at least these fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def seed(self) -> int:
        """Decides all that is drawn."""

    @property
    def threads(self) -> int:
        """Threads that the run computes with."""


SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclass(frozen=True, kw_only=True)
class Run(Generic[SettingsT]):
    """One training run: a variant with a seed, in a folder of its own."""

    #: The setting that tells the variants apart.
    varied: ClassVar[str]

    config: SettingsT
    folder: Path

    @property
    def variant(self) -> str:
        """The variant that is trained."""
        return str(getattr(self.config, self.varied))

    @property
    def name(self) -> str:
        """Short label."""
        return f"{self.variant} seed {self.config.seed}"

    @property
    def unused(self) -> frozenset[str]:
        """Settings that do nothing in this run."""
        return frozenset()

    @property
    def jobs(self) -> int | None:
        """How many runs were trained at a time; ``None`` if this one was trained on its own."""
        try:
            return int(read_plain_text(self.folder / JOBS_NAME, 2**10))
        except (OSError, ValueError):
            return None


RunT = TypeVar("RunT", bound=Run[Any])
FoundT = TypeVar("FoundT")


def train_missing(
    runs: Sequence[RunT],
    is_missing: Callable[[RunT], bool],
    train: Callable[[RunT], object],
    jobs: int,
    on_progress: Callable[[list[RunT]], None],
    launch: Callable[..., list[Outcome]] = run_all,
) -> list[Flag]:
    """Train the runs that are not finished, ``jobs`` at a time, each in its own process.

    Args:
        runs: all runs of the comparison.
        is_missing: tells whether a run has to be trained; an error keeps it from being trained.
        train: trains one run; a function of a module.
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
            if is_missing(run):
                missing.append(run)
        except (ValueError, OSError) as error:  # such as: another command is writing there
            failures.append(Flag("failed", run.name, f"not trained: {error}"))
    jobs = min(jobs, len(missing))
    shared = jobs if launch is run_all else None  # the load of a cluster's machines is unknown
    outcomes = launch(
        _train_one, [(train, run, shared) for run in missing], jobs, lambda _: on_progress(missing)
    )
    return failures + [
        Flag("failed", run.name, f"training failed: {outcome.error}")
        for run, outcome in zip(missing, outcomes, strict=True)
        if outcome.error is not None
    ]


def _train_one(train: Callable[[RunT], object], run: RunT, jobs: int | None) -> None:
    train(run)
    if jobs is not None:
        write_text(run.folder / JOBS_NAME, f"{jobs}\n")


def survey(
    runs: Sequence[RunT],
    look_at: Callable[[RunT], tuple[FoundT | None, Flag | None]],
    known: Sequence[Flag] = (),
) -> tuple[list[FoundT], list[Flag]]:
    """Look at every run: what the complete ones left, and flags.

    Args:
        runs: all runs of the comparison.
        look_at: returns what a run left, if that can be used, and a flag, if readers need one. An
            error is a flag, too.
        known: flags there are already; runs with one get no other.
    """
    found, flags = [], []
    for run in runs:
        try:
            one, flag = look_at(run)
        except (ValueError, OSError) as error:
            one, flag = None, Flag("failed", run.name, str(error))
        if one is not None:
            found.append(one)
        if flag is not None and flag.of not in {other.of for other in known}:
            flags.append(flag)
    return found, flags


def incomplete(run: Run[Any], done: str) -> Flag:
    """The flag of a run that is ``done`` so far, such as "3 of 5 epochs"."""
    why = noted_failure(run.folder)
    return Flag("incomplete", run.name, f"not complete, {done}{': ' if why else ''}{why}.")


def by_variant(
    asked: Sequence[Run[Any]], finished: Sequence[RunT], flags: Sequence[Flag]
) -> tuple[dict[str, list[RunT]], tuple[Flag, ...]]:
    """Sort finished runs by variant, and flag the variants that have none.

    Raises:
        NothingToCompare: if there is no finished run.
    """
    if not finished:
        raise NothingToCompare("no run could be compared. " + " ".join(grouped(flags)))
    found: dict[str, list[RunT]] = {}
    for run in finished:
        found.setdefault(run.variant, []).append(run)
    without = dict.fromkeys(run.variant for run in asked if run.variant not in found)
    empty = [Flag("missing", name, "no run to judge, so not in the tables.") for name in without]
    return found, (*empty, *flags)
