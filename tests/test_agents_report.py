"""Figures of a comparison made by hand: what is drawn is what was measured."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer
from PIL import Image

from agents.compare import Cell, Comparison
from agents.config import PPOConfig
from agents.report import COLOURS, plot_curves, plot_tasks, to_dict, to_markdown, write_report
from agents.statistics import Estimate
from envs import SUITES

NAN = math.nan
SUITE = SUITES["empty"]
TASKS = SUITE.tasks[:2]
CORES = ("lstm", "none")


def cell(success: float, returns: float, *, interval: bool) -> Cell:
    low, high = (returns - 0.125, returns + 0.0625) if interval else (NAN, NAN)
    return Cell(
        success_rate=Estimate(success, success - 0.25, success + 0.125),
        mean_return=Estimate(returns, low, high),
        mean_length=20.0,
        per_seed_success=[success - 0.1, success + 0.1],
        per_seed_return=[returns - 0.05, returns + 0.05],
    )


def curve(*success: float) -> dict[str, list[float]]:
    return {
        "env_steps": [100.0, 200.0, 300.0],
        "success_rate": list(success),
        "episode_return_mean": [value / 2 for value in success],
        "env_steps_per_second": [10.0, 20.0, 30.0],
    }


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        suite=SUITE,
        tasks=TASKS,
        cores=CORES,
        seeds=(0, 1),
        episodes=10,
        mode="sample",
        config=PPOConfig(suite="empty"),
        training_backends=("envpool",),
        backends=("envpool", "gymnasium"),
        jobs=None,
        parameters={core: (1000, 2000) for core in CORES},
        env_steps_per_second=dict.fromkeys(CORES, 20.0),
        cells={
            ("lstm", TASKS[0].id): cell(0.75, 0.5, interval=True),
            ("lstm", TASKS[1].id): cell(0.5, 0.25, interval=False),
            ("none", TASKS[0].id): cell(0.25, 0.125, interval=False),
            ("none", TASKS[1].id): cell(0.375, 0.1875, interval=False),
        },
        curves={
            "lstm": [curve(NAN, 0.5, 0.75), curve(NAN, 0.25, 0.25)],
            "none": [curve(0.0, 0.25, 0.5), curve(0.0, 0.25, 0.5)],
        },
    )


def test_curves_are_those_of_the_runs(comparison: Comparison) -> None:
    figure = plot_curves(comparison)
    for ax, scale, label in zip(figure.axes, (1.0, 0.5), ("success rate", "return"), strict=True):
        assert ax.get_ylabel().startswith(label)
        assert ax.get_xlabel() == "environment steps"
        lines = [line for line in ax.lines if line.get_color() == COLOURS["lstm"]]
        first, second, mean = (np.asarray(line.get_data(), dtype=float) for line in lines)
        np.testing.assert_array_equal(first, [[100, 200, 300], [NAN, 0.5 * scale, 0.75 * scale]])
        np.testing.assert_array_equal(second, [[100, 200, 300], [NAN, 0.25 * scale, 0.25 * scale]])
        # Nothing is shown where nothing was measured.
        assert np.isnan(mean[1][mean[0] < 200]).all()
        assert mean[1][-1] == pytest.approx(0.5 * scale)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(CORES)


def test_bars_are_the_means_and_only_known_intervals_are_drawn(comparison: Comparison) -> None:
    figure = plot_tasks(comparison)
    for ax, key, label in zip(
        figure.axes, ("success_rate", "mean_return"), ("success rate", "return"), strict=True
    ):
        assert ax.get_ylabel() == label
        assert [text.get_text().replace("\n", "-") for text in ax.get_xticklabels()] == [
            task.name for task in TASKS
        ]
        bars = [c for c in ax.containers if isinstance(c, BarContainer)]
        errors = [c for c in ax.containers if isinstance(c, ErrorbarContainer)]
        assert [bar.get_label() for bar in bars] == list(CORES)
        drawn = []
        for core, container in zip(CORES, bars, strict=True):
            estimates = [getattr(comparison.cells[core, task.id], key) for task in TASKS]
            assert [bar.get_height() for bar in container] == [e.mean for e in estimates]
            drawn += [[e.low, e.high] for e in estimates if not math.isnan(e.low)]
        reach = [s[:, 1].tolist() for c in errors for s in c.lines[2][0].get_segments()]
        assert reach == drawn


def test_figures_are_written_whole(comparison: Comparison, tmp_path: Path) -> None:
    paths = write_report(comparison, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths[2:]:
        with Image.open(path) as image:
            assert (image.format, image.size) == ("PNG", (1200, 480))


def test_unknown_interval_is_null_and_the_mean_alone(comparison: Comparison) -> None:
    plain = to_dict(comparison)["cores"]["lstm"]["tasks"][TASKS[1].id]["mean_return"]
    assert plain == {"mean": 0.25, "low": None, "high": None}
    markdown = to_markdown(comparison)
    assert f"| {TASKS[1].name} | 0.25 | 0.19 |" in markdown
    assert "an unknown number of runs shared the machine" in markdown
    assert "environments by envpool and gymnasium" in markdown
