"""A comparison made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.config import PPOConfig
from agents.judging.comparison import Comparison, CoreCost, Measured
from envs import SUITES

NAN = math.nan
SUITE = replace(SUITES["empty"], chance=None)
TASKS = SUITE.tasks[:2]
CORES = ("lstm", "none")

#: By core, of the two tasks: success rate and return, mean over seeds.
SCORES = {"lstm": [(0.75, 0.5), (0.5, 0.25)], "none": [(0.25, 0.125), (0.375, 0.1875)]}

#: How the seeds differ from the mean.
OFFSETS = (-0.125, 0.125, 0.0625, 0.0, -0.0625)

Scores = Sequence[tuple[float, float]]


def result(backend: str, success: float, returns: float) -> dict[str, Any]:
    return {
        "backend": backend,
        "success_rate": {"mean": success},
        "mean_return": {"mean": returns},
        "mean_length": {"mean": 20.0},
    }


def run(core: str, seed: int, scores: Scores, curve: dict[str, list[float]]) -> Measured:
    """With these scores on the second task and on all others."""
    (success, returns), (second_success, second_returns) = scores
    results = {task.id: result("envpool", success, returns) for task in SUITE.tasks}
    results[TASKS[1].id] = result("gymnasium", second_success, second_returns)
    return Measured(
        variant=core,
        config=PPOConfig(suite="empty", core=core, seed=seed),
        folder=Path(f"none/{core}-seed{seed}"),
        results=results,
        curve=curve,
        cost=CoreCost(128, 1000, 2000, 30000, None),
        training_backend="envpool",
    )


def curve(*success: float) -> dict[str, list[float]]:
    return {
        "env_steps": [100.0, 200.0, 300.0],
        "success_rate": list(success),
        "episode_return_mean": [value / 2 for value in success],
        "env_steps_per_second": [10.0, 20.0, 30.0],
    }


CURVES = {
    "lstm": [curve(NAN, 0.5, 0.75), curve(NAN, 0.25, 0.25)],
    "none": [curve(0.0, 0.25, 0.95), curve(0.0, 0.9, 0.5)],
}


def of_core(core: str) -> list[Measured]:
    """Two seeds; returns are all equal, so without interval, but those of lstm on task 0."""
    (success, returns), (second_success, second_returns) = SCORES[core]
    spread = 0.5 if core == "lstm" else 0.0
    return [
        run(
            core,
            seed,
            [
                (success + OFFSETS[seed], returns + spread * OFFSETS[seed]),
                (second_success + OFFSETS[seed], second_returns),
            ],
            {name: list(column) for name, column in CURVES[core][seed].items()},
        )
        for seed in (0, 1)
    ]


def make_comparison(**changes: Any) -> Comparison:
    made = Comparison(
        suite=SUITE,
        tasks=TASKS,
        seeds=(0, 1),
        episodes=10,
        mode="sample",
        runs={core: of_core(core) for core in CORES},
    )
    return replace(made, **changes)


def with_seeds(comparison: Comparison, counts: Sequence[int]) -> Comparison:
    """The same with so many seeds per core."""
    runs = {
        core: [
            run(
                core,
                seed,
                [(0.5 + OFFSETS[seed], 0.25 + OFFSETS[seed] / 2)] * 2,
                curve(0.0, 0.25, 0.1 * seed),
            )
            for seed in range(count)
        ]
        for core, count in zip(CORES, counts, strict=True)
    }
    return replace(comparison, runs=runs)


def with_chance(comparison: Comparison) -> Comparison:
    return replace(comparison, suite=replace(SUITE, chance=0.125))
