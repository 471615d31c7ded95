"""Tables and JSON of a comparison made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.judging.comparison import Comparison, Row
from agents.judging.report import improvements, to_dict, to_markdown, write_report
from lab.comparing import Flag
from lab.reporting.statistics import interquartile_mean, probability_of_improvement
from report_cases import CORES, TASKS, make_comparison, with_chance, with_seeds


@pytest.fixture
def comparison() -> Comparison:
    return make_comparison()


def section(markdown: str, heading: str) -> str:
    (found,) = [part for part in markdown.split("\n## ") if part.startswith(heading)]
    return found


def test_report_is_two_texts_and_two_figures_twice(comparison: Comparison, tmp_path: Path) -> None:
    paths = write_report(comparison, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert [path.name for path in paths[:2]] == ["comparison.md", "comparison.json"]
    assert [path.suffix for path in paths[2:]] == [".png", ".svg"] * 2
    assert paths[0].read_text() == to_markdown(comparison)
    assert json.loads(paths[1].read_text()) == to_dict(comparison)


def test_unknown_interval_is_null_and_the_mean_alone(comparison: Comparison) -> None:
    plain = to_dict(comparison)["cores"]["lstm"]["tasks"][TASKS[1].id]["mean_return"]
    assert plain == {"mean": 0.25, "low": None, "high": None}
    markdown = to_markdown(comparison)
    assert f"| {TASKS[1].name} | 0.25 | 0.19 |" in markdown
    assert "an unknown number of runs shared the machine" in markdown
    assert "Environments by envpool in training, by envpool and gymnasium in evaluation" in markdown


def test_head_says_what_was_done(comparison: Comparison) -> None:
    head = to_markdown(comparison).split("\n## ")[0]
    for text in (
        "# empty: lstm, none",
        TASKS[0].id,
        "200,000 environment steps per run",
        "Seeds: 0, 1.",
        "10 episodes per seed and task",
        "'sample'",
    ):
        assert text in head
    assert "Chance" not in head
    assert "Chance there: success rate 0.12." in to_markdown(with_chance(comparison))
    assert to_dict(comparison)["chance"] is None
    assert to_dict(with_chance(comparison))["chance"] == 0.125


def test_flags_stand_before_all_tables_and_say_the_same_once(comparison: Comparison) -> None:
    assert "Flags" not in to_markdown(comparison)
    flags = (Flag("missing", "a", "x."), Flag("failed", "b", "y."), Flag("missing", "c", "x."))
    flagged = make_comparison(flags=flags)
    headings = to_markdown(flagged).split("\n## ")
    assert headings[1] == "Flags\n\n- a, c: x.\n- b: y.\n"
    assert to_dict(flagged)["flags"][1] == {"kind": "failed", "of": "b", "what": "y."}


def test_aggregate_is_over_the_unseen_tasks_only() -> None:
    comparison = with_seeds(make_comparison(), (5, 4))
    unseen = TASKS[1].id
    table = section(to_markdown(comparison), "Interquartile mean")
    last = table.rstrip().splitlines()[-1]
    plain = to_dict(comparison)
    assert plain["aggregated_tasks"] == [unseen]
    for core in CORES:
        rates = np.array(comparison.values(core, Row(TASKS[1], "success_rate")))[:, None]
        wanted = interquartile_mean(rates)
        shown = f"{wanted.mean:.2f} [{wanted.low:.2f}, {wanted.high:.2f}]"
        assert shown in last
        assert plain["cores"][core]["aggregated_success_iqm"] == {
            "iqm": wanted.mean,
            "low": wanted.low,
            "high": wanted.high,
        }
    assert last.startswith("| **unseen tasks** |")


def test_without_unseen_tasks_the_aggregate_is_over_all(comparison: Comparison) -> None:
    only = make_comparison(tasks=TASKS[:1])
    assert to_dict(only)["aggregated_tasks"] == [TASKS[0].id]
    assert "| **all tasks** |" in to_markdown(only)


def test_improvement_is_of_the_row_over_the_column() -> None:
    comparison = make_comparison()
    pairs = improvements(comparison)
    success = {core: comparison.values(core, Row(TASKS[1], "success_rate")) for core in CORES}
    wanted = probability_of_improvement(
        *(np.array(success[core])[:, None] for core in ("lstm", "none"))
    )
    assert pairs["lstm", "none"] == wanted
    assert wanted.mean > 0.5
    assert pairs["none", "lstm"] == pytest.approx(
        (1 - wanted.mean, 1 - wanted.high, 1 - wanted.low), nan_ok=True
    )
    rows = section(to_markdown(comparison), "Probability").splitlines()[-3:]
    assert rows[1].startswith(f"| lstm | - | {wanted.mean:.2f}")
    assert rows[2].startswith(f"| none | {1 - wanted.mean:.2f}")
    plain = to_dict(comparison)["probability_of_improvement"]
    assert plain["lstm"]["none"]["probability"] == wanted.mean
    assert list(plain["lstm"]) == ["none"]


def test_one_core_improves_on_nothing(comparison: Comparison) -> None:
    alone = make_comparison(runs={"lstm": comparison.runs["lstm"]})
    assert "Probability" not in to_markdown(alone)
    assert to_dict(alone)["probability_of_improvement"] == {"lstm": {}}


def test_sample_efficiency_is_median_and_number_of_seeds(comparison: Comparison) -> None:
    rows = section(to_markdown(comparison), "Sample efficiency").splitlines()[-3:]
    assert "| lstm | - | 0 of 2 |" in rows
    assert "| none | 250 | 2 of 2 |" in rows
    plain = to_dict(comparison)["cores"]
    assert plain["lstm"]["env_steps_to_learn"] == {
        "median": None,
        "reached": 0,
        "per_seed": [None, None],
    }
    assert plain["none"]["env_steps_to_learn"] == {
        "median": 250.0,
        "reached": 2,
        "per_seed": [300.0, 200.0],
    }


def test_success_that_is_unknown_of_one_seed_is_unknown_of_the_core(comparison: Comparison) -> None:
    """Seeds that never succeed may be those of which an environment says nothing."""
    comparison.runs["lstm"][1].results[TASKS[1].id]["success_rate"] = None
    row = Row(TASKS[1], "success_rate")
    assert comparison.values("lstm", row) == []
    assert comparison.estimate("lstm", row) is None
    task = to_dict(comparison)["cores"]["lstm"]["tasks"][TASKS[1].id]
    assert (task["success_rate"], task["per_seed_success"]) == (None, [])
    assert len(task["per_seed_return"]) == 2


def test_costs_are_shown_and_unknown_ones_said(comparison: Comparison) -> None:
    cores = section(to_markdown(comparison), "Cores")
    assert "| lstm | 128 | 1,000 | 2,000 | 30,000 | unknown | 20 |" in cores
    plain = to_dict(comparison)["cores"]["lstm"]
    assert plain["hidden_size"] == 128
    assert plain["core_multiply_adds"] == 30000
    assert plain["total_multiply_adds"] is None


def test_core_from_elsewhere_is_short_in_tables_and_whole_once() -> None:
    comparison = make_comparison()
    path = "torch.nn:RNN"
    there = make_comparison(
        runs={
            path: [
                replace(run, config=replace(run.config, core=path))
                for run in comparison.runs["lstm"]
            ]
        }
    )
    markdown = to_markdown(there)
    assert "| task | RNN |" in markdown
    assert f"| {path} | 128 |" in section(markdown, "Cores")
    assert list(to_dict(there)["cores"]) == [path]
