"""``rims bench scaling``: what is measured and what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.config import PPOConfig
from agents.model.policy import RecurrentActorCritic, count_parameters
from agents.throughput import scaling
from agents.throughput.scaling import (
    Measured,
    Plan,
    Results,
    Row,
    ScalingError,
    bytes_per_update,
    measure,
    to_json,
    to_markdown,
)
from command_line import Rims, assert_one_line, tree

CONFIG = PPOConfig(
    env="MiniGrid-Empty-5x5-v0", num_envs=8, rollout_steps_per_env=16, minibatches=2, epochs=3
)
MACHINE = {
    "command": "rims bench scaling",
    "processor": "some processor",
    "cores": 2,
    "system": "Linux",
    "versions": {"torch": "2"},
    "commit": "abc",
    "date": "today",
}


def test_each_number_of_processes_has_the_environments_of_one_and_as_many_for_each() -> None:
    plan = Plan(config=CONFIG, processes=(1, 2, 4), updates=5, rounds=2)
    assert plan.rows == (Row(1, 8), Row(2, 8), Row(2, 16), Row(4, 8), Row(4, 32))


def test_exchanged_bytes_are_those_of_all_gradients() -> None:
    policy = RecurrentActorCritic(CONFIG, 7, read_mission=False)
    parameters = count_parameters(policy)
    gradient = sum(p.numel() * p.element_size() for p in policy.parameters())
    assert bytes_per_update(CONFIG, parameters) == gradient * 2 * 3


def test_report_gives_medians_and_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {Row(1, 8): [100, 300, 200], Row(2, 8): [150, 250, 260], Row(2, 16): [400, 380, 300]}
    left = {row: list(values) for row, values in rates.items()}

    def run(plan: Plan, row: Row) -> Measured:
        rate = left[row].pop(0)
        return Measured(rate, row.num_envs * 16 / rate)

    monkeypatch.setattr(scaling, "_run", run)
    plan = Plan(config=CONFIG, processes=(1, 2), updates=5, rounds=3)
    seen: list[Row] = []
    results = measure(plan, lambda row, *_: seen.append(row))
    assert seen == list(plan.rows) * 3
    lines = to_markdown(plan, results, MACHINE, 1000).splitlines()
    assert lines[-3:] == [
        "| 1 | 8 | 200 | 1.00 | 640 | 0.0 |",
        "| 2 | 8 | 250 | 1.25 | 512 | 0.0 |",
        "| 2 | 16 | 380 | 1.90 | 674 | 0.0 |",
    ]
    assert "| 2 | 8 | 250 | 1.25 | 512 | 2.4 |" in to_markdown(plan, results, MACHINE, 100_000)
    content: dict[str, Any] = json.loads(to_json(plan, results, MACHINE, 1000))
    assert [run["steps_per_second"] for run in content["rows"][1]["runs"]] == [150, 250, 260]
    first: Results = {Row(2, 8): results[Row(2, 8)]}
    assert "| 2 | 8 | 250 | - | 512 |" in to_markdown(plan, first, MACHINE, 1000)


def test_run_that_fails_is_one_line() -> None:
    config = PPOConfig(env="MiniGrid-Empty-5x5-v0", num_envs=6, minibatches=2, device="cuda:99")
    plan = Plan(config=config, processes=(1,), updates=1, rounds=1)
    with pytest.raises(ScalingError, match="1 processes could not be measured: --device 'cuda:99'"):
        measure(plan, lambda *_: None)


TOY = (
    *("bench", "scaling", "--core", "none", "--env", "MiniGrid-Empty-5x5-v0", "--num-envs", "4"),
    *("--rollout-steps-per-env", "8", "--minibatches", "2", "--epochs", "1", "--updates", "2"),
    *("--processes", "1,2", "--rounds", "1", "--out", "out"),
)


@pytest.mark.long
def test_bench_runs_torchrun(tmp_path: Path, rims: Rims) -> None:
    result = rims(*TOY)
    assert result.code == 0, result.err
    written = (tmp_path / "here" / "out" / "scaling.md").read_text()
    assert result.out == written
    assert [line.split(" | ")[:2] for line in written.splitlines()[-3:]] == [
        ["| 1", "4"],
        ["| 2", "4"],
        ["| 2", "8"],
    ]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--processes", "0"), "--processes"),
        (("--processes", "1,x"), "--processes"),
        (("--processes", "3"), "--num-envs must be a multiple of 3 processes"),
        (("--core", "lsmt"), "did you mean 'lstm'"),
        (("--rounds", "0"), "--rounds"),
    ],
    ids=str,
)
def test_mistakes(tmp_path: Path, rims: Rims, arguments: tuple[str, ...], hint: str) -> None:
    before = tree(tmp_path)
    assert hint in assert_one_line(rims(*TOY, *arguments))
    assert tree(tmp_path) == before
