"""The definition of a sweep: read from TOML and checked in full before any training."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from agents.config import PPOConfig
from envs import Task, get_suite, resolve_backend
from lab.cores import core_label
from lab.settings import ConfigError, read_toml
from lab.words import did_you_mean

Sampler = Literal["tpe", "random", "grid"]
Objective = Literal["success_rate", "unseen_success_rate", "return", "unseen_return"]

TABLES = ("sweep", "settings", "search")

#: Up to this many integers of a range are all checked beforehand, and all part of a grid.
FEW = 16

#: Settings that decide which other ones of a core are used.
_DECIDE_EFFECT = ("core", "num_rims", "k", "num_layers", "use_inactive")

_FIELDS = {field.name: field for field in dataclasses.fields(PPOConfig)}


@dataclass(frozen=True, kw_only=True)
class Searched:
    """One hyperparameter: a range, of whole numbers if the field is one, or choices."""

    name: str
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def is_int(self) -> bool:
        """Whether this is a range of whole numbers."""
        return not self.choices and isinstance(self.low, int)

    @property
    def few(self) -> tuple[Any, ...]:
        """All values, if they are few; else nothing."""
        if self.choices:
            return self.choices
        countable = self.is_int and self.high - self.low < FEW
        return tuple(range(int(self.low), int(self.high) + 1)) if countable else ()

    @property
    def samples(self) -> tuple[Any, ...]:
        """All values, or enough to find a refused one; neighbours too, as some must divide."""
        if self.is_int:
            return self.few or (self.low, self.low + 1, self.high)
        return self.few or (self.low, self.high)

    def to_dict(self) -> dict[str, Any]:
        """The table of the file."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A whole sweep, checked.

    Attributes:
        trials: how many settings are tried.
        sampler: how they are chosen.
        sampler_seed: seed of that choice.
        seeds: runs per trial, with seeds from 0; a trial's value is their mean.
        objective: the measure that is maximised.
        episodes: per unseen task and run, for the objective that needs them.
        settings: fixed fields of PPOConfig, those of the suite's preset included.
        search: the searched hyperparameters.
    """

    trials: int
    sampler: Sampler
    sampler_seed: int
    seeds: int
    objective: Objective
    episodes: int
    settings: Mapping[str, Any]
    search: tuple[Searched, ...]

    def config(self, values: Mapping[str, Any], seed: int) -> PPOConfig:
        """The configuration of one run."""
        return PPOConfig(**{**self.settings, **values, "seed": seed})

    @property
    def first(self) -> dict[str, Any]:
        """The first value of everything searched."""
        return {searched.name: searched.samples[0] for searched in self.search}

    @property
    def cores(self) -> tuple[str, ...]:
        """The cores that trials may have."""
        searched = [searched.choices for searched in self.search if searched.name == "core"]
        return searched[0] if searched else (self.config(self.first, seed=0).core,)

    def grid_point(self, number: int) -> dict[str, Any]:
        """One combination of values that can be counted; what is searched last changes first."""
        places = {}
        for searched in reversed(self.search):
            number, places[searched.name] = divmod(number, len(searched.few))
        return {searched.name: searched.few[places[searched.name]] for searched in self.search}

    @property
    def unseen(self) -> tuple[Task, ...]:
        """The tasks a trial is judged on after its training; none if that is judged."""
        if not self.objective.startswith(_UNSEEN):
            return ()
        config = self.config(self.first, seed=0)
        return config.wrapped_suite(get_suite(self.settings["suite"])).unseen

    @property
    def measure(self) -> str:
        """The measure that is maximised, in words: success rate or return."""
        return self.objective.removeprefix(_UNSEEN).replace("_", " ")

    def identity(self) -> dict[str, Any]:
        """Everything that must be equal for trials to be comparable: all but their number."""
        first = self.config(self.first, seed=0)
        config = dataclasses.asdict(first)
        # The meaning of "auto" depends on the machine.
        tasks = (first.task, *self.unseen)
        backends = {task.id: resolve_backend(task, first.backend) for task in tasks}
        left_out = {"seed", *PPOConfig.without_effect(), *self.first}
        return {
            **{name: getattr(self, name) for name in _IDENTITY},
            **{name: value for name, value in config.items() if name not in left_out},
            **{searched.name: searched.to_dict() for searched in self.search},
            "backends": backends,
        }


_UNSEEN = "unseen_"

_IDENTITY = ("sampler", "sampler_seed", "seeds", "objective", "episodes")


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep.

    Raises:
        ValueError: in one line that names the file, table and key.
    """
    document = read_toml(path, "a sweep")
    try:
        return parse_sweep(document)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None


def parse_sweep(document: Mapping[str, Any]) -> Sweep:
    """Check the three tables of a sweep.

    Raises:
        ValueError: in one line, for anything that could go wrong later.
    """
    _refuse_unknown(document, TABLES, "table")
    for table in TABLES:
        if not isinstance(document.get(table, {}), dict):
            raise ValueError(f"{table} must be a table: a line [{table}] with settings below it.")
    options, settings, search = (document.get(table, {}) for table in TABLES)
    if not search:
        raise ValueError("[search] names nothing to search over.")
    _check_settings(settings, search)
    preset = PPOConfig.preset_of(get_suite(settings["suite"])) if settings.get("suite") else {}
    fixed = {name: v for name, v in {**preset, **settings}.items() if name not in search}
    searched = tuple(_searched(name, value) for name, value in search.items())
    sweep = Sweep(**_options(options, searched), settings=fixed, search=searched)
    _check_combinations(sweep)
    _check_effect(sweep)
    _check_objective(sweep)
    return sweep


def _check_objective(sweep: Sweep) -> None:
    if sweep.objective.startswith(_UNSEEN):
        objective, suite = sweep.objective, sweep.settings.get("suite")
        if not suite:
            raise ValueError(f"[sweep] objective {objective!r} needs a suite in [settings].")
        if not sweep.unseen:
            raise ValueError(
                f"[sweep] objective {objective!r}: suite {suite!r} has no unseen tasks."
            )


def _check_settings(settings: Mapping[str, Any], search: Mapping[str, Any]) -> None:
    for table, names in (("settings", settings), ("search", search)):
        _refuse_unknown(names, _FIELDS, "setting", f"[{table}] ")
        if "seed" in names:
            raise ValueError(f"[{table}] seed: give [sweep] seeds, a number; they count from 0.")
    for name in search:
        if name in settings:
            raise ValueError(f"{name} is both in [settings] and in [search]; keep one.")
        group = _FIELDS[name].metadata["group"]
        if group in ("Task", "Machine") or name == "actions":  # another task, with fewer
            raise ValueError(
                f"[search] {name} cannot be searched: it changes what is measured or where, not "
                "the agent. Fix it in [settings]."
            )


#: Keys of [sweep]: default, and what may stand there. A number is the smallest allowed.
_OPTIONS: dict[str, tuple[Any, int | tuple[str, ...]]] = {
    "trials": (None, 1),
    "sampler": ("tpe", get_args(Sampler)),
    "sampler_seed": (0, 0),
    "seeds": (1, 1),
    "objective": ("success_rate", get_args(Objective)),
    "episodes": (100, 1),
}


def _options(given: Mapping[str, Any], search: Iterable[Searched]) -> dict[str, Any]:
    _refuse_unknown(given, _OPTIONS, "key", "[sweep] ")
    for name, value in given.items():
        allowed = _OPTIONS[name][1]
        if isinstance(allowed, tuple):
            if value not in allowed:
                names = ", ".join(map(repr, allowed))
                hint = did_you_mean(str(value), allowed)
                raise ValueError(f"[sweep] {name} must be one of {names}; got {value!r}{hint}")
        elif type(value) is not int or not allowed <= value <= 10**6:
            rule = f"must be a whole number from {allowed} to 1000000; got {value!r}."
            raise ValueError(f"[sweep] {name} {rule}")
    options = {name: given.get(name, default) for name, (default, _) in _OPTIONS.items()}
    if options["sampler"] == "grid":
        options["trials"] = _grid_trials(options["trials"], search)
    elif options["trials"] is None:
        raise ValueError("[sweep] trials is missing: how many settings to try.")
    return options


def _grid_trials(trials: int | None, search: Iterable[Searched]) -> int:
    size = 1
    for searched in search:
        if not searched.few:
            raise ValueError(
                f"[search] {searched.name}: a grid needs choices, or at most {FEW} whole numbers."
            )
        size *= len(searched.few)
    if trials is not None and trials > size:
        raise ValueError(f"[sweep] trials must be at most {size}, the size of the grid.")
    return size if trials is None else trials


def _searched(name: str, given: Any) -> Searched:
    where = f"[search] {name}"
    if not isinstance(given, dict):
        forms = "{low = ..., high = ...} or {choices = [...]}"
        raise ValueError(f"{where} must be {forms}; got {given!r}.")
    _refuse_unknown(given, ("low", "high", "log", "choices"), "key", f"{where}: ")
    if "choices" not in given:
        return _range(name, where, given)
    if len(given) > 1:
        raise ValueError(f"{where} has choices, so it cannot have a range too.")
    choices = given["choices"]
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"{where}: choices must be a list of at least one value; got {choices!r}.")
    if len({repr(choice) for choice in choices}) < len(choices):
        raise ValueError(f"{where}: choices must differ; got {choices!r}.")
    return Searched(name=name, choices=tuple(choices))


def _range(name: str, where: str, given: Mapping[str, Any]) -> Searched:
    kind = get_type_hints(PPOConfig)[name]
    if kind not in (int, float):
        raise ValueError(f"{where} is not a number; give {{choices = [...]}}.")
    for end in ("low", "high"):
        if end not in given:
            raise ValueError(f"{where} has no {end}; a range needs low and high.")
        # a bool is an int to Python
        if type(given[end]) not in ({int} if kind is int else {int, float}):
            number = "a whole number" if kind is int else "a number"
            raise ValueError(f"{where}: {end} must be {number}; got {given[end]!r}.")
    log = given.get("log", False)
    if type(log) is not bool:
        raise ValueError(f"{where}: log must be true or false; got {log!r}.")
    low, high = kind(given["low"]), kind(given["high"])
    if not low < high:  # also for NaN
        raise ValueError(f"{where}: low must be below high; got {low} and {high}.")
    if log and low <= 0:
        raise ValueError(f"{where}: low must be above 0 where log = true; got {low}.")
    return Searched(name=name, low=low, high=high, log=log)


def _check_combinations(sweep: Sweep) -> None:
    """Refuse a search with values or combinations that PPOConfig does not take.

    No rule of PPOConfig is about more than three fields, so it is enough to vary three at a time.
    """
    _check_values(sweep, {})
    for count in range(1, min(3, len(sweep.search)) + 1):
        for group in itertools.combinations(sweep.search, count):
            names = [searched.name for searched in group]
            for values in itertools.product(*(searched.samples for searched in group)):
                _check_values(sweep, dict(zip(names, values, strict=True)))


def _check_values(sweep: Sweep, varied: Mapping[str, Any]) -> None:
    try:
        sweep.config({**sweep.first, **varied}, seed=0)
    except ConfigError as error:
        if not varied and error.field not in sweep.first:
            raise ValueError(f"[settings] {error}") from None
        values = ", ".join(f"{name}={value!r}" for name, value in (varied or sweep.first).items())
        raise ValueError(f"[search] allows {values}, but {error}") from None


def _check_effect(sweep: Sweep) -> None:
    """Refuse a search over what no trial would use: all its values would give the same agent."""
    left = {searched.name: "" for searched in sweep.search}
    deciding = [searched for searched in sweep.search if searched.name in _DECIDE_EFFECT]
    names = [searched.name for searched in deciding]
    for values in itertools.product(*(searched.samples for searched in deciding)):
        with contextlib.suppress(ConfigError):  # not every combination need be possible
            config = sweep.config({**sweep.first, **dict(zip(names, values, strict=True))}, seed=0)
            left = {name: config.unused[name] for name in left if name in config.unused}
        if not left:
            return
    name, why = next(iter(left.items()))
    cores = ", ".join(map(core_label, sweep.cores))
    raise ValueError(f"[search] {name} would change nothing: it {why}; core is {cores}.")


def _refuse_unknown(given: Iterable[str], known: Iterable[str], what: str, where: str = "") -> None:
    known = list(known)
    for name in given:
        if name not in known:
            otherwise = f"; there are {', '.join(known)}." if len(known) < 10 else "."
            hint = did_you_mean(name, known, otherwise)
            raise ValueError(f"{where}unknown {what} {name!r}{hint}")
