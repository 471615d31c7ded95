"""Rounds of contenders: their order, and statistics over all rounds.

Each contender runs in a fresh process in every round: none finds memory, threads or caches that
another left, and every round is the same stretch of training, its beginning.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from agents.config import PPOConfig
from agents.throughput.ours import Round, measure_ours
from lab.cores import CORE_NAMES
from lab.running.processes import Outcome, run_all

SB3 = "sb3-contrib"
SB3_ADAPTED = "sb3-contrib, our environments"
SB3_OWN_POLICY = "sb3-contrib, its own policy"
SB3_NAMES = (SB3, SB3_ADAPTED, SB3_OWN_POLICY)


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The measurement to make.

    Attributes:
        config: settings of all contenders, with the threads of torch.
        contenders: cores of ours, and names of :data:`SB3_NAMES`.
        updates: timed per round.
        rounds: how often each contender runs.
    """

    config: PPOConfig
    contenders: tuple[str, ...]
    updates: int
    rounds: int

    def calls(self) -> Iterator[tuple[str, PPOConfig, int]]:
        """Round by round, every contender once."""
        for _ in range(self.rounds):
            for name in self.contenders:
                yield name, self.config, self.updates


class MeasuringError(RuntimeError):
    """A contender that could not be measured."""


Measured = dict[str, list[Round]]


def measure(contest: Contest, on_round: Callable[[str, Round, Measured], None]) -> Measured:
    """Run all rounds.

    Args:
        contest: the measurement.
        on_round: called with every round, and all that was measured up to it.

    Returns:
        The rounds of each contender.

    Raises:
        MeasuringError: in one line, at the first contender that fails.
    """
    measured: Measured = {name: [] for name in contest.contenders}
    order = list(contest.calls())

    def end(place: int, outcome: Outcome) -> None:
        name = order[place][0]
        if outcome.error is not None:
            raise MeasuringError(f"{name} could not be measured: {outcome.error}")
        measured[name].append(outcome.result)
        on_round(name, outcome.result, measured)

    run_all(measure_once, order, 1, on_end=end)
    return measured


def measure_once(name: str, config: PPOConfig, updates: int) -> Round:
    """Measure one contender in one round."""
    if name in CORE_NAMES:
        return measure_ours(replace(config, core=name), updates)
    from agents.throughput.sb3 import measure_sb3  # an optional dependency

    return measure_sb3(
        config,
        updates,
        own_environments=name != SB3_ADAPTED,
        own_policy=name == SB3_OWN_POLICY,
    )


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of the rounds.

    >>> spread([1.0, 2.0, 3.0])
    Spread(median=2.0, low=1.5, high=2.5)
    >>> spread([4.0])
    Spread(median=4.0, low=4.0, high=4.0)
    """
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratios(measured: Measured, name: str, baseline: str = SB3) -> list[float]:
    """Speed of a contender over that of ``baseline``, in every round that both have."""
    pairs = zip(measured[name], measured.get(baseline, ()), strict=False)
    return [one.per_second / other.per_second for one, other in pairs]
