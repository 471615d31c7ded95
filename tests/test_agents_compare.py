"""Comparisons at toy size: train what is missing, judge every run, report what was measured."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.judging.compare import judge, plan
from agents.judging.comparison import Comparison, Row, Run
from agents.judging.evaluations import EVALUATION_NAME, cached_results, evaluate_run
from agents.judging.report import to_dict, to_markdown, write_report
from agents.learning.checkpoint import is_trained, load_checkpoint, save_checkpoint
from agents.learning.train import Trainer
from agents.model.cost import multiply_adds
from agents.model.matching import core_parameters
from agents.model.policy import count_parameters
from compare_cases import (
    CORES,
    EPISODES,
    SEEDS,
    SUITE,
    TASKS,
    compare,
    evaluations,
    folder_times,
    ignore,
    interrupt,
    make_config,
)
from envs import BackendName, Task
from lab.comparing import Flag, train_missing
from lab.disk.folder import PROGRESS_NAME, read_progress
from lab.disk.lock import lock_folder
from lab.reporting.statistics import interquartile_mean, mean_over_seeds, success_over_seeds
from lab.settings import ConfigError

# Planning ---------------------------------------------------------------------------------------


def test_plan_has_every_core_with_every_seed(tmp_path: Path) -> None:
    runs = plan(make_config(), ["lstm", "gru"], range(3), tmp_path)
    assert [(r.config.core, r.config.seed, r.folder.name) for r in runs] == [
        (core, seed, f"{core}-seed{seed}") for core in ("lstm", "gru") for seed in range(3)
    ]
    assert [r.name for r in runs[:2]] == ["lstm seed 0", "lstm seed 1"]
    assert list(tmp_path.iterdir()) == []


def test_plan_refuses_a_core_that_cannot_be_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be one of"):
        plan(make_config(), ["lstm", "transformer"], [0], tmp_path)
    config = make_config(core="lstm", hidden_size=18)
    assert len(plan(config, ["lstm"], [0], tmp_path)) == 1
    with pytest.raises(ConfigError, match="multiple of --num-rims 4 for rim_gru"):
        plan(config, ["lstm", "rim_gru"], [0], tmp_path)


def test_plan_refuses_no_core(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no core"):
        plan(make_config(), [], [0], tmp_path)


def test_other_settings_in_an_existing_folder_are_refused(root: Path) -> None:
    before = folder_times(root, "**/*")
    for changes, name in (({"total_steps": 512}, "total_steps"), ({"gamma": 0.5}, "gamma")):
        with pytest.raises(ValueError, match=f"was trained with {name}=") as caught:
            plan(make_config(**changes), CORES, SEEDS, root)
        assert "\n" not in str(caught.value)
    assert folder_times(root, "**/*") == before


# Training ---------------------------------------------------------------------------------------


def test_every_run_is_trained_to_its_budget(
    done: tuple[Path, Comparison, list[Run]],
) -> None:
    root, _, seen = done
    for core in CORES:
        for seed in SEEDS:
            checkpoint = load_checkpoint(root / f"{core}-seed{seed}")
            assert checkpoint.config == make_config(core=core, seed=seed)
            assert 256 <= checkpoint.env_steps < 256 + 8 * 16
    assert {run.name for run in seen} == {f"{core} seed {seed}" for core in CORES for seed in SEEDS}


def results_of(comparison: Comparison) -> dict[str, Any]:
    return {run.name: run.results for run in comparison.finished}


def test_second_time_nothing_is_trained_and_evaluations_are_reused(
    root: Path, comparison: Comparison
) -> None:
    before = folder_times(root, "**/*")
    assert train_missing(plan(make_config(), CORES, SEEDS, root), 2, ignore) == []
    again = compare(root)
    assert folder_times(root, "**/*") == before
    assert results_of(again) == results_of(comparison)


@pytest.mark.long
def test_other_episodes_or_tasks_are_evaluated_anew(root: Path) -> None:
    again = compare(root, episodes=EPISODES + 1)
    assert again.episodes == EPISODES + 1
    assert all(
        evaluation["episodes"] == EPISODES + 1
        for core in CORES
        for tasks in evaluations(root, core)
        for evaluation in tasks.values()
    )
    other = compare(root, episodes=EPISODES + 1, mode="greedy")
    assert other.mode == "greedy"
    assert results_of(other) != results_of(again)


def test_interrupted_run_goes_on(root: Path) -> None:
    folder = root / "none-seed1"
    shutil.rmtree(folder)
    run = Run(variant="none", config=make_config(core="none", seed=1), folder=folder)

    with pytest.raises(KeyboardInterrupt):
        Trainer(run.config, folder).run(interrupt)
    assert not is_trained(run.folder, run.config.total_steps)
    assert load_checkpoint(folder).env_steps > 0
    rows = (folder / PROGRESS_NAME).read_text()
    others = folder_times(root, "*-seed0/checkpoints/*")

    assert train_missing(plan(make_config(), CORES, SEEDS, root), 1, ignore) == []
    assert is_trained(run.folder, run.config.total_steps)
    assert (folder / PROGRESS_NAME).read_text().startswith(rows)
    assert not list(root.glob("*.interrupted-*"))
    assert folder_times(root, "*-seed0/checkpoints/*") == others


def test_failing_run_is_reported_and_the_others_finish(tmp_path: Path) -> None:
    (tmp_path / "none-seed0").touch()  # a file where a folder should be
    runs = plan(make_config(), ["none"], SEEDS, tmp_path)
    (failure,) = train_missing(runs, 1, ignore)
    assert (failure.kind, failure.of) == ("failed", "none seed 0")
    assert "cannot be written" in failure.what
    assert "\n" not in failure.what
    assert [is_trained(run.folder, run.config.total_steps) for run in runs] == [False, True]


def test_killed_run_is_reported_and_the_others_finish(tmp_path: Path) -> None:
    runs = plan(make_config(total_steps=256), ["none"], SEEDS, tmp_path)
    endless = replace(runs[0], config=replace(runs[0].config, total_steps=10**9))

    killed: list[object] = []

    def kill(training: list[Run]) -> None:
        if training[0].row.get("env_steps") and not killed:
            (child,) = multiprocessing.active_children()
            child.kill()
            killed.append(child)

    (failure,) = train_missing([endless, runs[1]], 1, kill)
    what = "training failed: its process was killed (SIGKILL)."
    assert failure == Flag("failed", "none seed 0", what)
    assert is_trained(runs[1].folder, runs[1].config.total_steps)
    # The lock went with the process.
    lock_folder(runs[0].folder).release()


def test_run_another_command_is_writing_is_left_alone(tmp_path: Path) -> None:
    (run,) = plan(make_config(), ["none"], [0], tmp_path)
    trainer = Trainer(run.config, run.folder)
    (run.folder / "notes.txt").touch()
    (failure,) = train_missing([run], 1, ignore)
    assert "in use by process" in failure.what
    assert (run.folder / "notes.txt").is_file()
    with pytest.raises(KeyboardInterrupt):
        trainer.run(interrupt)


def test_settings_without_effect_may_differ(root: Path) -> None:
    assert all(
        is_trained(r.folder, r.config.total_steps)
        for r in plan(make_config(threads=2, checkpoint_every=3), CORES, SEEDS, root)
    )


def test_run_trained_on_another_backend_is_refused(root: Path) -> None:
    folder = root / "none-seed0"
    checkpoint = load_checkpoint(folder)
    others: dict[BackendName, BackendName] = {"envpool": "gymnasium", "gymnasium": "envpool"}
    other = others[checkpoint.backend]
    save_checkpoint(folder, replace(checkpoint, backend=other))
    with pytest.raises(ValueError, match=f"trained with environments='{other}'") as caught:
        plan(make_config(), CORES, SEEDS, root)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


# Judging ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', "null", "\x00"])
def test_unreadable_evaluation_is_none(root: Path, comparison: Comparison, content: str) -> None:
    (root / "none-seed0" / EVALUATION_NAME).write_text(content)
    if content == "{":  # the others only have to be told from a cache
        assert results_of(compare(root)) == results_of(comparison)
    else:
        run = plan(make_config(), ["none"], [0], root)[0]
        assert cached_results(run, TASKS, EPISODES, "sample") is None


def test_evaluations_of_other_tasks_are_kept(root: Path) -> None:
    run = plan(make_config(), ["none"], [0], root)[0]
    other = Task(id="MiniGrid-Empty-6x6-v0")
    evaluate_run(run, (other,), EPISODES, "sample")
    before = folder_times(root, "**/*.json")
    for tasks in ((other,), TASKS, (*TASKS, other)):
        assert cached_results(run, tuple(tasks), EPISODES, "sample") is not None
    evaluate_run(run, (*TASKS, other), EPISODES, "sample")
    assert folder_times(root, "**/*.json") == before


def test_plan_refuses_tasks_that_cannot_be_made(tmp_path: Path) -> None:
    task = Task(id=TASKS[0].id, gym_kwargs={"sise": 9}, envpool_kwargs={"sise": 9})
    with pytest.raises(ValueError, match="cannot be made with its arguments"):
        plan(make_config(), ["none"], [0], tmp_path, tasks=[task])
    assert list(tmp_path.iterdir()) == []


def test_a_task_made_otherwise_is_evaluated_anew(root: Path) -> None:
    """A suite of a user's own may change what makes a task and keep its id."""
    run = plan(make_config(), ["none"], [0], root)[0]
    task = replace(TASKS[0], gym_kwargs={"max_steps": 3}, envpool_kwargs={"max_episode_steps": 3})
    assert cached_results(run, (TASKS[0],), EPISODES, "sample") is not None
    assert cached_results(run, (task,), EPISODES, "sample") is None
    evaluate_run(run, (task,), EPISODES, "sample")
    results = cached_results(run, (task,), EPISODES, "sample")
    assert results is not None
    assert results[task.id]["mean_length"]["mean"] <= 3


def test_run_under_evaluation_by_another_command_is_left_alone(root: Path) -> None:
    run = plan(make_config(), ["none"], [0], root)[0]
    lock = lock_folder(run.folder)
    before = folder_times(root, "**/*.json")
    with pytest.raises(ValueError, match="in use by process"):
        evaluate_run(run, TASKS, EPISODES + 1, "sample")
    lock.release()
    evaluate_run(run, TASKS, EPISODES, "sample")  # done before
    assert folder_times(root, "**/*.json") == before
    lock_folder(run.folder).release()


# Cores of one size ------------------------------------------------------------------------------


def test_matched_cores_have_as_many_parameters_as_the_first(tmp_path: Path) -> None:
    base = make_config(hidden_size=64)
    runs = plan(base, ["rim_lstm", "lstm", "gru", "none"], [0, 3], tmp_path, match_params=True)
    assert [run.config.seed for run in runs] == [0, 3] * 4
    first = core_parameters(runs[0].config)
    assert runs[0].config.hidden_size == 64
    for run in runs[:6]:
        assert core_parameters(run.config) == pytest.approx(first, rel=0.02)
    assert runs[2].config.hidden_size != 64
    assert {run.config.hidden_size for run in runs[6:]} == {64}
    unmatched = plan(base, ["rim_lstm", "lstm"], [0], tmp_path)
    assert {run.config.hidden_size for run in unmatched} == {64}


def test_nothing_can_be_matched_to_no_memory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recurrent parameters"):
        plan(make_config(), ["none", "lstm"], [0], tmp_path, match_params=True)


def test_folder_with_another_size_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="was trained with hidden_size=16, now asked for"):
        plan(make_config(hidden_size=64), ["lstm", "rim_gru"], SEEDS, root, match_params=True)


def test_core_from_elsewhere_has_its_folder(tmp_path: Path) -> None:
    (run,) = plan(make_config(), ["torch.nn:RNN"], [0], tmp_path)
    assert run.folder.name == "torch.nn.RNN-seed0"
    with pytest.raises(ValueError, match="Linear"):  # before any training
        plan(make_config(), ["torch.nn:Linear"], [0], tmp_path)


# Reporting --------------------------------------------------------------------------------------


def test_cells_are_means_over_the_evaluations(root: Path, comparison: Comparison) -> None:
    assert comparison.variants == tuple(CORES)
    assert comparison.seeds == tuple(SEEDS)
    for core in CORES:
        for task in TASKS:
            results = [tasks[task.id] for tasks in evaluations(root, core)]
            assert [r["episodes"] for r in results] == [EPISODES] * 2
            assert [r["seed"] for r in results] == SEEDS
            success = [r["success_rate"]["mean"] for r in results]
            returns = [r["mean_return"]["mean"] for r in results]
            of_success, of_return = Row(task, "success_rate"), Row(task, "mean_return")
            assert comparison.values(core, of_success) == success
            assert comparison.values(core, of_return) == returns
            assert comparison.estimate(core, of_success) == success_over_seeds(success, EPISODES)
            wanted = mean_over_seeds(returns, bounds=(0, 1))
            assert comparison.estimate(core, of_return) == pytest.approx(wanted, nan_ok=True)
            lengths = [r["mean_length"]["mean"] for r in results]
            length = comparison.estimate(core, Row(task, "mean_length"))
            assert length is not None
            assert length.mean == pytest.approx(sum(lengths) / 2)


def test_parameters_and_speed_are_those_of_the_runs(root: Path, comparison: Comparison) -> None:
    for core in CORES:
        policy = load_checkpoint(root / f"{core}-seed0").make_policy()
        assert comparison.cost(core) == (
            16,
            count_parameters(policy.core),
            count_parameters(policy),
            *multiply_adds(policy),
        )
        speeds = [
            speed
            for seed in SEEDS
            for speed in read_progress(root / f"{core}-seed{seed}")["env_steps_per_second"]
        ]
        speed = comparison.env_steps_per_second(core)
        assert speed in speeds
        assert sum(s < speed for s in speeds) <= len(speeds) / 2 >= sum(s > speed for s in speeds)


def table(markdown: str, heading: str) -> dict[str, list[str]]:
    """Rows of the table under a heading: first cell -> the others."""
    (section,) = [part for part in markdown.split("\n## ") if part.startswith(heading)]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    assert len({len(row) for i, row in enumerate(rows) if i != 1}) == 1
    return {row[0].removesuffix(" (trained)"): row[1:] for row in rows}


def test_markdown_and_json_agree_with_the_evaluations(root: Path, comparison: Comparison) -> None:
    markdown = (root / "comparison.md").read_text()
    plain = json.loads((root / "comparison.json").read_text())
    assert markdown == to_markdown(comparison)
    assert plain == to_dict(comparison)
    assert plain["episodes_per_seed"] == EPISODES
    assert plain["seeds"] == SEEDS
    assert (plain["jobs"], plain["threads"]) == (2, 1)
    assert plain["training_backends"] == list(comparison.training_backends)
    assert "1 thread per run, 2 jobs: measured while up to 2 runs shared the machine" in markdown

    success, returns = table(markdown, "Success rate"), table(markdown, "Return")
    lengths = table(markdown, "Steps per episode")
    assert success["task"] == CORES
    for column, core in enumerate(CORES):
        for task in TASKS:
            results = [tasks[task.id] for tasks in evaluations(root, core)]
            of_json = plain["cores"][core]["tasks"][task.id]
            for key, shown in (("success_rate", success), ("mean_return", returns)):
                mean = sum(r[key]["mean"] for r in results) / 2
                assert of_json[key]["mean"] == pytest.approx(mean)
                numbers = [float(x) for x in re.findall(r"-?[\d.]+", shown[task.name][column])]
                wanted = [of_json[key][name] for name in ("mean", "low", "high")]
                wanted = [number for number in wanted if number is not None]
                assert numbers == pytest.approx(wanted, abs=0.0051)  # two digits are shown
            mean = sum(r["mean_length"]["mean"] for r in results) / 2
            assert float(lengths[task.name][column]) == pytest.approx(mean, abs=0.51)
            rates = [[r["success_rate"]["mean"]] for r in results]
            of_json = plain["cores"][core]["tasks"][task.id]["success_iqm"]
            assert of_json["iqm"] == pytest.approx(interquartile_mean(rates).mean)
    assert f"{TASKS[0].name} (trained)" in markdown
    assert f"{TASKS[1].name} (trained)" not in markdown


def test_one_seed_has_no_interval_and_says_so(root: Path, tmp_path: Path) -> None:
    runs = plan(make_config(), ["none"], [0], root)
    comparison = judge(
        runs, SUITE, TASKS[:1], episodes=EPISODES, mode="sample", jobs=1, on_progress=ignore
    )
    rate = comparison.estimate("none", Row(TASKS[0], "success_rate"))
    assert rate is not None
    assert math.isnan(rate.low)
    written = write_report(comparison, tmp_path)
    assert all(path.stat().st_size > 100 for path in written)
    plain = json.loads(written[1].read_text(), parse_constant=refuse_constant)
    assert plain["cores"]["none"]["tasks"][TASKS[0].id]["success_rate"]["low"] is None
    markdown = written[0].read_text()
    assert "one seed, so no interval" in markdown
    assert "[" not in table(markdown, "Success rate")[TASKS[0].name][0]


def refuse_constant(name: str) -> Callable[[], None]:
    raise AssertionError(f"{name} is not JSON")
