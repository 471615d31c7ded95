"""Intervals by hand, by simulation, and where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from agents.statistics import (
    mean_over_episodes,
    mean_over_seeds,
    proportion,
    success_over_seeds,
)


def wilson(successes: int, total: int) -> tuple[float, float]:
    """The two roots of (p - s)**2 = z**2 p (1 - p) / n."""
    z, s = 1.959963984540054, successes / total
    centre = (s + z * z / (2 * total)) / (1 + z * z / total)
    reach = z / (1 + z * z / total) * math.sqrt(s * (1 - s) / total + z * z / (4 * total**2))
    return centre - reach, centre + reach


@pytest.mark.parametrize(("successes", "total"), [(0, 1), (1, 1), (3, 10), (50, 100), (199, 200)])
def test_proportion_is_the_wilson_interval(successes: int, total: int) -> None:
    estimate = proportion(successes, total)
    low, high = wilson(successes, total)
    assert estimate.mean == successes / total
    assert estimate.low == pytest.approx(low, abs=1e-9)
    assert estimate.high == pytest.approx(high, abs=1e-9)


def test_proportion_by_hand() -> None:
    """3 of 10, as in the textbooks: 0.108 to 0.603."""
    assert proportion(3, 10)[1:] == pytest.approx((0.1078, 0.6032), abs=1e-4)


@pytest.mark.parametrize(("successes", "total"), [(0, 50), (50, 50)])
def test_proportion_stays_in_range_and_wide_at_the_ends(successes: int, total: int) -> None:
    estimate = proportion(successes, total)
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert estimate.high - estimate.low > 0.05  # perfect results leave doubt


def test_proportion_covers_the_truth() -> None:
    draws = np.random.default_rng(0).binomial(40, 0.9, size=400)
    covered = [p.low <= 0.9 <= p.high for p in (proportion(int(n), 40) for n in draws)]
    # Nominal 0.95; four standard errors of 400 repetitions are 0.044.
    assert 0.90 < np.mean(covered) < 0.995


def test_bootstrap_of_equal_values_has_no_interval() -> None:
    nan = math.nan
    assert mean_over_episodes([0.25] * 20) == pytest.approx((0.25, nan, nan), nan_ok=True)
    assert mean_over_episodes([3.0]) == pytest.approx((3.0, nan, nan), nan_ok=True)


def test_bootstrap_is_repeatable_and_near_the_normal_interval() -> None:
    data = np.random.default_rng(1).normal(10, 2, size=400).tolist()
    estimate = mean_over_episodes(data)
    assert estimate == mean_over_episodes(data)
    reach = 1.96 * np.std(data, ddof=1) / 20
    assert estimate.mean == pytest.approx(np.mean(data))
    # 2000 resamples place a 2.5 % quantile within some 6 % of the half width.
    assert estimate.low == pytest.approx(np.mean(data) - reach, abs=0.2 * reach)
    assert estimate.high == pytest.approx(np.mean(data) + reach, abs=0.2 * reach)


def test_bootstrap_covers_the_truth() -> None:
    rng = np.random.default_rng(2)
    estimates = [mean_over_episodes(rng.exponential(1.0, size=60).tolist()) for _ in range(200)]
    covered = np.mean([e.low <= 1.0 <= e.high for e in estimates])
    # A percentile bootstrap falls a little short for skewed data; 0.08 is five standard errors.
    assert 0.86 < covered < 0.995


def test_seeds_have_a_t_interval_by_hand() -> None:
    # Mean 0.5, deviation 0.1, n = 3, t = 4.3027: reach 4.3027 * 0.1 / sqrt(3) = 0.24842.
    estimate = mean_over_seeds([0.4, 0.5, 0.6])
    assert estimate == pytest.approx((0.5, 0.5 - 0.24842, 0.5 + 0.24842), abs=1e-5)


@pytest.mark.parametrize("count", [2, 5, 10])
def test_seeds_have_the_t_interval_of_scipy(count: int) -> None:
    data = np.random.default_rng(count).normal(size=count)
    low, high = stats.t.interval(0.95, count - 1, loc=data.mean(), scale=stats.sem(data))
    assert mean_over_seeds(data.tolist()) == pytest.approx((data.mean(), low, high))


def test_seeds_interval_is_cut_to_what_there_can_be() -> None:
    assert mean_over_seeds([0.9, 1.0], bounds=(0.0, 1.0)).high == 1.0
    assert mean_over_seeds([0.9, 1.0]).high > 1.0
    assert mean_over_seeds([0.0, 0.1], bounds=(0.0, 1.0)).low == 0.0


def test_seeds_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    estimates = [mean_over_seeds(rng.normal(1, 3, size=3).tolist()) for _ in range(400)]
    covered = np.mean([e.low <= 1 <= e.high for e in estimates])
    assert 0.90 < covered < 0.995  # nominal 0.95, four standard errors are 0.044


def test_one_seed_has_no_interval() -> None:
    mean, low, high = mean_over_seeds([0.7], bounds=(0.0, 1.0))
    assert mean == 0.7
    assert math.isnan(low)
    assert math.isnan(high)


def test_equal_seeds_have_no_interval() -> None:
    estimate = mean_over_seeds([1.0, 1.0, 1.0], bounds=(0.0, 1.0))
    assert estimate == pytest.approx((1.0, math.nan, math.nan), nan_ok=True)
    assert estimate.to_dict() == {"mean": 1.0, "low": None, "high": None}


def test_success_over_seeds_is_the_t_interval_where_runs_differ() -> None:
    rates = [0.2, 0.5, 0.9]
    assert success_over_seeds(rates, 1000) == mean_over_seeds(rates, bounds=(0.0, 1.0))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_success_over_equal_seeds_is_as_wide_as_all_episodes_together(rate: float) -> None:
    low, high = wilson(round(rate * 40), 40)
    assert success_over_seeds([rate, rate], 20) == pytest.approx((rate, low, high))


def test_success_of_one_seed_has_no_interval() -> None:
    mean, low, high = success_over_seeds([0.7], 50)
    assert mean == 0.7
    assert math.isnan(low)
    assert math.isnan(high)
