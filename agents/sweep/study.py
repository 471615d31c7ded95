"""The trials of a sweep: asked of Optuna in this process, trained in others, kept on disk.

Trials are not stopped early: on these tasks success stays at 0 for long and then jumps, so what is
worst half way says little about the end.
"""

from __future__ import annotations

import json
import math
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from agents.config import PPOConfig
from agents.model.cores import require_usable
from agents.model.trainable import require_trainable
from agents.sweep.definition import Searched, Sweep
from agents.sweep.run import run_once
from lab.disk.folder import is_empty, newest_row
from lab.disk.lock import require_unlocked
from lab.disk.plain_files import require_no_link, require_plain_file
from lab.running.devices import usable_device
from lab.running.processes import Outcome, run_all

STUDY_NAME = "study.db"

_STATES: dict[TrialState, Literal["complete", "failed"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
}


class Trial(NamedTuple):
    """One trial that has ended."""

    number: int
    state: Literal["complete", "failed"]
    settings: dict[str, Any]  # what was searched
    value: float  # NaN if it failed
    per_seed: dict[int, float]
    seconds: float  # summed over its runs
    error: str  # one line, empty unless it failed


class RunState(NamedTuple):
    """The progress of a run."""

    name: str
    total_steps: int
    row: dict[str, float]  # of its newest update; empty before the first


@dataclass
class _Open:
    """A trial that is under way."""

    trial: optuna.Trial
    settings: dict[str, Any]
    started: int = 0
    ended: int = 0
    per_seed: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)


class Study:
    """The trials of one sweep in its folder.

    Args:
        sweep: the sweep to run.
        folder: exists, is locked by the caller, and is empty or holds this very sweep.

    Raises:
        ValueError: in one line, before any work, if the folder holds another sweep, or a run left
            by a killed one is still being trained.
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep = sweep
        self.folder = folder
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = _open(sweep, folder)
        self._require_no_orphans()
        self._runs: list[tuple[_Open, PPOConfig, Path]] = []  # by place of their call

    @staticmethod
    def check(sweep: Sweep, folder: Path) -> None:
        """Refuse, before anything is written, a sweep that cannot run.

        Raises:
            ValueError: in one line, if the settings cannot run on this machine, a core given by
                import path cannot be used, or the folder is not empty and holds no study.
        """
        config = sweep.config(sweep.first, seed=0)
        usable_device(config.device)
        require_trainable(config, others=sweep.unseen)
        for core in sweep.cores:
            require_usable(replace(config, core=core))
        require_plain_file(folder / STUDY_NAME)
        for run in folder.glob("trial-*-seed*"):
            require_no_link(run)
        if not (folder / STUDY_NAME).is_file() and not is_empty(folder):
            raise ValueError(
                f"folder {str(folder)!r} is not empty and holds no sweep; give another."
            )

    def trials(self) -> list[Trial]:
        """Trials that have ended: best first, failed ones last."""
        ended = self._study.get_trials(deepcopy=False, states=tuple(_STATES))
        return sorted(map(_to_trial, ended), key=_rank)

    def run(
        self,
        jobs: int,
        on_trial: Callable[[Trial], None],
        on_wait: Callable[[list[RunState]], None],
    ) -> None:
        """Go on until there are as many trials as asked for.

        Trials that an interruption left open come first; what of them was trained is kept.

        Args:
            jobs: runs at a time. From 2 on, what is tried next depends on what ended first.
            on_trial: called with every trial that has ended.
            on_wait: called about every second with the runs under way.
        """

        def end(place: int, outcome: Outcome) -> None:
            under_way.discard(place)
            trial = self._end_run(place, outcome)
            if trial is not None:
                on_trial(trial)

        def calls() -> Iterator[tuple[Any, ...]]:
            for opened, config, folder in self._next_runs(on_trial):
                under_way.add(len(self._runs))
                self._runs.append((opened, config, folder))
                sweep = self.sweep
                yield config, folder, sweep.unseen, sweep.episodes, sweep.measure

        under_way: set[int] = set()
        run_all(
            run_once,
            calls(),
            jobs,
            lambda _: on_wait([self._state(place) for place in sorted(under_way)]),
            end,
        )

    def _next_runs(
        self, on_trial: Callable[[Trial], None]
    ) -> Iterator[tuple[_Open, PPOConfig, Path]]:
        for opened in self._next_trials():
            for seed in range(self.sweep.seeds):
                if opened.errors:  # its other runs cannot save it
                    break
                try:
                    config = self.sweep.config(opened.settings, seed)
                except ValueError as error:
                    opened.errors.append(str(error))
                    on_trial(self._close(opened))
                    break
                opened.started += 1
                yield opened, config, self._run_folder(opened.trial.number, seed)

    def _next_trials(self) -> Iterator[_Open]:
        for left in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # Suggests again what was suggested, and what the interruption cut off.
            yield self._suggest(left.number, left)
        while (number := len(self._study.get_trials(deepcopy=False))) < self.sweep.trials:
            yield self._suggest(number, None)

    def _suggest(self, number: int, left: FrozenTrial | None) -> _Open:
        self._study.sampler = _sampler(self.sweep, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = optuna.Trial(self._study, left._trial_id) if left else self._study.ask()
            settings = {s.name: _suggest_value(trial, s) for s in self.sweep.search}
        return _Open(trial, settings)

    def _end_run(self, place: int, outcome: Outcome) -> Trial | None:
        opened, config, folder = self._runs[place]
        opened.ended += 1
        if outcome.error is None:
            opened.per_seed[config.seed] = outcome.result.value
            opened.seconds += outcome.result.seconds
        else:
            opened.errors.append(f"{folder.name}: {outcome.error}")
        all_done = len(opened.per_seed) == self.sweep.seeds
        if opened.ended == opened.started and (opened.errors or all_done):
            return self._close(opened)
        return None

    def _close(self, opened: _Open) -> Trial:
        trial = opened.trial
        trial.set_user_attr("per_seed", {str(s): v for s, v in sorted(opened.per_seed.items())})
        trial.set_user_attr("seconds", opened.seconds)
        if opened.errors:
            trial.set_user_attr("error", " ".join(opened.errors))
            closed = self._study.tell(trial, state=TrialState.FAIL)
        else:
            closed = self._study.tell(trial, float(np.mean(list(opened.per_seed.values()))))
        return _to_trial(closed)

    def _state(self, place: int) -> RunState:
        _, config, folder = self._runs[place]
        return RunState(folder.name, config.total_steps, newest_row(folder))

    def _run_folder(self, trial: int, seed: int) -> Path:
        return self.folder / f"trial-{trial:03d}-seed{seed}"

    def _require_no_orphans(self) -> None:
        for left in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            for seed in range(self.sweep.seeds):
                folder = self._run_folder(left.number, seed)
                if folder.is_dir():
                    require_unlocked(folder)


def _open(sweep: Sweep, folder: Path) -> optuna.Study:
    path = folder / STUDY_NAME
    try:
        # Not by a URL, in which some characters of a path would mean something else.
        connect = partial(sqlite3.connect, path)
        storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"creator": connect})
        study = optuna.create_study(
            storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
        )
        there = study.user_attrs.get("sweep")
    except (SQLAlchemyError, sqlite3.Error, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{str(path)!r} cannot be read as a study ({reason}).") from None
    identity = json.loads(json.dumps(sweep.identity()))
    if there is None:
        study.set_user_attr("sweep", identity)
    else:
        _require_same(there, identity, folder)
    return study


#: A study of an earlier version does not name settings that came later; it had their defaults.
_DEFAULTS = {one.name: one.default for one in fields(PPOConfig)}


def _require_same(there: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    for name in {**there, **asked}:
        before, now = there.get(name, _DEFAULTS.get(name)), asked.get(name)
        if before != now:
            same = "a machine with the same backends" if name == "backends" else "the same file"
            raise ValueError(
                f"{str(folder)!r} holds a sweep with {name} = {json.dumps(before)}, now asked for "
                f"{json.dumps(now)}. Give another folder, or {same}."
            )


def _sampler(sweep: Sweep, number: int) -> optuna.samplers.BaseSampler:
    """A trial's own sampler, so that an interrupted sweep continues unchanged."""
    seed = int(np.random.SeedSequence((sweep.sampler_seed, number)).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sweep.sampler == "tpe":
            # Does not crowd where other trials are still under way.
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        base = optuna.samplers.RandomSampler(seed=seed)
        if sweep.sampler == "random":
            return base
        return optuna.samplers.PartialFixedSampler(sweep.grid_point(number), base)


def _suggest_value(trial: optuna.Trial, searched: Searched) -> Any:
    name, low, high = searched.name, searched.low, searched.high
    if searched.choices:
        return trial.suggest_categorical(name, searched.choices)
    if searched.is_int:
        return trial.suggest_int(name, int(low), int(high), log=searched.log)
    return trial.suggest_float(name, low, high, log=searched.log)


def _to_trial(frozen: FrozenTrial) -> Trial:
    attributes = frozen.user_attrs
    value = frozen.value if frozen.state == TrialState.COMPLETE else None
    return Trial(
        number=frozen.number,
        state=_STATES[frozen.state],
        settings=frozen.params,
        value=math.nan if value is None else value,
        per_seed={int(seed): v for seed, v in attributes.get("per_seed", {}).items()},
        seconds=attributes.get("seconds", 0.0),
        error=attributes.get("error", ""),
    )


def _rank(trial: Trial) -> tuple[bool, float, int]:
    return (trial.state == "failed", 0.0 if math.isnan(trial.value) else -trial.value, trial.number)
