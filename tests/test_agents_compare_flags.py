"""Comparisons in which something is missing, differs or broke down."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.judging.compare import plan
from agents.judging.comparison import Comparison, Row
from agents.judging.report import to_dict, to_markdown
from agents.learning.checkpoint import agent_store, load_checkpoint
from agents.learning.train import Trainer
from compare_cases import (
    CORES,
    SEEDS,
    TASKS,
    change_checkpoint,
    evaluations,
    ignore,
    judge_runs,
    make_config,
)
from lab.comparing import Flag, NothingToCompare, survey, train_missing
from lab.disk.folder import PROGRESS_NAME, read_progress


def test_nothing_is_flagged_of_runs_as_asked_for(root: Path, comparison: Comparison) -> None:
    runs = plan(make_config(), CORES, SEEDS, root)
    assert survey(runs) == (runs, [])
    assert comparison.flags == ()
    assert not comparison.failed
    assert "Flags" not in to_markdown(comparison)


def test_partial_runs_are_reported_with_what_is_missing(root: Path) -> None:
    shutil.rmtree(root / "none-seed0")
    change_checkpoint(root / "none-seed1", env_steps=255)
    runs = plan(make_config(), CORES, SEEDS, root, as_found=True)
    comparison = judge_runs(runs)
    assert comparison.variants == ("rim_gru",)
    steps = int(read_progress(root / "none-seed1")["env_steps"][-1])
    assert comparison.flags == (
        Flag("missing", "none", "no run to judge, so not in the tables."),
        Flag("missing", "none seed 0", "there is no such run."),
        Flag("incomplete", "none seed 1", f"not complete, {steps} of 256 environment steps."),
    )
    assert not comparison.failed  # nothing went wrong
    markdown = to_markdown(comparison)
    assert "## Flags\n\n- none: no run to judge" in markdown
    assert markdown.index("## Flags") < markdown.index("## Success rate")
    assert to_dict(comparison)["flags"][1] == {
        "kind": "missing",
        "of": "none seed 0",
        "what": "there is no such run.",
    }


def test_differing_runs_are_compared_as_found_and_flagged(root: Path) -> None:
    asked = make_config(total_steps=512, gamma=0.5)
    with pytest.raises(ValueError, match="was trained with total_steps=256"):
        plan(asked, CORES, SEEDS, root)
    runs = plan(asked, CORES, SEEDS, root, as_found=True)
    comparison = judge_runs(runs)
    assert [comparison.seeds_of(core) for core in CORES] == [(0, 1), (0, 1)]
    assert comparison.budgets == (256,)
    what = "trained with total_steps=256, asked for 512; gamma=0.99, asked for 0.5."
    assert comparison.flags == tuple(Flag("different", run.name, what) for run in runs)
    assert f"- {', '.join(run.name for run in runs)}: {what}" in to_markdown(comparison)
    assert to_dict(comparison)["config"]["gamma"] == 0.99  # as it was


def test_runs_that_differ_from_each_other_share_no_such_setting(root: Path) -> None:
    folder = root / "none-seed1"
    config = load_checkpoint(folder).config
    change_checkpoint(folder, config=replace(config, total_steps=200, threads=2))
    comparison = judge_runs(plan(make_config(), CORES, SEEDS, root, as_found=True))
    assert [flag.of for flag in comparison.flags] == ["none seed 1"]
    assert comparison.budgets == (200, 256)
    plain = to_dict(comparison)
    assert plain["total_steps"] is None
    assert "total_steps" not in plain["config"]
    assert "Budget: 200 or 256 environment steps" in to_markdown(comparison)
    assert "1 or 2 threads per run" in to_markdown(comparison)


@pytest.mark.parametrize(
    "changes", [{"seed": 7}, {"core": "lstm"}, {"suite": "", "env": "MiniGrid-Empty-5x5-v0"}]
)
def test_folder_of_another_run_is_left_out(root: Path, changes: dict[str, Any]) -> None:
    folder = root / "none-seed0"
    shutil.rmtree(folder)
    Trainer(make_config(**{"core": "none", "seed": 0, **changes}), folder).run()
    complete, (flag,) = survey(plan(make_config(), CORES, SEEDS, root, as_found=True))
    assert folder not in [run.folder for run in complete]
    assert (flag.kind, flag.of) == ("different", "none seed 0")
    assert flag.what.startswith("another run, left out: ")
    assert repr(next(iter(changes.values()))) in flag.what


def test_run_on_another_backend_is_flagged(root: Path) -> None:
    folder = root / "none-seed0"
    other = {"envpool": "gymnasium", "gymnasium": "envpool"}[load_checkpoint(folder).backend]
    change_checkpoint(folder, backend=other)
    complete, (flag,) = survey(plan(make_config(), CORES, SEEDS, root, as_found=True))
    assert len(complete) == 4
    assert f"environments={other!r}, asked for" in flag.what


def test_why_a_run_broke_down_is_kept_for_later(tmp_path: Path) -> None:
    runs = plan(make_config(), ["compare_cases:BreaksDown", "none"], [0], tmp_path)
    (failure,) = train_missing(runs, 1, ignore)
    assert failure.what.startswith("training failed: training stopped in update 1: ")
    comparison = judge_runs(runs, flags=[failure])
    assert comparison.variants == ("none",)
    assert comparison.flags[1:] == (failure,)
    assert comparison.failed
    _, (flag,) = survey(runs)
    why = failure.what.removeprefix("training failed: ")
    what = f"not complete, 0 of 256 environment steps: {why}"
    assert flag == Flag("incomplete", "compare_cases:BreaksDown seed 0", what)


def test_numbers_of_seeds_are_shown_where_they_differ(root: Path) -> None:
    shutil.rmtree(root / "none-seed1")
    comparison = judge_runs(plan(make_config(), CORES, SEEDS, root, as_found=True))
    markdown = to_markdown(comparison)
    assert "| task | rim_gru (2 seeds) | none (1 seed) |" in markdown
    assert "none for one seed" in markdown
    assert comparison.values("none", Row(TASKS[0], "success_rate")) == [
        evaluations(root, "none", [0])[0][TASKS[0].id]["success_rate"]["mean"]
    ]


def test_runs_that_cannot_be_judged_are_flagged_and_the_others_compared(root: Path) -> None:
    runs = plan(make_config(), CORES, SEEDS, root)
    (root / "rim_gru-seed1" / PROGRESS_NAME).write_text("")
    agent_store(root / "none-seed0").load().path.write_bytes(b"damaged")
    known = Flag("failed", "none seed 1", "training failed: of something.")
    comparison = judge_runs(runs, flags=[known])
    assert comparison.seeds_of("rim_gru") == (0,)
    assert comparison.seeds_of("none") == (1,)
    by_run = {flag.of: flag for flag in comparison.flags}
    assert by_run.keys() == {"rim_gru seed 1", "none seed 0", "none seed 1"}
    assert by_run["none seed 1"] == known
    assert "holds no rows" in by_run["rim_gru seed 1"].what
    assert "damaged" in by_run["none seed 0"].what
    assert {flag.kind for flag in comparison.flags} == {"failed"}
    assert comparison.failed


def test_a_damaged_run_does_not_keep_the_others_from_being_trained(root: Path) -> None:
    agent_store(root / "rim_gru-seed0").load().path.write_bytes(b"damaged")
    shutil.rmtree(root / "none-seed1")
    runs = plan(make_config(), CORES, SEEDS, root)
    flags = train_missing(runs, 1, ignore)
    assert [flag.of for flag in flags] == ["rim_gru seed 0"]
    assert "damaged" in flags[0].what
    comparison = judge_runs(runs, flags=flags)
    assert comparison.seeds_of("rim_gru") == (1,)
    assert comparison.seeds_of("none") == tuple(SEEDS)
    assert comparison.flags == tuple(flags)


def test_nothing_to_judge_is_one_line(tmp_path: Path) -> None:
    runs = plan(make_config(), CORES, SEEDS, tmp_path)
    with pytest.raises(NothingToCompare) as caught:
        judge_runs(runs, flags=[Flag("failed", "none seed 0", "not trained: why.")])
    assert str(caught.value) == (
        "no run could be compared. none seed 0: not trained: why. "
        "rim_gru seed 0, rim_gru seed 1, none seed 1: there is no such run."
    )
