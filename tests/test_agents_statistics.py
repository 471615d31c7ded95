"""Intervals by hand, by simulation, and where there is none."""

from __future__ import annotations

import math
import warnings
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lab.reporting.statistics import (
    interquartile_mean,
    mean_band,
    mean_over_episodes,
    mean_over_seeds,
    probability_of_improvement,
    proportion,
    success_over_seeds,
)
from selection import short


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


# Over runs and tasks ----------------------------------------------------------------------------

#: (runs, tasks), primes but for one task or one run; rates of 10 episodes, so with many ties.
SHAPES = [(5, 3), (3, 7), (2, 1), (7, 1), (11, 2), (4, 5)]


def rates(runs: int, tasks: int, seed: int = 0, ease: float = 0.5) -> NDArray[np.float64]:
    rng = np.random.default_rng((seed, runs, tasks))
    chances = np.clip(rng.normal(ease, 0.2, size=(runs, tasks)), 0, 1)
    return np.asarray(rng.binomial(10, chances) / 10, dtype=np.float64)


@pytest.fixture(scope="module")
def rliable() -> tuple[ModuleType, ModuleType]:
    """Its library and its metrics. What it imports warns, about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rliable import library, metrics  # type: ignore[import-untyped]

        return library, metrics


@pytest.mark.parametrize("shape", [*SHAPES, (1, 1), (1, 5)])
def test_interquartile_mean_is_that_of_rliable(
    shape: tuple[int, int], rliable: tuple[ModuleType, ModuleType]
) -> None:
    scores = rates(*shape)
    assert interquartile_mean(scores).mean == pytest.approx(
        rliable[1].aggregate_iqm(scores), abs=1e-12
    )


def test_interquartile_mean_by_hand() -> None:
    """Of eight scores two go at each end, and tasks do not matter for that."""
    scores = [[0.0, 0.9], [0.1, 0.3], [0.5, 1.0], [0.2, 0.6]]
    assert interquartile_mean(scores).mean == pytest.approx((0.2 + 0.3 + 0.5 + 0.6) / 4)


@pytest.mark.parametrize("shape", short([((5, 3),), ((11, 2),), ((7, 1),)], 0))
def test_interval_of_interquartile_mean_is_that_of_rliable(
    shape: tuple[int, int], rliable: tuple[ModuleType, ModuleType]
) -> None:
    scores = rates(*shape)
    library, metrics = rliable
    np.random.seed(0)  # noqa: NPY002  (which rliable draws from)
    _, intervals = library.get_interval_estimates(
        {"x": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=4000
    )
    estimate = interquartile_mean(scores)
    # 4 000 draws place a 2.5 % quantile within some 6 % of the half width, and rates of 10 episodes
    # make it jump; drawing all tasks of a run together would be some 20 % off.
    width = estimate.high - estimate.low
    assert estimate[1:] == pytest.approx(intervals["x"][:, 0], abs=0.06 * width)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("other_runs", [1, 3, 5])
def test_probability_of_improvement_is_that_of_rliable(
    shape: tuple[int, int], other_runs: int, rliable: tuple[ModuleType, ModuleType]
) -> None:
    first, second = rates(*shape), rates(other_runs, shape[1], seed=1, ease=0.6)
    for x, y in ((first, second), (second, first), (first, first)):
        wanted = rliable[1].probability_of_improvement(x, y)
        assert probability_of_improvement(x, y).mean == pytest.approx(wanted, abs=1e-12)


@pytest.mark.long
def test_interval_of_probability_of_improvement_is_that_of_rliable(
    rliable: tuple[ModuleType, ModuleType],
) -> None:
    first, second = rates(5, 3), rates(7, 3, seed=1)
    library, metrics = rliable
    np.random.seed(0)  # noqa: NPY002  (which rliable draws from)
    _, intervals = library.get_interval_estimates(
        {"x": [first, second]},
        lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
        reps=1000,  # its Mann-Whitney test is slow
    )
    estimate = probability_of_improvement(first, second)
    # 1 000 draws place a 2.5 % quantile within some 12 % of the half width.
    width = estimate.high - estimate.low
    assert estimate[1:] == pytest.approx(intervals["x"][:, 0], abs=0.1 * width)


def test_probabilities_of_improvement_either_way_add_up_to_one() -> None:
    first, second = rates(5, 3), rates(3, 3, seed=1)
    there, back = (probability_of_improvement(*pair) for pair in ((first, second), (second, first)))
    assert there.mean + back.mean == pytest.approx(1)


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_equal_or_single_runs_have_no_interval_over_tasks(runs: int) -> None:
    """Also where tasks differ, and where 0.1 + 0.1 + 0.1 is not 0.3."""
    scores = [[0.1, 0.7, 1.0]] * runs
    estimate = interquartile_mean(scores)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert math.isnan(probability_of_improvement(scores, scores).low)


def test_one_run_against_several_has_no_interval() -> None:
    several = [[0.1], [0.9], [0.3], [0.7], [0.2]]
    assert math.isnan(probability_of_improvement([[0.5]], several).low)
    assert math.isnan(probability_of_improvement(several, [[0.5]]).high)


def test_runs_that_always_win_have_no_interval() -> None:
    mean, low, high = probability_of_improvement([[0.5], [0.6]], [[0.1], [0.2]])
    assert (mean, math.isnan(low), math.isnan(high)) == (1.0, True, True)


def test_bootstrap_over_runs_is_repeatable() -> None:
    assert interquartile_mean(rates(5, 3)) == interquartile_mean(rates(5, 3))
    pair = rates(5, 3), rates(5, 3, seed=1)
    assert probability_of_improvement(*pair) == probability_of_improvement(*pair)


def test_bootstrap_over_five_runs_is_too_narrow_as_the_report_says() -> None:
    rng = np.random.default_rng(4)
    estimates = [interquartile_mean(rng.normal(size=(5, 1))) for _ in range(200)]
    covered = np.mean([e.low <= 0 <= e.high for e in estimates])
    # Student's interval has 0.95; four standard errors at 0.85 are 0.1.
    assert 0.75 < covered < 0.95


@pytest.mark.parametrize("scores", [[], [[]], [0.5, 0.6], np.zeros((2, 2, 2))])
def test_scores_have_to_be_runs_by_tasks(scores: object) -> None:
    with pytest.raises(ValueError, match="must be \\(runs, tasks\\)"):
        interquartile_mean(scores)  # type: ignore[arg-type]


def test_both_need_the_same_tasks() -> None:
    with pytest.raises(ValueError, match="same tasks; got 2 and 3"):
        probability_of_improvement(rates(5, 2), rates(5, 3))


def test_band_is_that_of_the_mean_at_every_point() -> None:
    curves = np.random.default_rng(5).random((5, 3))
    band = mean_band(curves)
    np.testing.assert_allclose(band.mean, curves.mean(axis=0))
    for point in range(3):
        alone = stats.bootstrap(
            (curves[:, point],), np.mean, method="percentile", n_resamples=9999, rng=0
        ).confidence_interval
        # 2 000 draws place a 2.5 % quantile within some 9 % of the half width.
        reach = (alone.high - alone.low) / 2
        assert band.low[point] == pytest.approx(alone.low, abs=0.15 * reach)
        assert band.high[point] == pytest.approx(alone.high, abs=0.15 * reach)


def test_band_is_nan_where_nothing_is_known_or_all_agree() -> None:
    nan = math.nan
    band = mean_band([[nan, 0.5, 0.25], [0.5, 0.5, 0.75]])
    np.testing.assert_array_equal(band.mean, [nan, 0.5, 0.5])
    np.testing.assert_array_equal(band.low, [nan, nan, 0.25])
    np.testing.assert_array_equal(band.high, [nan, nan, 0.75])
    assert np.isnan(mean_band([[0.5, 0.75]]).low).all()


@pytest.mark.parametrize("tasks", [1, 9])
def test_runs_are_drawn_anew_for_every_task(tasks: int) -> None:
    """So nine tasks of equal scores have an interval a third as wide as one of them."""
    first, second = np.random.default_rng(6).random((2, 6, 1))
    one = probability_of_improvement(first, second)
    many = probability_of_improvement(first.repeat(tasks, 1), second.repeat(tasks, 1))
    assert many.mean == pytest.approx(one.mean)
    ratio = (many.high - many.low) / (one.high - one.low)
    assert ratio == pytest.approx(1 / math.sqrt(tasks), rel=0.15)  # coarse: 36 pairs
