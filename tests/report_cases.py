"""A comparison made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agents.config import PPOConfig
from agents.judging.comparison import Cell, Comparison, CoreCost
from envs import SUITES
from lab.reporting.statistics import Estimate

NAN = math.nan
SUITE = replace(SUITES["empty"], chance=None)
TASKS = SUITE.tasks[:2]
CORES = ("lstm", "none")


def cell(success: float, returns: float, *, interval: bool, seeds: int = 2) -> Cell:
    low, high = (returns - 0.125, returns + 0.0625) if interval else (NAN, NAN)
    offsets = [-0.125, 0.125, 0.0625, 0.0, -0.0625][:seeds]
    return Cell(
        success_rate=Estimate(success, success - 0.25, success + 0.125),
        mean_return=Estimate(returns, low, high),
        mean_length=20.0,
        per_seed_success=[success + offset for offset in offsets],
        per_seed_return=[returns + offset / 2 for offset in offsets],
    )


def curve(*success: float) -> dict[str, list[float]]:
    return {
        "env_steps": [100.0, 200.0, 300.0],
        "success_rate": list(success),
        "episode_return_mean": [value / 2 for value in success],
        "env_steps_per_second": [10.0, 20.0, 30.0],
    }


def make_comparison(**changes: Any) -> Comparison:
    made = Comparison(
        suite=SUITE,
        tasks=TASKS,
        seeds=(0, 1),
        episodes=10,
        mode="sample",
        configs={core: configs(core, 2) for core in CORES},
        training_backends=("envpool",),
        backends=("envpool", "gymnasium"),
        jobs=None,
        costs={core: CoreCost(128, 1000, 2000, 30000, None) for core in CORES},
        env_steps_per_second=dict.fromkeys(CORES, 20.0),
        cells={
            ("lstm", TASKS[0].id): cell(0.75, 0.5, interval=True),
            ("lstm", TASKS[1].id): cell(0.5, 0.25, interval=False),
            ("none", TASKS[0].id): cell(0.25, 0.125, interval=False),
            ("none", TASKS[1].id): cell(0.375, 0.1875, interval=False),
        },
        curves={
            "lstm": [curve(NAN, 0.5, 0.75), curve(NAN, 0.25, 0.25)],
            "none": [curve(0.0, 0.25, 0.95), curve(0.0, 0.9, 0.5)],
        },
    )
    return replace(made, **changes)


def with_seeds(comparison: Comparison, counts: Sequence[int]) -> Comparison:
    """The same with so many seeds per core."""
    of = dict(zip(CORES, counts, strict=True))
    return replace(
        comparison,
        configs={core: configs(core, count) for core, count in of.items()},
        cells={
            (core, task.id): cell(0.5, 0.25, interval=count > 1, seeds=count)
            for core, count in of.items()
            for task in TASKS
        },
        curves={
            core: [curve(0.0, 0.25, 0.1 * seed) for seed in range(count)]
            for core, count in of.items()
        },
    )


def configs(core: str, count: int) -> tuple[PPOConfig, ...]:
    return tuple(PPOConfig(suite="empty", core=core, seed=seed) for seed in range(count))


def with_chance(comparison: Comparison) -> Comparison:
    return replace(comparison, suite=replace(SUITE, chance=0.125))
