"""Runs that begin with the agent of another: its weights and nothing else, or one clear line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.config import PPOConfig
from agents.judging.compare import plan
from agents.learning.checkpoint import load_checkpoint
from agents.learning.initial_weights import initial_weights, source_folder
from agents.learning.resuming import resume
from agents.learning.train import Trainer
from command_line import TOY, TRAIN, Rims, assert_one_line, tree
from lab.settings import ConfigError

LITTLE = PPOConfig(
    env="MiniGrid-Empty-5x5-v0",
    core="gru",
    seed=3,
    hidden_size=16,
    num_envs=4,
    minibatches=2,
    rollout_steps_per_env=8,
    total_steps=64,
    backend="gymnasium",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the run ``gru-seed3``."""
    root = tmp_path_factory.mktemp("runs")
    Trainer(LITTLE, root / "gru-seed3").run()
    return root


def next_run(root: Path, **changes: object) -> PPOConfig:
    """On another task, with steps so small that weights stay what they were."""
    config = replace(
        LITTLE, env="MiniGrid-Empty-6x6-v0", learning_rate=1e-30, init_from=str(root / "gru-seed3")
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def assert_weights_of(folder: Path, source: Path) -> None:
    ours, theirs = load_checkpoint(folder).policy, load_checkpoint(source).policy
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-12)


def test_a_run_begins_with_the_weights_of_another(root: Path, tmp_path: Path) -> None:
    Trainer(next_run(root), tmp_path / "run").run()
    assert_weights_of(tmp_path / "run", root / "gru-seed3")
    Trainer(next_run(root, init_from=""), tmp_path / "new").run()
    with pytest.raises(AssertionError):
        assert_weights_of(tmp_path / "new", root / "gru-seed3")


def test_settings_that_neither_run_uses_may_differ(root: Path, tmp_path: Path) -> None:
    Trainer(next_run(root, num_rims=2, k=1), tmp_path / "run").run()
    assert_weights_of(tmp_path / "run", root / "gru-seed3")


def test_core_and_seed_stand_for_those_of_the_run(root: Path, tmp_path: Path) -> None:
    config = next_run(root, init_from=str(root / "{core}-seed{seed}"))
    assert source_folder(config) == root / "gru-seed3"
    assert len(plan(config, ["gru"], [3], tmp_path)) == 1
    with pytest.raises(ConfigError, match=r"names no agent to begin with: .*gru-seed4"):
        plan(config, ["gru"], [3, 4], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_without_the_run_it_began_with(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "gru-seed3", tmp_path / "source")
    config = next_run(root, init_from=str(tmp_path / "source"))
    Trainer(config, tmp_path / "run").run()
    shutil.rmtree(tmp_path / "source")
    resume(tmp_path / "run", total_steps=128)[0].run()
    assert load_checkpoint(tmp_path / "run").env_steps >= 128
    assert_weights_of(tmp_path / "run", root / "gru-seed3")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("core", "lstm"),
        ("hidden_size", 12),
        ("encoder_size", 8),
        ("encoder", "cnn"),
        ("direction", True),
        ("learned_initial_state", False),
        ("mission", "on"),
        ("actions", "left,forward"),
    ],
)
def test_another_architecture_is_refused(root: Path, field: str, value: object) -> None:
    with pytest.raises(ConfigError) as refusal:
        initial_weights(next_run(root, **{field: value}))
    assert refusal.value.field == field
    assert "gru-seed3" in refusal.value.rule


def test_no_run_to_begin_with_is_one_line_before_any_work(rims: Rims, tmp_path: Path) -> None:
    call = (*TRAIN, *TOY, "--run-dir", "run", "--init-from", "nowhere")
    said = assert_one_line(rims(*call))
    assert "--init-from" in said
    assert "nowhere" in said
    assert tree(tmp_path / "here") == {}
