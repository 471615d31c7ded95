"""Checkpoints: what goes in comes out, a crash harms nothing, and damage is told in one line."""

from __future__ import annotations

import pickle
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.checkpoint import (
    CHECKPOINT_NAME,
    FORMAT_VERSION,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from agents.config import PPOConfig
from agents.policy import RecurrentActorCritic


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
    assert save_checkpoint(tmp_path, checkpoint) == tmp_path / CHECKPOINT_NAME
    loaded = load_checkpoint(tmp_path)
    for field in fields(Checkpoint):
        assert_same(getattr(loaded, field.name), getattr(checkpoint, field.name))
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_NAME]


def test_policy_comes_back_ready_to_act(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path, checkpoint)
    policy = load_checkpoint(tmp_path).make_policy()
    assert not policy.training
    assert policy.encoder.mission
    assert policy.actor.out_features == 7
    assert_same(dict(policy.state_dict()), dict(checkpoint.policy))


def test_optimizer_state_fits_a_new_optimizer(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path, checkpoint)
    loaded = load_checkpoint(tmp_path)
    optimizer = torch.optim.Adam(loaded.make_policy().parameters())
    optimizer.load_state_dict(loaded.optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert len(optimizer.state) == len(checkpoint.optimizer["state"]) > 0


def test_saving_again_replaces(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path, checkpoint)
    save_checkpoint(tmp_path, replace(checkpoint, env_steps=99))
    assert load_checkpoint(tmp_path).env_steps == 99


@pytest.mark.parametrize("when", ["before", "halfway"])
def test_crash_while_saving_leaves_the_previous_file(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = save_checkpoint(tmp_path, checkpoint)
    before = path.read_bytes()

    def fail(content: object, file: Any) -> None:
        if when == "halfway":
            file.write(before[: len(before) // 2])
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, replace(checkpoint, env_steps=99))
    assert path.read_bytes() == before
    assert load_checkpoint(tmp_path).env_steps == 1234
    save_checkpoint(tmp_path, replace(checkpoint, env_steps=99))  # what is left is no hindrance
    assert load_checkpoint(tmp_path).env_steps == 99


# Damage -----------------------------------------------------------------------------------------


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
    assert CHECKPOINT_NAME in refusal(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path: Path, checkpoint: Checkpoint, share: float) -> None:
    path = save_checkpoint(tmp_path, checkpoint)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert str(path) in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"hello, this is no checkpoint\n", id="text"),
        pytest.param(bytes(range(256)) * 64, id="garbage"),
        pytest.param(b"PK\x03\x04" + b"\0" * 100, id="zip"),
        pytest.param(pickle.dumps({"format_version": 1}), id="pickle"),
    ],
)
def test_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(content)
    assert str(path) in refusal(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"weights": 1}, torch.zeros(3)], ids=type)
def test_torch_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / CHECKPOINT_NAME
    torch.save(content, path)
    assert str(path) in refusal(tmp_path)


def rewrite(folder: Path, **changes: Any) -> None:
    content = torch.load(folder / CHECKPOINT_NAME, weights_only=True)
    content.update(changes)
    torch.save({k: v for k, v in content.items() if v is not None}, folder / CHECKPOINT_NAME)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "new"])
def test_other_format_is_refused_naming_both(
    tmp_path: Path, checkpoint: Checkpoint, version: object
) -> None:
    save_checkpoint(tmp_path, checkpoint)
    rewrite(tmp_path, format_version=version)
    message = refusal(tmp_path)
    assert f"format {version};" in message
    assert f"reads {FORMAT_VERSION}" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": None},
        {"config": None},
        {"env_steps": None},
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
    save_checkpoint(tmp_path, checkpoint)
    rewrite(tmp_path, **changes)
    assert str(tmp_path / CHECKPOINT_NAME) in refusal(tmp_path)


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
    with pytest.raises(ValueError, match=r".") as caught:
        load_checkpoint(tmp_path).make_policy()
    assert "\n" not in str(caught.value)


class Touch:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "pickle", "inside"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, checkpoint: Checkpoint, how: str) -> None:
    target = tmp_path / "touched"
    path = save_checkpoint(tmp_path, checkpoint)
    if how == "pickle":
        path.write_bytes(pickle.dumps(Touch(target)))
    elif how == "torch":
        torch.save(Touch(target), path)
    else:
        content = torch.load(path, weights_only=True)
        torch.save({**content, "updates": Touch(target)}, path)
    refusal(tmp_path)
    assert not target.exists()


def test_code_above_would_run_in_a_careless_reader(tmp_path: Path) -> None:
    """The control of the test above."""
    target = tmp_path / "touched"
    pickle.loads(pickle.dumps(Touch(target)))
    assert target.exists()


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
    content = torch.load(own_core / CHECKPOINT_NAME, weights_only=True)
    rewrite(own_core, config={**content["config"], "core": f"checkpoint_core:{name}"})
    assert "torch.nn.Module" in refusal(own_core)
    assert not Path("called").exists()
