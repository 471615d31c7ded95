"""Confidence intervals of reported numbers. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95

#: Draws of the bootstrap over runs.
RESAMPLES = 10_000
_CURVE_RESAMPLES = 2_000  # of which one is a whole curve


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


def interquartile_mean(scores: ArrayLike) -> Estimate:
    """Mean of the middle half of all scores, with a stratified bootstrap interval over runs.

    As defined by Agarwal et al. (arXiv:2108.13264): the scores of all tasks are pooled, a quarter
    of them is cut off at each end, and the rest averaged. For the interval the runs of each task
    are drawn anew, each task on its own; percentiles of 10 000 such draws, fixed seed.

    There is no interval where drawing anew changes nothing: one run, or equal ones. With few runs
    it is narrower than 95 % would need.

    Args:
        scores: (runs, tasks).

    Returns:
        The interquartile mean and its interval.

    Raises:
        ValueError: if ``scores`` has another shape or is empty.

    Example:
        >>> [round(x, 2) for x in interquartile_mean([[0.1], [0.5], [0.6], [1.0]])]
        [0.55, 0.1, 1.0]
        >>> interquartile_mean([[0.25, 0.75]])
        Estimate(mean=0.5, low=nan, high=nan)
    """
    data = _runs_by_tasks(scores)
    runs, tasks = data.shape
    drawn = np.random.default_rng(0).integers(runs, size=(RESAMPLES, runs, tasks))
    resampled = data[drawn, np.arange(tasks)].reshape(RESAMPLES, -1)
    return _percentile_interval(float(_middle_mean(data.reshape(-1))), _middle_mean(resampled))


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> Estimate:
    """Probability that a run of one kind scores higher than a run of another on the same task.

    The share of pairs of runs in which the first is higher (the Mann-Whitney statistic; ties count
    half), averaged over tasks (Agarwal et al., arXiv:2108.13264), with the interval of
    :func:`interquartile_mean`, and none if either has one run. 0.5 means that neither is better.

    Args:
        scores: (runs, tasks) of the one.
        others: (runs, tasks) of the other; as many tasks, any number of runs.

    Raises:
        ValueError: if a shape is another or the tasks differ in number.

    Example:
        >>> probability_of_improvement([[0.5], [0.9]], [[0.5], [0.7]]).mean
        0.625
    """
    first, second = _runs_by_tasks(scores), _runs_by_tasks(others)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            "probability_of_improvement: both must have the same tasks; "
            f"got {first.shape[1]} and {second.shape[1]}."
        )
    x, y = first.T[:, :, None], second.T[:, None, :]  # (tasks, runs, 1), (tasks, 1, runs)
    wins = (x > y) + 0.5 * (x == y)
    if min(len(first), len(second)) < 2:
        return Estimate(float(wins.mean()), math.nan, math.nan)
    rng = np.random.default_rng(0)
    weights, other_weights = (_draw_weights(rng, data) for data in (first, second))
    resampled = ((weights[:, :, None] @ wins)[:, :, 0] * other_weights).sum(axis=2).mean(axis=1)
    return _percentile_interval(float(wins.mean()), resampled)


class Band(NamedTuple):
    """A mean curve with a 95 % interval at each of its points; NaN where none can be given."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def mean_band(curves: ArrayLike) -> Band:
    """Mean of the curves of several runs, with a percentile bootstrap interval at every point.

    Whole curves are drawn, so that neighbouring points belong together. No interval where the
    curves do not differ, and none for one curve.

    Args:
        curves: (runs, points). A point at which any of them is NaN is NaN.

    Raises:
        ValueError: if ``curves`` has another shape or is empty.

    Example:
        >>> mean_band([[0.0, 1.0], [1.0, 1.0]])
        Band(mean=array([0.5, 1. ]), low=array([ 0., nan]), high=array([ 1., nan]))
    """
    data = _runs_by_tasks(curves)
    weights = _draw_weights(np.random.default_rng(0), data[:, :1], _CURVE_RESAMPLES)[:, 0]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(data.T @ weights.T, [tail, 100 - tail], axis=1)
    differ = (data != data[0]).any(axis=0)
    return Band(data.mean(axis=0), np.where(differ, low, np.nan), np.where(differ, high, np.nan))


def _runs_by_tasks(scores: ArrayLike) -> NDArray[np.float64]:
    data = np.asarray(scores, dtype=np.float64)
    if data.ndim != 2 or not data.size:
        raise ValueError(f"scores must be (runs, tasks), at least one of each; got {data.shape}.")
    return data


def _middle_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the lowest and the highest quarter, rounded down, along the last axis."""
    count = values.shape[-1]
    cut = count // 4
    middle: NDArray[np.float64] = np.sort(values, axis=-1)[..., cut : count - cut].mean(axis=-1)
    return middle


def _draw_weights(
    rng: np.random.Generator, data: NDArray[np.float64], draws: int = RESAMPLES
) -> NDArray[np.float64]:
    """Share of each run in each draw: (draws, tasks, runs).

    How often each run is drawn says all there is to say of a draw where order does not count.
    """
    runs, tasks = data.shape
    drawn = rng.multinomial(runs, [1 / runs] * runs, size=(draws, tasks))
    return np.asarray(drawn / runs, dtype=np.float64)


def _percentile_interval(estimate: float, resampled: NDArray[np.float64]) -> Estimate:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    # Draws that all agree, to rounding, show no doubt, although there is some.
    if high - low < 1e-12:
        return Estimate(estimate, math.nan, math.nan)
    return Estimate(estimate, float(low), float(high))
