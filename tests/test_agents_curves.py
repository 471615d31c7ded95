"""Learning curves by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.judging.curves import POINTS, median_steps, on_one_grid, smooth, steps_to_reach

NAN = math.nan


def test_runs_are_put_on_the_grid_of_the_shortest() -> None:
    short = {"env_steps": [100.0, 200.0], "success_rate": [0.0, 1.0]}
    long = {"env_steps": [50.0, 400.0], "success_rate": [0.5, 0.5]}
    steps, values = on_one_grid([short, long], "success_rate")
    assert (steps[0], steps[-1], len(steps)) == (0, 200, POINTS)
    assert values.shape == (2, POINTS)
    assert values[0, -1] == 1.0
    np.testing.assert_allclose(values[0, steps == 150], 0.5)
    # Nothing was measured before the first row of either.
    np.testing.assert_array_equal(np.isnan(values), [steps < 100, steps < 50])


def test_smoothing_is_centred_and_uses_what_there_is() -> None:
    values = [[0.0, 3.0, 6.0, 0.0], [NAN, 1.0, 2.0, 6.0]]
    wanted = [[1.5, 3.0, 3.0, 3.0], [NAN, 1.5, 3.0, 4.0]]
    np.testing.assert_allclose(smooth(values, width=3), wanted)


def test_smoothing_keeps_a_straight_line_and_a_constant() -> None:
    line = np.linspace(0, 1, 50)
    np.testing.assert_allclose(smooth(line)[3:-3], line[3:-3])
    np.testing.assert_allclose(smooth(np.full(50, 0.7)), 0.7)


@pytest.mark.parametrize(
    ("rates", "steps"),
    [
        ([0.2, 0.9, 0.1], 20.0),
        ([NAN, 0.89, 0.95], 30.0),
        ([NAN, NAN, 0.89], None),
        ([1.0, 1.0, 1.0], 10.0),
    ],
)
def test_steps_to_reach_is_the_first_update_at_the_level(
    rates: list[float], steps: float | None
) -> None:
    assert steps_to_reach({"env_steps": [10, 20, 30], "success_rate": rates}) == steps


@pytest.mark.parametrize(
    ("steps", "median"),
    [
        ([100.0], 100.0),
        ([None], None),
        ([300.0, 100.0], 200.0),
        ([300.0, None], None),
        ([300.0, None, 100.0], 300.0),
        ([None, None, 100.0], None),
    ],
)
def test_median_counts_runs_that_never_got_there(
    steps: list[float | None], median: float | None
) -> None:
    assert median_steps(steps) == median
