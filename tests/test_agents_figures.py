"""Figures of a comparison made by hand: what is drawn is what was measured."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from agents.judging.comparison import Comparison, Measure, Row
from agents.judging.curves import on_one_grid, smooth
from agents.judging.figures import plot_curves, plot_tasks, write_figures
from lab.reporting.figures import COLOURS, colours, draw_dots, drawn
from lab.reporting.statistics import mean_band
from report_cases import CORES, NAN, TASKS, make_comparison, with_chance, with_seeds


@pytest.fixture
def comparison() -> Comparison:
    return make_comparison()


def lines_of(ax: Axes, core: str) -> list[np.ndarray]:
    lines = [line for line in ax.lines if line.get_color() == COLOURS[core]]
    return [np.asarray(line.get_data(), dtype=float) for line in lines]


def test_curves_are_those_of_the_runs(comparison: Comparison) -> None:
    figure = plot_curves(comparison)
    for ax, scale, label in zip(figure.axes, (1.0, 0.5), ("success rate", "return"), strict=True):
        assert ax.get_ylabel().startswith(label)
        assert ax.get_xlabel() == "environment steps"
        first, second, mean = lines_of(ax, "lstm")
        np.testing.assert_array_equal(first, [[100, 200, 300], [NAN, 0.5 * scale, 0.75 * scale]])
        np.testing.assert_array_equal(second, [[100, 200, 300], [NAN, 0.25 * scale, 0.25 * scale]])
        # Nothing is shown where nothing was measured.
        assert np.isnan(mean[1][mean[0] < 200]).all()
        middle = np.abs(mean[0] - 250).argmin()  # on a straight line smoothing changes nothing
        wanted = (0.5 + 0.75 + 2 * 0.25) / 4 * scale
        assert mean[1][middle] == pytest.approx(wanted, abs=0.002)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(CORES)


@pytest.mark.parametrize("seeds", [(2, 2), (5, 4)])
@pytest.mark.parametrize(("known", "marker"), [((), ""), ((2,), "o"), ((1, 2), "")])
def test_few_values_are_told_from_none(
    seeds: tuple[int, int], known: tuple[int, ...], marker: str
) -> None:
    comparison = with_seeds(make_comparison(), seeds)
    for run in comparison.finished:
        for name in ("success_rate", "episode_return_mean"):
            run.curve[name][:] = [v if i in known else NAN for i, v in enumerate([0.2, 0.5, 0.7])]
    ax = plot_curves(comparison).axes[0]
    assert [text.get_text() for text in ax.texts] == ([] if known else ["no values yet"])
    assert ax.lines[0].get_marker() == marker
    assert ax.get_xlim()[1] >= 300


def test_band_around_the_curve_is_that_of_the_seeds() -> None:
    comparison = with_seeds(make_comparison(), (5, 4))
    ax = plot_curves(comparison).axes[0]
    assert len(lines_of(ax, "lstm")) == 1  # of many seeds only the mean
    steps, values = on_one_grid([run.curve for run in comparison.runs["lstm"]], "success_rate")
    band = mean_band(smooth(values))
    polygon = next(c for c in ax.collections if isinstance(c, PolyCollection))
    drawn = np.concatenate([path.vertices for path in polygon.get_paths()])
    known = ~np.isnan(band.low)
    assert known.any()
    corners = {tuple(np.round(corner, 9)) for corner in drawn}
    for edge in (band.low, band.high):
        assert {
            tuple(np.round(c, 9)) for c in zip(steps[known], edge[known], strict=True)
        } <= corners


def test_one_seed_has_no_band_and_says_so() -> None:
    figure = plot_curves(with_seeds(make_comparison(), (1, 1)))
    paths = [path for c in figure.axes[0].collections for path in c.get_paths()]
    assert all(np.asarray(path.vertices).size == 0 for path in paths)
    assert "one seed" in figure.get_suptitle()
    assert "95 %" not in figure.get_suptitle()


def test_title_says_what_was_smoothed(comparison: Comparison) -> None:
    title = plot_curves(comparison).get_suptitle()
    assert "mean over seeds and its 95 % bootstrap band" in title
    assert "thin lines: seeds; smoothed over 3.5 % of the steps" in title
    assert "thin lines" not in plot_curves(with_seeds(comparison, (5, 4))).get_suptitle()


def test_numbers_of_seeds_are_named_where_they_differ(comparison: Comparison) -> None:
    for plot in (plot_curves, plot_tasks):
        (legend,) = plot(with_seeds(comparison, (3, 1))).legends
        assert [t.get_text() for t in legend.get_texts()] == ["lstm (3 seeds)", "none (1 seed)"]


def test_chance_is_a_dashed_line_where_it_is_known(comparison: Comparison) -> None:
    with_line = plot_curves(with_chance(comparison))
    (line,) = [line for line in with_line.axes[0].lines if line.get_label() == "chance"]
    assert np.asarray(line.get_ydata()).tolist() == [0.125, 0.125]
    assert line.get_linestyle() == "--"
    assert [t.get_text() for t in with_line.legends[0].get_texts()] == [*CORES, "chance"]
    assert not [line for line in with_line.axes[1].lines if line.get_label() == "chance"]
    bars = plot_tasks(with_chance(comparison))
    assert [t.get_text() for t in bars.legends[0].get_texts()] == [*CORES, "chance"]


def test_bars_are_the_means_and_only_known_intervals_are_drawn(comparison: Comparison) -> None:
    figure = plot_tasks(comparison)
    keys: tuple[Measure, ...] = ("success_rate", "mean_return")
    for ax, key, label in zip(figure.axes, keys, ("success rate", "return"), strict=True):
        assert ax.get_ylabel() == label
        ticks = [text.get_text().replace("\n", "-") for text in ax.get_xticklabels()]
        assert ticks == [f"{TASKS[0].name}-(trained)", TASKS[1].name]
        bars = [c for c in ax.containers if isinstance(c, BarContainer)]
        errors = [c for c in ax.containers if isinstance(c, ErrorbarContainer)]
        assert [bar.get_label() for bar in bars] == list(CORES)
        drawn = []
        for core, container in zip(CORES, bars, strict=True):
            found = [comparison.estimate(core, Row(task, key)) for task in TASKS]
            estimates = [estimate for estimate in found if estimate is not None]
            assert [bar.get_height() for bar in container] == [e.mean for e in estimates]
            drawn += [[e.low, e.high] for e in estimates if not math.isnan(e.low)]
        reach = [s[:, 1].tolist() for c in errors for s in c.lines[2][0].get_segments()]
        np.testing.assert_allclose(reach, drawn, rtol=1e-12, atol=1e-12)


def test_names_of_tasks_do_not_meet() -> None:
    made = make_comparison()
    tasks = made.suite.tasks  # of them two names of twelve letters stand side by side
    figure = plot_tasks(replace(made, tasks=tasks))
    drawn(figure, "png")  # until then nothing has a place
    for ax in figure.axes:
        labels = ax.get_xticklabels()
        assert len(labels) == len(tasks)
        if labels[0].get_rotation():  # slanted, each is below the tick before it
            continue
        boxes = [label.get_window_extent() for label in labels]
        assert all(left.x1 + 3 < right.x0 for left, right in pairwise(boxes))


def test_every_seed_is_a_dot_in_its_bar() -> None:
    comparison = with_seeds(make_comparison(), (5, 4))
    ax = plot_tasks(comparison).axes[0]
    dots = [np.asarray(line.get_data()) for line in ax.lines if line.get_marker() == "o"]
    bars = [bar for c in ax.containers if isinstance(c, BarContainer) for bar in c]
    rates = [comparison.values(c, Row(task, "success_rate")) for c in CORES for task in TASKS]
    for (x, y), bar, own in zip(dots, bars, rates, strict=True):
        assert y.tolist() == own
        assert (bar.get_x() < x).all()
        assert (x < bar.get_x() + bar.get_width()).all()
        assert len(set(x)) == len(x)


def test_every_core_has_a_colour_of_its_own() -> None:
    cores = [*COLOURS, "a.b:C", "a.b:D"]
    chosen = colours(cores)
    assert len(set(chosen.values())) == len(cores)
    assert {core: chosen[core] for core in COLOURS} == COLOURS


def test_figures_are_written_whole_and_the_same_each_time(
    comparison: Comparison, tmp_path: Path
) -> None:
    paths = write_figures(comparison, tmp_path)
    names = [f"{name}.{kind}" for name in ("learning_curves", "tasks") for kind in ("png", "svg")]
    assert [path.name for path in paths] == names
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths[::2]:
        with Image.open(path) as image:
            assert (image.format, image.size) == ("PNG", (1200, 552))
    before = [path.read_bytes() for path in paths]
    assert all(content.rstrip().endswith(b"</svg>") for content in before[1::2])
    assert [path.read_bytes() for path in write_figures(comparison, tmp_path)] == before


def test_a_bar_without_values_has_no_dots() -> None:
    """Not every model has every row: a plain network has no attention to be made random."""
    ax = Figure().subplots()
    draw_dots(ax, np.array([0.0, 1.0]), [[], [0.5, 0.7]], width=0.4)
    assert [np.asarray(line.get_ydata()).tolist() for line in ax.get_lines()] == [[0.5, 0.7]]
