"""Sweeps: what is tried, what survives an interruption, what is reported."""

from __future__ import annotations

import itertools
import json
import math
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from selection import short

pytest.importorskip("optuna", reason="a sweep needs optuna, which is not installed")

from agents.config import PPOConfig
from agents.learning.checkpoint import agent_store, is_trained
from agents.sweep import definition, report, study
from agents.sweep.definition import Sweep
from agents.sweep.run import Measured, last_part, run_once
from agents.sweep.study import Study, Trial
from command_line import Rims, assert_one_line
from lab.disk.lock import lock_folder
from lab.running.processes import Outcome, run_all
from sweep_cases import make_sweep

# What is tried ------------------------------------------------------------------------------------

Play = Callable[..., Any]


def value_of(config: PPOConfig) -> float:
    return round(min(1.0, 50 * config.learning_rate + 0.01 * config.seed), 6)


def inline(
    function: Play,
    calls: Iterable[tuple[Any, ...]],
    jobs: int,
    on_wait: Play,
    on_end: Play,
) -> None:
    """As run_all, without processes: ``jobs`` calls are asked for before the first one ends."""
    waiting = enumerate(calls)
    running: list[tuple[int, tuple[Any, ...]]] = []
    while True:
        running += list(itertools.islice(waiting, jobs - len(running)))
        if not running:
            return
        place, arguments = running.pop(0)
        try:
            outcome = Outcome(result=function(*arguments))
        except RuntimeError as error:
            outcome = Outcome(error=str(error))
        on_end(place, outcome)
        on_wait(1)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are not trained but valued by their settings; the names of their folders."""
    names: list[str] = []

    def train(config: PPOConfig, folder: Path, *_: Any) -> Measured:
        names.append(folder.name)
        return Measured(value_of(config), 1.0)

    monkeypatch.setattr(study, "run_all", inline)
    monkeypatch.setattr(study, "run_once", train)
    return names


def ignore(*_: Any) -> None:
    pass


def run(sweep: Sweep, folder: Path, jobs: int = 1) -> list[Trial]:
    one = Study(sweep, folder)
    one.run(jobs, ignore, ignore)
    return one.trials()


def test_trials_are_within_bounds_and_sorted_by_value(tmp_path: Path, trained: list[str]) -> None:
    trials = run(make_sweep(sweep={"trials": 12, "seeds": 2}), tmp_path)
    assert trained == [f"trial-{n:03d}-seed{seed}" for n in range(12) for seed in range(2)]
    assert sorted(t.number for t in trials) == list(range(12))
    assert [t.value for t in trials] == sorted((t.value for t in trials), reverse=True)
    for trial in trials:
        assert 1e-4 <= trial.settings["learning_rate"] <= 1e-2
        assert trial.settings["epochs"] in (1, 2, 3, 4)
        assert trial.settings["core"] in ("none", "gru")
        assert trial.value == pytest.approx(sum(trial.per_seed.values()) / 2)
        assert list(trial.per_seed) == [0, 1]
        assert trial.seconds == 2.0
    assert len({t.settings["learning_rate"] for t in trials}) == 12


def settings_of(trials: list[Trial]) -> list[dict[str, Any]]:
    return [t.settings for t in sorted(trials)]


@pytest.mark.parametrize(("sampler", "count"), short([("tpe", 13), ("random", 4)], 1))
def test_suggestions_repeat_and_follow_the_seed(
    tmp_path: Path, trained: list[str], sampler: str, count: int
) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        sweep = make_sweep(sweep={"trials": count, "sampler": sampler, "sampler_seed": seed})
        found.append(settings_of(run(sweep, tmp_path / name)))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_grid_is_every_combination_once(tmp_path: Path, trained: list[str]) -> None:
    sweep = make_sweep(
        sweep={"sampler": "grid", "trials": None}, search={"learning_rate": {"choices": [0.1, 0.2]}}
    )
    trials = run(sweep, tmp_path, jobs=3)
    assert len(trials) == sweep.trials == 2 * 4 * 2
    assert {tuple(t.settings.values()) for t in trials} == set(
        itertools.product([0.1, 0.2], [1, 2, 3, 4], ["none", "gru"])
    )


def test_failed_trial_is_named_and_does_not_stop_the_sweep(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: PPOConfig, folder: Path, *_: Any) -> Measured:
        trained.append(folder.name)
        if folder.name == "trial-001-seed0":
            raise RuntimeError("the loss is no longer finite")
        return Measured(0.5, 1.0)

    monkeypatch.setattr(study, "run_once", train)
    sweep = make_sweep(sweep={"seeds": 2})
    trials = run(sweep, tmp_path)
    assert "trial-001-seed1" not in trained  # nothing could save that trial
    assert [t.state for t in trials] == ["complete"] * 4 + ["failed"]
    assert trials[-1].number == 1
    assert trials[-1].error == "trial-001-seed0: the loss is no longer finite"
    assert run(sweep, tmp_path) == trials  # neither repeated nor forgotten
    assert trained.count("trial-001-seed0") == 1
    text = report.to_markdown(sweep, trials, tmp_path)
    assert "4 trials, 1 more failed" in text
    assert "- trial 1 (" in text.split("## Failed")[1]
    assert "the loss is no longer finite" in text


@pytest.mark.parametrize("stop_after", short([0, 1, 3], 1))
def test_interrupted_sweep_goes_on_as_if_nothing_had_been(
    tmp_path: Path, trained: list[str], stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    sweep = make_sweep(sweep={"trials": 12, "seeds": 2})
    whole = run(sweep, tmp_path / "whole")
    trained.clear()
    play: Any = vars(study)["run_once"]

    def stop(*arguments: Any) -> Any:
        if len(trained) == stop_after:
            raise KeyboardInterrupt
        return play(*arguments)

    monkeypatch.setattr(study, "run_once", stop)
    with pytest.raises(KeyboardInterrupt):
        run(sweep, tmp_path / "cut")
    monkeypatch.setattr(study, "run_once", play)
    complete = stop_after // 2
    assert len(Study(sweep, tmp_path / "cut").trials()) == complete
    done = trained[: 2 * complete]
    trained.clear()
    assert run(sweep, tmp_path / "cut") == whole
    assert not set(done) & set(trained)  # complete trials are not repeated
    assert len(trained) == 24 - len(done)


def test_interruption_between_two_suggestions(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    suggest = study._suggest_value

    def stop(trial: Any, searched: Any) -> Any:
        if searched.name == "epochs":
            raise KeyboardInterrupt
        return suggest(trial, searched)

    monkeypatch.setattr(study, "_suggest_value", stop)
    with pytest.raises(KeyboardInterrupt):
        run(make_sweep(), tmp_path)
    monkeypatch.setattr(study, "_suggest_value", suggest)
    trials = run(make_sweep(), tmp_path)
    assert sorted(t.number for t in trials) == [0, 1, 2, 3, 4]
    assert all(len(t.settings) == 3 for t in trials)


def test_more_trials_add_to_a_sweep_and_less_keep_it(tmp_path: Path, trained: list[str]) -> None:
    first = run(make_sweep(sweep={"trials": 3}), tmp_path)
    again = run(make_sweep(sweep={"trials": 5}), tmp_path)
    assert sorted(again)[:3] == sorted(first)
    assert len(again) == 5
    assert run(make_sweep(sweep={"trials": 2}), tmp_path) == again
    assert len(trained) == 5


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"search": {"epochs": {"low": 1, "high": 5}}}, "epochs"),
        ({"search": {"epochs": None}}, "epochs"),
        ({"search": {"gamma": {"choices": [0.9]}}}, "gamma"),
        ({"settings": {"total_steps": 512}}, "total_steps = 256, now asked for 512"),
        ({"sweep": {"seeds": 2}}, "seeds = 1, now asked for 2"),
    ],
)
def test_another_sweep_in_the_folder_is_refused(
    tmp_path: Path, trained: list[str], changes: dict[str, Any], hint: str
) -> None:
    run(make_sweep(sweep={"trials": 1}), tmp_path)
    with pytest.raises(ValueError, match=f"holds a sweep with .*{hint}"):
        Study(make_sweep(**changes), tmp_path)
    Study(make_sweep(settings={"threads": 2}), tmp_path)  # changes nothing


def test_sweep_does_not_go_on_with_another_backend(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definition, "resolve_backend", lambda *_: "envpool")
    run(make_sweep(), tmp_path)
    monkeypatch.setattr(definition, "resolve_backend", lambda *_: "gymnasium")
    with pytest.raises(ValueError, match=r"backends = .*\"envpool\".* now asked .*\"gymnasium\""):
        Study(make_sweep(), tmp_path)


@pytest.mark.parametrize("searched", [True, False])
def test_core_that_breaks_the_contract_is_refused_before_any_work(
    tmp_path: Path, rims: Rims, searched: bool
) -> None:
    """Also one that is not the first choice."""
    line = (
        'core = {choices = ["none", "torch.nn:Linear"]}' if searched else "epochs = {low=1,high=2}"
    )
    fixed = "" if searched else 'core = "torch.nn:Linear"'
    Path("sweep.toml").write_text(
        f'[sweep]\ntrials = 1\n[settings]\nsuite = "empty"\n{fixed}\n[search]\n{line}\n'
    )
    result = rims("sweep", "--config", "sweep.toml", "--out", "out")
    assert "core 'torch.nn:Linear'" in assert_one_line(result)
    assert not Path("out").exists()


def test_run_of_a_killed_sweep_that_is_still_trained_is_refused(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> Measured:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_once", killed)
    with pytest.raises(KeyboardInterrupt):
        run(make_sweep(), tmp_path)
    (tmp_path / "trial-000-seed0").mkdir()
    lock = lock_folder(tmp_path / "trial-000-seed0")
    with pytest.raises(ValueError, match=r"trial-000-seed0.* is in use by process"):
        Study(make_sweep(), tmp_path)
    lock.release()
    Study(make_sweep(), tmp_path)


def test_damaged_study_is_one_line(tmp_path: Path) -> None:
    (tmp_path / study.STUDY_NAME).write_text("no database, certainly not one of optuna" * 40)
    with pytest.raises(ValueError, match=r"cannot be read as a study") as caught:
        Study(make_sweep(), tmp_path)
    assert "\n" not in str(caught.value)


def test_unusual_path(tmp_path: Path, trained: list[str]) -> None:
    folder = tmp_path / "a?b=c #%20"
    folder.mkdir()
    run(make_sweep(), folder)
    assert (folder / study.STUDY_NAME).is_file()


# One run ------------------------------------------------------------------------------------------


def test_run_is_a_run_folder_and_is_not_trained_twice(tmp_path: Path) -> None:
    sweep = make_sweep(sweep={"objective": "unseen_success_rate", "episodes": 2})
    config = sweep.config({"learning_rate": 1e-3, "epochs": 1, "core": "none"}, seed=1)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "progress.csv").write_text("left by an interruption")
    unseen = sweep.unseen[:1]
    first = run_once(config, folder, unseen, episodes=2)
    assert first.value in (0.0, 0.5, 1.0)
    assert is_trained(folder, config.total_steps)
    assert PPOConfig.read_some(folder / "config.toml")["seed"] == 1
    kept = tmp_path / "run.interrupted-1" / "progress.csv"
    assert kept.read_text() == "left by an interruption"
    checkpoint = agent_store(folder).load().path
    written = checkpoint.stat().st_mtime_ns
    assert run_once(config, folder, unseen, episodes=2).value == first.value
    assert checkpoint.stat().st_mtime_ns == written


def test_success_of_training_is_that_of_its_last_fifth(tmp_path: Path) -> None:
    rows = [(10, "nan"), (80, "0.1"), (81, "nan"), (90, "0.5"), (100, "0.7")]
    lines = ["env_steps,success_rate", *(f"{step},{rate}" for step, rate in rows)]
    path = tmp_path / "progress.csv"
    path.write_text("\n".join(lines) + "\n")
    assert last_part(tmp_path) == pytest.approx(0.6)
    path.write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(ValueError, match="give more total_steps"):
        last_part(tmp_path)


def test_run_all_asks_for_the_next_call_when_one_has_ended() -> None:
    seen: list[str] = []

    def calls() -> Iterable[tuple[int]]:
        for n in (1, 2):
            seen.append(f"asked {n}")
            yield (n,)

    outcomes = run_all(
        math.sqrt, calls(), 1, on_end=lambda n, o: seen.append(f"ended {n} {o.result}")
    )
    assert seen == ["asked 1", "ended 0 1.0", "asked 2", f"ended 1 {math.sqrt(2)}"]
    assert [o.result for o in outcomes] == [1.0, math.sqrt(2)]


# The report ---------------------------------------------------------------------------------------


def test_report(tmp_path: Path, trained: list[str]) -> None:
    sweep = make_sweep(sweep={"seeds": 2})
    trials = run(sweep, tmp_path)
    best = trials[0]
    for path in report.write_tables(sweep, trials, tmp_path):
        assert path.is_file()
    settings = tomllib.loads((tmp_path / "best.toml").read_text())
    config = PPOConfig(**PPOConfig.read_some(tmp_path / "best.toml"))
    assert settings["learning_rate"] == best.settings["learning_rate"]
    assert config.seed == 2  # no trial's
    text = (tmp_path / "sweep.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [int(row.split("|")[1]) for row in rows] == [t.number for t in trials]
    assert f"{best.value:.3f}" in rows[0]
    assert f"    rims train --config {tmp_path / 'best.toml'} --seed 2\n" in text
    plain = json.loads((tmp_path / "sweep.json").read_text())
    assert plain["best"] == best.number
    assert [t["value"] for t in plain["trials"]] == [t.value for t in trials]


def test_without_success_there_is_no_best(tmp_path: Path) -> None:
    sweep = make_sweep()
    failed = Trial(0, "failed", {"epochs": 2}, math.nan, {}, 0.0, "no.")
    written = report.write_tables(sweep, [failed], tmp_path)
    assert [path.name for path in written] == ["sweep.md", "sweep.json"]
    plain = json.loads((tmp_path / "sweep.json").read_text())
    assert plain["best"] is None
    assert plain["trials"][0]["value"] is None
    assert report.write_figure(sweep, [failed], tmp_path).stat().st_size > 0


def test_figure_has_a_panel_for_every_search_and_all_trials(
    tmp_path: Path, trained: list[str]
) -> None:
    sweep = make_sweep()
    trials = run(sweep, tmp_path)
    figure = report.plot(sweep, trials)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_xlabel() for ax in panels] == ["learning rate", "epochs", "core"]
    assert panels[0].get_xscale() == "log"
    assert [label.get_text() for label in panels[2].get_xticklabels()] == ["none", "gru"]
    for ax in panels:
        points = [tuple(p) for dots in ax.collections for p in dots.get_offsets().tolist()]  # type: ignore[union-attr]
        assert sorted(y for _, y in points) == sorted(t.value for t in trials)
