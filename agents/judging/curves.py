"""Learning curves of several runs on one axis, and the steps to reach a value. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Columns of a run's progress table.
Progress = Mapping[str, Sequence[float]]

#: A training task counts as learned at this success rate.
LEARNED = 0.9

POINTS = 201
SMOOTHED_POINTS = 7


class Curves(NamedTuple):
    """One column of several runs at the same numbers of environment steps."""

    env_steps: NDArray[np.float64]  # (points,)
    values: NDArray[np.float64]  # (runs, points); NaN before a run's first value


def on_one_grid(runs: Sequence[Progress], column: str) -> Curves:
    """Interpolate a column of every run, as far as the shortest run goes.

    Example:
        >>> run = {"env_steps": [0.0, 10.0], "success_rate": [0.0, 1.0]}
        >>> on_one_grid([run, run], "success_rate").values[:, -1]
        array([1., 1.])
    """
    grid = np.linspace(0, min(run["env_steps"][-1] for run in runs), POINTS)
    values = [np.interp(grid, run["env_steps"], run[column], left=np.nan) for run in runs]
    return Curves(grid, np.stack(values))


def smooth(values: ArrayLike, width: int = SMOOTHED_POINTS) -> NDArray[np.float64]:
    """Centred moving average along the last axis; at the ends, of what there is.

    Args:
        values: (..., points). NaN stays NaN and counts for nothing in its neighbours.
        width: points averaged, odd.

    Example:
        >>> smooth([0.0, 3.0, 0.0, 0.0], width=3)
        array([1.5, 1. , 1. , 0. ])
    """
    data = np.asarray(values, dtype=np.float64)
    known = np.isfinite(data)
    reach = width // 2
    padding = [(0, 0)] * (data.ndim - 1) + [(reach, reach)]

    def windowed_sum(of: NDArray[np.float64]) -> NDArray[np.float64]:
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(of, padding), width, axis=-1)
        total: NDArray[np.float64] = windows.sum(axis=-1)
        return total

    total, count = windowed_sum(np.where(known, data, 0.0)), windowed_sum(known.astype(float))
    return np.where(known, total / np.maximum(count, 1), np.nan)


def steps_to_reach(run: Progress, level: float = LEARNED) -> float | None:
    """Environment steps at which the training success rate is first at ``level`` or above.

    The rate is the one that was logged: over a window of the latest episodes.

    Returns:
        The steps, or None if it never is.

    Example:
        >>> steps_to_reach({"env_steps": [10, 20, 30], "success_rate": [0.2, 0.9, 0.8]})
        20.0
    """
    for steps, rate in zip(run["env_steps"], run["success_rate"], strict=True):
        if rate >= level:  # false for NaN
            return float(steps)
    return None


def median_steps(steps: Sequence[float | None]) -> float | None:
    """Median over runs, of which one that never got there counts as later than any.

    Returns:
        The median, or None if it is such a run.

    Example:
        >>> median_steps([100.0, None, 300.0])
        300.0
        >>> median_steps([100.0, None]) is None
        True
    """
    median = float(np.median([math.inf if s is None else s for s in steps]))
    return median if math.isfinite(median) else None
