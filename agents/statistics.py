"""Intervals for what is reported. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean with its 95 % confidence interval; the interval is NaN where none can be given."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for JSON, which has no NaN: None stands for it."""
        return {k: v if math.isfinite(v) else None for k, v in self._asdict().items()}


def proportion(successes: int, total: int) -> Estimate:
    """A success rate with its Wilson score interval (Wilson 1927), sound near 0 and 1.

    Example:
        >>> [round(x, 3) for x in proportion(200, 200)]
        [1.0, 0.981, 1.0]
    """
    interval = stats.binomtest(successes, total).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / total, float(interval.low), float(interval.high))


def mean_over_episodes(values: Sequence[float]) -> Estimate:
    """Mean of many episodes with a percentile bootstrap interval (2 000 resamples, fixed seed).

    Equal values have no interval: resampling them shows no doubt, although there is some.

    Args:
        values: one number per episode.

    Returns:
        The mean and its interval.

    Example:
        >>> [round(x, 2) for x in mean_over_episodes([0.0, 1.0] * 50)]
        [0.5, 0.4, 0.6]
        >>> mean_over_episodes([1.0, 1.0, 1.0])
        Estimate(mean=1.0, low=nan, high=nan)
    """
    data = np.asarray(values, dtype=np.float64)
    if (data == data[0]).all():
        return Estimate(float(data[0]), math.nan, math.nan)
    resampled = np.random.default_rng(0).choice(data, size=(2000, len(data))).mean(axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Estimate(float(data.mean()), float(low), float(high))


def mean_over_seeds(
    values: Sequence[float], *, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Estimate:
    """Mean of a few independent runs with Student's t interval, cut to the possible range.

    The runs, not their episodes, are the sample: a second run of the same settings differs from
    the first by more than its episodes show. One run has no interval, and neither
    have equal ones, whose spread of 0 would be no certainty.

    Args:
        values: one number per seed.
        bounds: smallest and largest value there can be.

    Example:
        >>> mean_over_seeds([0.5])
        Estimate(mean=0.5, low=nan, high=nan)
        >>> [round(x, 2) for x in mean_over_seeds([0.4, 0.6, 0.5])]
        [0.5, 0.25, 0.75]
    """
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if (data == data[0]).all():
        return Estimate(mean, math.nan, math.nan)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(data) - 1) * stats.sem(data)
    low, high = np.clip([mean - reach, mean + reach], *bounds)
    return Estimate(mean, float(low), float(high))


def success_over_seeds(rates: Sequence[float], episodes: int) -> Estimate:
    """Success rate of a few independent runs of ``episodes`` episodes each.

    Student's t interval over the runs, but never narrower than the Wilson interval of all episodes
    together: runs that all succeed every time differ by nothing and are still not certain.

    Example:
        >>> [round(x, 3) for x in success_over_seeds([1.0, 1.0], 100)]
        [1.0, 0.981, 1.0]
    """
    over_runs = mean_over_seeds(rates, bounds=(0.0, 1.0))
    if len(rates) < 2:
        return over_runs
    total = episodes * len(rates)
    pooled = proportion(round(sum(rates) * episodes), total)
    low = float(np.fmin(over_runs.low, pooled.low))  # of equal runs, the pooled one
    return Estimate(over_runs.mean, low, float(np.fmax(over_runs.high, pooled.high)))
