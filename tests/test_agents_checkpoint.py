"""Checkpoints of agents: what goes in comes out, and what cannot be used is told in one line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.config import PPOConfig
from agents.learning.checkpoint import (
    Checkpoint,
    agent_store,
    is_trained,
    load_checkpoint,
    save_checkpoint,
)
from agents.model.policy import RecurrentActorCritic
from lab.disk.store import FORMER_NAME
from layer_cases import former


@pytest.fixture
def checkpoint() -> Checkpoint:
    config = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="rim_gru", hidden_size=8, k=2, seed=3)
    torch.manual_seed(0)
    policy = RecurrentActorCritic(config, 7, read_mission=True)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.125)
    sum(p.square().sum() for p in policy.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return Checkpoint(
        config=config,
        num_actions=7,
        read_mission=True,
        backend="gymnasium",
        env_steps=1234,
        updates=5,
        policy=policy.state_dict(),
        optimizer=optimizer.state_dict(),
        training={"seconds": 0.1 + 0.2, "random": {"torch": torch.get_rng_state()}},
        score=0.1,
    )


def assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second) or isinstance(first, dict)
    if isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def test_round_trip(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path, checkpoint)
    loaded = load_checkpoint(tmp_path)
    for field in fields(Checkpoint):
        assert_same(getattr(loaded, field.name), getattr(checkpoint, field.name))


def test_policy_comes_back_ready_to_act(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path, checkpoint)
    policy = load_checkpoint(tmp_path).make_policy()
    assert not policy.training
    assert policy.encoder.mission
    assert policy.actor.out_features == 7
    assert_same(dict(policy.state_dict()), dict(checkpoint.policy))


def test_weights_by_the_names_of_former_versions_are_read(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    before = former(checkpoint.policy)
    assert "core.module.cells.0.communication.gate_bias" in before
    save_checkpoint(tmp_path, replace(checkpoint, policy=before))
    policy = load_checkpoint(tmp_path).make_policy()
    assert_same(dict(policy.state_dict()), dict(checkpoint.policy))


def test_optimizer_state_fits_a_new_optimizer(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path, checkpoint)
    loaded = load_checkpoint(tmp_path)
    optimizer = torch.optim.Adam(loaded.make_policy().parameters())
    optimizer.load_state_dict(loaded.optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert len(optimizer.state) == len(checkpoint.optimizer["state"]) > 0


def test_best_checkpoint_is_that_of_the_highest_return(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    for updates, score in ((1, None), (2, 0.7), (3, 0.2), (4, 0.7), (5, None)):
        save_checkpoint(tmp_path, replace(checkpoint, updates=updates, score=score))
    assert load_checkpoint(tmp_path).updates == 5
    assert load_checkpoint(tmp_path, "best").updates == 2
    assert load_checkpoint(tmp_path, 4).updates == 4


def test_run_is_trained_when_its_steps_are_made(tmp_path: Path, checkpoint: Checkpoint) -> None:
    assert not is_trained(tmp_path, 1)
    save_checkpoint(tmp_path, checkpoint)
    assert is_trained(tmp_path, 1234)
    assert not is_trained(tmp_path, 1235)


# What cannot be used ----------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusal(tmp_path / "file")


def test_folder_without_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "holds no checkpoints" in refusal(tmp_path)


def test_file_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    torch.save({"format_version": 2, "policy": {}}, tmp_path / FORMER_NAME)
    assert "format before 3" in refusal(tmp_path)


def save_changed(folder: Path, checkpoint: Checkpoint, **changes: Any) -> None:
    """Save with entries changed, and those that are None left out, as no program of ours would."""
    save_checkpoint(folder, checkpoint)
    store = agent_store(folder)
    stored = store.load()

    def changed(content: Mapping[str, Any]) -> dict[str, Any]:
        mine = {k: v for k, v in changes.items() if k in content or k == "surprise"}
        return {k: v for k, v in {**content, **mine}.items() if v is not None}

    store.save(stored.number, changed(stored.tensors), changed(stored.about))


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": None},
        {"policy": 3},
        {"config": None},
        {"env_steps": None},
        {"env_steps": "many"},
        {"backend": "atari"},
        {"surprise": 1},
        {"config": 3},
        {"config": {"env": "MiniGrid-Empty-5x5-v0", "unheard_of": 1}},
        {"config": {"env": "MiniGrid-Empty-5x5-v0", "num_rims": 0}},
        {"config": {"env": "MiniGrid-Nowhere-v0"}},
    ],
    ids=str,
)
def test_incomplete_checkpoint_is_refused(
    tmp_path: Path, checkpoint: Checkpoint, changes: dict[str, Any]
) -> None:
    save_changed(tmp_path, checkpoint, **changes)
    refusal(tmp_path)


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, checkpoint: Checkpoint, change: str
) -> None:
    weights = dict(checkpoint.policy)
    if change == "missing":
        del weights["critic.bias"]
    else:
        weights["critic.bias"] = torch.zeros(3)
    save_checkpoint(tmp_path, replace(checkpoint, policy=weights))
    assert "do not fit" in refusal(tmp_path)


# Cores by import path ---------------------------------------------------------------------------

MINE = """from pathlib import Path
from torch import nn

class Mine(nn.GRU):
    pass

def called(*sizes):
    Path("called").touch()

class NoModule:
    def __init__(self, *sizes):
        Path("called").touch()
"""


@pytest.fixture
def own_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with an agent of a class in a module of the current folder."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "checkpoint_core", raising=False)
    (tmp_path / "here").mkdir()
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("checkpoint_core.py").write_text(MINE)
    config = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="checkpoint_core:Mine", hidden_size=8)
    policy = RecurrentActorCritic(config, 7, read_mission=False)
    with torch.no_grad():
        for start in policy.core.starts:
            start.normal_()
    (tmp_path / "run").mkdir()
    checkpoint = Checkpoint(
        config=config,
        num_actions=7,
        read_mission=False,
        backend="gymnasium",
        env_steps=1,
        updates=1,
        policy=policy.state_dict(),
        optimizer={},
        training={},
    )
    save_checkpoint(tmp_path / "run", checkpoint)
    return tmp_path / "run"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "checkpoint_core")


def test_agent_with_a_core_by_path_comes_back(
    own_core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    loaded = load_checkpoint(own_core)
    policy = loaded.make_policy()
    assert type(policy.core.module).__module__ == "checkpoint_core"
    assert_same(dict(policy.state_dict()), dict(loaded.policy))


def test_missing_module_of_a_core_is_told_by_name(
    own_core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    monkeypatch.chdir("../away")
    message = refusal(own_core)
    assert "'checkpoint_core:Mine'" in message
    assert "No module named 'checkpoint_core'" in message
    assert "Make module 'checkpoint_core' importable" in message


def test_other_weights_of_a_core_by_path_are_refused(
    own_core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    Path("checkpoint_core.py").write_text(MINE.replace("nn.GRU", "nn.LSTM"))
    assert "do not fit" in refusal(own_core)


@pytest.mark.parametrize("name", ["called", "NoModule"])
def test_a_path_in_a_checkpoint_calls_nothing_but_modules(own_core: Path, name: str) -> None:
    store = agent_store(own_core)
    stored = store.load()
    config = {**stored.about["config"], "core": f"checkpoint_core:{name}"}
    store.save(1, stored.tensors, {**stored.about, "config": config})
    assert "torch.nn.Module" in refusal(own_core)
    assert not Path("called").exists()
