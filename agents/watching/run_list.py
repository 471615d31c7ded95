"""Run folders on disk: finding them, reading them, and grouping those that belong together."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agents.config import PPOConfig
from envs import SUITES, Task
from lab.cores import core_label
from lab.disk.folder import (
    PROGRESS_NAME,
    SET_ASIDE,
    read_config,
    read_progress,
    require_run_folder,
)

#: Settings that may differ between runs that are seeds of one experiment.
_NOT_OF_THE_EXPERIMENT = ("seed", *PPOConfig.without_effect())

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(PPOConfig)}


class FoundRun(NamedTuple):
    """The content of a run folder; settings or progress are empty if there are none yet."""

    folder: Path
    settings: dict[str, Any]
    progress: dict[str, list[float]]

    @property
    def core(self) -> str:
        """The core trained, as a table calls it."""
        return core_label(str(self.settings.get("core", "")))

    @property
    def task(self) -> str:
        """Short name of the task trained on."""
        suite = SUITES.get(str(self.settings.get("suite", "")))
        if suite is not None:
            return suite.train.name
        name = str(self.settings.get("env") or self.settings.get("suite") or "")
        if name.endswith(".toml"):  # a suite's file, which may be gone
            return Path(name).stem
        # Else an environment, or a suite that this version does not know.
        return Task(id=name).name

    @property
    def total_steps(self) -> int:
        """Environment steps to train for; 0 if unknown."""
        try:
            return int(self.settings.get("total_steps", 0))
        except (ValueError, TypeError, OverflowError):  # no number, or not a finite one
            return 0

    @property
    def row(self) -> dict[str, float]:
        """The newest row; empty before the first."""
        return {name: column[-1] for name, column in self.progress.items()}

    @property
    def env_steps(self) -> int:
        """Environment steps so far."""
        return int(self.row.get("env_steps", 0))

    @property
    def is_complete(self) -> bool:
        """Whether the budget is reached."""
        return 0 < self.total_steps <= self.env_steps


class Group(NamedTuple):
    """Runs of the same settings with different seeds, and a name no other group has."""

    label: str
    core: str
    runs: list[FoundRun]


def find_runs(places: Iterable[Path]) -> list[Path]:
    """The run folders among and below ``places``, each once, in order of their names.

    Below a run folder nothing is looked for, and runs that a comparison set aside are left out
    unless they are named themselves.

    Raises:
        ValueError: if a place does not exist or there is no run in it.
    """
    found: dict[Path, Path] = {}
    for place in places:
        require_run_folder(place)
        folders = _runs_below(place)
        if not folders:
            raise ValueError(f"{str(place)!r} holds no run: no {PROGRESS_NAME} in it or below it.")
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _runs_below(place: Path) -> list[Path]:
    runs = []
    for name, folders, files in os.walk(place):
        if PROGRESS_NAME in files:
            runs.append(Path(name))
            folders.clear()
        folders[:] = sorted(f for f in folders if SET_ASIDE not in f)
    return runs


def read_run(folder: Path) -> FoundRun:
    """Read a run folder, which may be being written.

    Raises:
        ValueError: in one line, if a file in it is damaged or not what it should be.
    """
    return FoundRun(folder, read_config(folder), read_rows(folder))


def with_progress(runs: Sequence[FoundRun], named: Iterable[Path]) -> list[FoundRun]:
    """The runs that have a row to show; others may have just begun.

    Args:
        runs: the runs found.
        named: the folders that were asked for; one that is itself a run must have a row.

    Raises:
        ValueError: if one of those has none, or no run at all has one.
    """
    asked = {place.resolve() for place in named}
    having = [run for run in runs if run.progress]
    for run in runs:
        if not run.progress and (run.folder.resolve() in asked or not having):
            raise ValueError(f"{str(run.folder)!r} holds no progress yet: not one update is done.")
    return having


def read_rows(folder: Path) -> dict[str, list[float]]:
    """The columns of ``progress.csv`` as far as they are written.

    Raises:
        ValueError: if there is no such file, or something in it is not a number.
    """
    try:
        return read_progress(folder)
    except (ValueError, TypeError) as error:  # of float()
        if not (folder / PROGRESS_NAME).is_file():
            raise
        path = str(folder / PROGRESS_NAME)
        raise ValueError(f"{path!r} is not a table of numbers: {error}.") from None


def group_runs(runs: Sequence[FoundRun]) -> list[Group]:
    """Put runs together that differ in nothing but the seed, and name the groups.

    A group is named for its core, and its task if there are several; where that is no name of its
    own, a single run for its folder, and several for the settings or folder they share. What is
    still no name of its own has its folder added.
    """
    together: dict[tuple[Any, ...], list[FoundRun]] = {}
    for run in runs:
        together.setdefault(_experiment(run), []).append(run)
    groups = [part for group in together.values() for part in _without_repeats(group)]
    return [
        Group(label, str(group[0].settings.get("core", "")), group)
        for label, group in zip(_labels(groups), groups, strict=True)
    ]


def _experiment(run: FoundRun) -> tuple[Any, ...]:
    if not run.settings:
        return (run.folder,)
    # A run of an earlier version does not name settings that came later; it had their defaults.
    settings = {**_DEFAULTS, **run.settings}
    return tuple(
        sorted((k, repr(v)) for k, v in settings.items() if k not in _NOT_OF_THE_EXPERIMENT)
    )


def _without_repeats(group: list[FoundRun]) -> list[list[FoundRun]]:
    """Split a group in which a seed occurs twice: that is an experiment made again elsewhere."""
    parts: dict[Path, list[FoundRun]] = {}
    for run in group:
        parts.setdefault(run.folder.resolve().parent, []).append(run)
    split = list(parts.values())
    for candidate in ([group], split):
        if not any(_repeats(part) for part in candidate):
            return candidate
    return [[run] for run in group]


def _repeats(runs: Sequence[FoundRun]) -> bool:
    seeds = [run.settings.get("seed") for run in runs]
    return len(set(seeds)) < len(seeds)


def _labels(groups: Sequence[list[FoundRun]]) -> list[str]:
    one_task = len({group[0].task for group in groups}) == 1
    plain = [g[0].core if one_task else f"{g[0].core} on {g[0].task}" for g in groups]
    counts = Counter(plain)
    labels = []
    for name, group in zip(plain, groups, strict=True):
        others = [g for n, g in zip(plain, groups, strict=True) if n == name and g is not group]
        unnamed = not group[0].core
        labels.append(_own_label(name, group, others) if counts[name] > 1 or unnamed else name)
    return [_told_apart(place, labels, groups) for place in range(len(labels))]


def _told_apart(place: int, labels: Sequence[str], groups: Sequence[list[FoundRun]]) -> str:
    """A group's label; where others have it too, with the folder of its runs, or its first run."""
    label = labels[place]
    same = [
        group[0].folder.resolve() for n, group in zip(labels, groups, strict=True) if n == label
    ]
    if len(same) == 1:
        return label
    own = groups[place][0].folder.resolve()
    if len({folder.parent for folder in same}) == len(same):
        own, same = own.parent, [folder.parent for folder in same]
    return f"{label}, {_short_path(own, same)}"


def _own_label(name: str, group: list[FoundRun], others: Sequence[list[FoundRun]]) -> str:
    """A label for a group whose plain name is that of others too."""
    if len(group) == 1:
        return _short_path(group[0].folder, [other[0].folder for other in others])
    settings = group[0].settings
    differing = [
        f"{key}={value}"
        for key, value in settings.items()
        if key not in _NOT_OF_THE_EXPERIMENT
        and any(other[0].settings.get(key) != value for other in others)
    ]
    if 1 <= len(differing) <= 3:
        return f"{name}, {', '.join(differing)}"
    parents = [other[0].folder.resolve().parent for other in others]
    return f"{name}, {_short_path(group[0].folder.resolve().parent, parents)}"


def _short_path(path: Path, others: Iterable[Path]) -> str:
    """The last part of a path, and as many before it as tell it from others."""
    parts = path.resolve().parts
    rest = [other.resolve().parts for other in others if other.resolve() != path.resolve()]
    for count in range(1, len(parts) + 1):
        if all(parts[-count:] != other[-count:] for other in rest):
            return "/".join(parts[-count:])
    return str(path)
