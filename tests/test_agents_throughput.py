"""``rims bench agents``: who runs when, what counts, what is written and refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from agents.config import PPOConfig
from agents.throughput import run
from agents.throughput.ours import Round, measure_ours
from agents.throughput.report import to_markdown
from agents.throughput.run import SB3, SB3_ADAPTED, SB3_NAMES, Contest, measure, ratios, spread
from command_line import Rims, assert_one_line, tree
from envs import SUITES, make_vector_env
from lab.cores import CORE_NAMES
from lab.running.processes import Outcome

CONFIG = PPOConfig(
    env="MiniGrid-Empty-Random-5x5-v0",
    num_envs=4,
    rollout_steps_per_env=8,
    minibatches=2,
    epochs=1,
    hidden_size=8,
    encoder_size=8,
)
AGENTS = ("bench", "agents", "--out", "out", "--threads", "1")
TINY = (
    *("--num-envs", "4", "--rollout-steps-per-env", "8", "--minibatches", "2", "--epochs", "1"),
    *("--hidden-size", "8", "--updates", "1"),
)
SPEEDS = {"lstm": 300.0, "none": 400.0, SB3: 100.0, SB3_ADAPTED: 200.0}

needs_sb3 = pytest.mark.skipif(
    importlib.util.find_spec("sb3_contrib") is None, reason="sb3-contrib is not installed"
)


# Rounds -------------------------------------------------------------------------------------------


@pytest.fixture
def measured_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No process is started and nothing is trained; who would have been, in that order."""
    names: list[str] = []

    def pretend(
        function: object, calls: Any, jobs: int, on_end: Callable[[int, Outcome], None]
    ) -> None:
        assert function is run.measure_once
        assert jobs == 1  # or they would slow each other down
        for place, (name, _, _updates) in enumerate(calls):
            # Every round is slower than the one before.
            seconds = 1.0 + names.count(name)
            names.append(name)
            steps = int(SPEEDS.get(name, 50.0))
            on_end(place, Outcome(result=Round(steps, seconds / 4, seconds * 3 / 4)))

    monkeypatch.setattr(run, "run_all", pretend)
    return names


def test_contenders_alternate(measured_names: list[str]) -> None:
    contest = Contest(config=CONFIG, contenders=("lstm", "none"), updates=3, rounds=2)
    assert [updates for *_, updates in contest.calls()] == [3] * 4
    seen: list[tuple[str, int]] = []
    measured = measure(contest, lambda name, _, so_far: seen.append((name, len(so_far[name]))))
    assert measured_names == ["lstm", "none", "lstm", "none"]
    assert seen == [("lstm", 1), ("none", 1), ("lstm", 2), ("none", 2)]
    assert [r.per_second for r in measured["none"]] == [400.0, 200.0]


def test_ratios_are_taken_in_every_round() -> None:
    slow_down = [Round(100, 1.0, 0.0), Round(100, 2.0, 0.0), Round(100, 2.5, 2.5)]
    twice = [Round(100, 0.5, 0.0), Round(100, 0.5, 0.5)]  # not yet in the third round
    assert ratios({SB3: slow_down, "lstm": twice}, "lstm") == [2.0, 2.0]
    assert ratios({"lstm": twice}, "lstm") == []
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)


def test_failing_contender_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, on_end: Callable[[int, Outcome], None]) -> None:
        on_end(1, Outcome(error="out of memory."))

    monkeypatch.setattr(run, "run_all", fail)
    contest = Contest(config=CONFIG, contenders=("lstm", SB3), updates=1, rounds=1)
    with pytest.raises(run.MeasuringError, match=f"{SB3} could not be measured: out of memory"):
        measure(contest, lambda *_: None)


# What is measured ---------------------------------------------------------------------------------


@pytest.mark.parametrize("core", ["none", "rim_gru"])
def test_ours_counts_transitions_of_the_updates_after_the_first(core: str) -> None:
    one = run.measure_once(core, CONFIG, 2)
    assert 0 < one.env_steps <= 2 * 4 * 8
    assert one.env_steps > 4 * 8  # of both
    assert min(one.collecting, one.updating) > 0
    assert measure_ours(CONFIG, 2).env_steps <= 2 * 4 * 8


@needs_sb3
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SB3_NAMES)
@pytest.mark.long
def test_sb3_counts_and_times_as_ours(name: str) -> None:
    one = run.measure_once(name, replace(CONFIG, rollout_steps_per_env=64), 2)
    if name != SB3_ADAPTED:  # resets take no step of their own there
        assert one.env_steps == 2 * 4 * 64
    else:  # episodes end after 100 steps at most
        assert 4 * 64 < one.env_steps < 2 * 4 * 64
    assert min(one.collecting, one.updating) > 0


@needs_sb3
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sb3_has_the_settings_of_ours() -> None:
    from agents.throughput.sb3 import AdaptedEnv, make_model

    with make_vector_env(CONFIG.task, 4, 0) as env:
        model = make_model(CONFIG, AdaptedEnv(env, 8))
    assert model.n_steps * model.n_envs == 4 * 8
    assert model.batch_size == 2 * 8  # environments of a minibatch by steps
    assert (model.n_epochs, model.gamma, model.learning_rate) == (1, 0.99, 1e-3)
    policy: Any = model.policy
    assert policy.lstm_actor.hidden_size == 8
    assert policy.lstm_critic is None
    assert policy.shared_lstm
    assert len(policy.mlp_extractor.policy_net) == 0


@needs_sb3
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_own_policy_of_sb3_is_as_it_comes() -> None:
    from agents.throughput.sb3 import AdaptedEnv, make_model

    with make_vector_env(CONFIG.task, 4, 0) as env:
        model = make_model(CONFIG, AdaptedEnv(env, 8), own_policy=True)
    policy: Any = model.policy
    assert policy.lstm_actor.hidden_size == policy.lstm_critic.hidden_size == 256
    assert len(policy.mlp_extractor.policy_net) == 4  # two layers with their activations
    assert model.batch_size == 2 * 8


@needs_sb3
def test_adapted_environments_count_steps_that_only_reset() -> None:
    from agents.throughput.sb3 import AdaptedEnv

    with make_vector_env("MiniGrid-Empty-Random-5x5-v0", 3, 0) as env:
        adapted = AdaptedEnv(env, rollout_steps=50)
        adapted.reset()
        ended, last = 0, np.zeros(3, dtype=bool)
        for _ in range(250):  # episodes end after 100 at most
            _, rewards, done, infos = adapted.step(np.random.default_rng(ended).integers(3, size=3))
            assert not rewards[last].any()
            assert [bool(info) for info in infos] == done.tolist()
            ended, last = ended + int(done.sum()), done
    assert sum(adapted.resets) == ended - int(last.sum()) >= 3
    assert len(adapted.resets) == 5


# The command --------------------------------------------------------------------------------------


def test_writes_table_and_rounds(rims: Rims, measured_names: list[str]) -> None:
    result = rims(*AGENTS, "--cores", "lstm,none", "--rounds", "3", "--num-envs", "16", "--sb3")
    assert result.code == 0, result.err
    assert measured_names == ["lstm", "none", *SB3_NAMES] * 3
    assert result.out == Path("out", "agents.md").read_text()
    assert "| lstm | 150 [125, 225] | 3.00 [3.00, 3.00] | 0.100 | 0.300 |" in result.out
    assert f"| {SB3} | 50 [42, 75] | 1 | " in result.out
    assert "1 thread of torch" in result.out
    assert "minibatches of 128" in result.out
    assert "MiniGrid-DoorKey-5x5-v0" in result.out
    plain = json.loads(Path("out", "agents.json").read_text())
    assert plain["machine"]["command"].startswith("rims bench agents --out out")
    assert {"processor", "commit", "date", "threads", "versions"} < set(plain["machine"])
    assert {"torch", "Python"} < set(plain["machine"]["versions"])
    assert plain["config"]["num_envs"] == 16
    contender = plain["contenders"]["none"]
    assert contender["env_steps_per_second"]["median"] == 200.0
    assert contender["ratio"]["median"] == 4.0
    assert [r["env_steps"] for r in contender["rounds"]] == [400] * 3
    assert plain["contenders"][SB3]["ratio"] is None
    assert result.err.splitlines()[0] == "[1/3] lstm: 300 steps/s, 1.0 s"
    assert len(result.err.splitlines()) == 15


def test_without_sb3_there_is_a_notice_and_no_ratio(
    rims: Rims, measured_names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *rest: None if n == "sb3_contrib" else find(n, *rest)
    )
    result = rims(*AGENTS, "--cores", "lstm", "--rounds", "1")
    assert result.err.splitlines()[0].startswith("sb3-contrib is not installed")
    assert "ratio" not in result.out
    assert set(measured_names) == {"lstm"}
    asked_for = rims(*AGENTS, "--cores", "lstm", "--rounds", "1", "--no-sb3")
    assert "sb3" not in asked_for.err


def test_interruption_keeps_what_was_measured(
    rims: Rims, measured_names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend: Any = vars(run)["run_all"]

    def interrupt(function: Any, calls: list[Any], jobs: int, on_end: Any) -> None:
        pretend(function, calls[:3], jobs, on_end=on_end)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_all", interrupt)
    result = rims(*AGENTS, "--cores", "lstm,none", "--no-sb3")
    assert result.code == 130
    assert result.err.splitlines()[-1] == "Interrupted; what was measured is in out."
    plain = json.loads(Path("out", "agents.json").read_text())
    assert [len(c["rounds"]) for c in plain["contenders"].values()] == [2, 1]
    assert "1 to 2 rounds" in Path("out", "agents.md").read_text()


def test_quick_and_defaults(
    rims: Rims, measured_names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Contest] = []
    calls = Contest.calls

    def take(contest: Contest) -> Any:
        taken.append(contest)
        return calls(contest)

    monkeypatch.setattr(Contest, "calls", take)
    assert rims("bench", "agents", "--quick", "--no-sb3").code == 0
    assert rims("bench", "agents", "--quick", "--no-sb3", "--rounds", "1").code == 0
    assert rims("bench", "agents", "--no-sb3", "--env", "MiniGrid-Empty-5x5-v0").code == 0
    assert rims("bench", "agents", "--no-sb3", "--suite", "memory").code == 0
    quick, typed, full, of_suite = taken
    assert of_suite.config.gae_lambda == SUITES["memory"].preset["gae_lambda"]
    assert of_suite.config.actions == "all"  # as sb3-contrib has
    assert (quick.rounds, quick.updates, quick.config.num_envs) == (2, 2, 8)
    assert (typed.rounds, typed.updates) == (1, 2)
    assert (full.rounds, full.config.num_envs, full.config.task.name) == (5, 64, "Empty-5x5")
    assert full.contenders == CORE_NAMES
    assert quick.config.suite == "doorkey"


@pytest.mark.long
def test_real_processes(rims: Rims) -> None:
    result = rims(*AGENTS, *TINY, "--cores", "none", "--no-sb3", "--rounds", "1")
    assert result.code == 0, result.err
    plain = json.loads(Path("out", "agents.json").read_text())
    assert plain["contenders"]["none"]["rounds"][0]["env_steps"] > 0


MISTAKES = {
    "core": (("--cores", "rnn"), "rnn"),
    "rounds": (("--rounds", "0"), "--rounds"),
    "updates": (("--updates", "0"), "--updates"),
    "threads": (("--threads", "0"), "--threads"),
    "environment": (("--env", "MiniGrid-Emtpy-5x5-v0"), "MiniGrid-Empty-5x5-v0"),
    "suite": (("--suite", "dorkey"), "doorkey"),
    "suite and environment": (("--suite", "empty", "--env", "MiniGrid-Empty-5x5-v0"), "--suite"),
    "hidden size": (("--hidden-size", "30"), "--hidden-size"),
    "minibatches": (("--minibatches", "7"), "--minibatches"),
    "out is a file": (("--out", "../file"), "file"),
    "out below a file": (("--out", "../file/out"), "cannot be written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_and_nothing_is_written(tmp_path: Path, rims: Rims, name: str) -> None:
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    arguments, hint = MISTAKES[name]
    assert hint in assert_one_line(rims(*AGENTS, *arguments))
    assert tree(tmp_path) == before


def test_help_and_an_empty_report() -> None:
    text = CliRunner().invoke(cli.rims, ["bench", "agents", "--help"]).output
    for option in ("--updates", "--no-sb3", "--hidden-size", "bench-agents"):
        assert option in "".join(text.split()).replace("bench--agents", "bench-agents")
    assert "agents" in CliRunner().invoke(cli.rims, ["bench"]).output
    contest = Contest(config=CONFIG, contenders=("lstm", SB3), updates=1, rounds=1)
    about = dict.fromkeys(("processor", "cores", "system", "commit", "date", "command"), "x")
    first = {"lstm": [Round(10, 1.0, 1.0)], SB3: []}
    text = to_markdown(contest, first, {**about, "versions": {}})
    assert "| lstm | 5 [5, 5] | 1.000 | 1.000 |" in text
