"""Results of runs of several variants over several seeds: numbers, intervals, differences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from lab.comparing import AnyRun, Flag
from lab.reporting.statistics import Estimate, mean_over_seeds

#: A row of a table: one number of every run, between its ``bounds``.
Row = TypeVar("Row", bound=Any)


class Differences(NamedTuple):
    """A number of one variant minus that of another, seed by seed."""

    seeds: tuple[int, ...]  # that both have
    values: tuple[float, ...]
    estimate: Estimate  # without interval for one seed


@dataclass(frozen=True, kw_only=True)
class Comparison(ABC, Generic[AnyRun, Row]):
    """Everything that is reported. It holds only variants with at least one finished run.

    Args:
        seeds: asked for.
        runs: the finished runs by variant, with the settings they were trained with.
        flags: notes for readers on runs that are left out or differ.
    """

    seeds: tuple[int, ...]
    runs: Mapping[str, Sequence[AnyRun]]
    flags: tuple[Flag, ...] = ()

    @abstractmethod
    def value(self, run: AnyRun, row: Row) -> float | None:
        """The number of a run; ``None`` if it has none."""

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants with results."""
        return tuple(self.runs)

    @property
    def finished(self) -> list[AnyRun]:
        """All finished runs."""
        return [run for own in self.runs.values() for run in own]

    @property
    def names(self) -> dict[str, str]:
        """The name of each variant in tables and figures."""
        return {variant: variant for variant in self.variants}

    @property
    def seed_counts(self) -> list[int]:
        """The numbers of finished runs of the variants, each number once, in ascending order."""
        return sorted({len(own) for own in self.runs.values()})

    @property
    def failed(self) -> bool:
        """Whether any run could not be trained or used."""
        return any(flag.kind == "failed" for flag in self.flags)

    @property
    def jobs(self) -> int | None:
        """Most runs that were trained at a time; ``None`` if that is unknown of any run."""
        jobs = [run.jobs for run in self.finished]
        return None if None in jobs else max(count for count in jobs if count is not None)

    @property
    def threads(self) -> tuple[int, ...]:
        """Threads of the runs, each number once."""
        return tuple(sorted({run.config.threads for run in self.finished}))

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that are the same in all runs in which they do something."""
        found: dict[str, list[Any]] = {}
        for run in self.finished:
            for name, value in asdict(run.config).items():
                if name not in ("seed", "core", "model", *getattr(run.config, "unused", ())):
                    found.setdefault(name, []).append(value)
        return {
            name: values[0]
            for name, values in found.items()
            if all(value == values[0] for value in values)
        }

    def seeds_of(self, variant: str) -> tuple[int, ...]:
        """Seeds of the finished runs of a variant."""
        return tuple(run.config.seed for run in self.runs[variant])

    def values(self, variant: str, row: Row) -> list[float]:
        """The number of each seed; seeds without one are left out."""
        values = (self.value(run, row) for run in self.runs[variant])
        return [value for value in values if value is not None]

    def estimate(self, variant: str, row: Row) -> Estimate | None:
        """Mean over seeds with Student's t interval; ``None`` if no seed has a number."""
        values = self.values(variant, row)
        return mean_over_seeds(values, bounds=row.bounds) if values else None

    def differences(self, variant: str, row: Row) -> Differences | None:
        """A variant minus the first one, over the seeds that both have; ``None`` if there are none.

        Runs of one seed have the same data, so that what these do to both is taken out.
        """
        base = {run.config.seed: self.value(run, row) for run in self.runs[self.variants[0]]}
        pairs = [
            (run.config.seed, self.value(run, row), base.get(run.config.seed))
            for run in self.runs[variant]
        ]
        found = {s: mine - his for s, mine, his in pairs if mine is not None and his is not None}
        if not found:
            return None
        values, (low, high) = tuple(found.values()), row.bounds
        estimate = mean_over_seeds(values, bounds=(low - high, high - low))
        return Differences(tuple(found), values, estimate)
