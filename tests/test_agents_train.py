"""Training at toy size: what is written, that it repeats, how it stops; and one run that learns."""

from __future__ import annotations

import csv
import itertools
import math
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from agents.config import PPOConfig
from agents.judging.evaluate import evaluate
from agents.learning import session
from agents.learning import train as training
from agents.learning.checkpoint import load_checkpoint
from agents.learning.ppo import UPDATE_METRICS, update
from agents.learning.recent_episodes import EPISODE_WINDOW, RecentEpisodes
from agents.learning.rollout import Episode
from agents.learning.train import Trainer
from agents.model.policy import RecurrentActorCritic
from lab.cores import CoreName
from lab.disk.folder import (
    CONFIG_NAME,
    PROGRESS_NAME,
    claim_run_folder,
    read_progress,
)
from lab.disk.lock import HOLDER_NAME, LOCK_NAME, lock_folder
from lab.disk.store import has_checkpoint
from lab.running.devices import usable_device
from lab.running.guards import TrainingError
from selection import short
from tolerances import RATIO_ERROR

NAMES = get_args(CoreName)
TIME_COLUMNS = {"seconds", "env_steps_per_second"}


def make_config(**changes: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "env": "MiniGrid-Empty-5x5-v0",
        "core": "gru",
        "num_envs": 8,
        "rollout_steps_per_env": 16,
        "minibatches": 2,
        "epochs": 2,
        "total_steps": 512,
        "hidden_size": 16,
        "num_rims": 4,
        "k": 2,
        **changes,
    }
    return PPOConfig(**settings)


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / PROGRESS_NAME).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("core", NAMES)
def test_run_writes_everything(tmp_path: Path, core: str) -> None:
    config = make_config(core=core)
    seen: list[Mapping[str, float]] = []
    checkpoint = Trainer(config, tmp_path / "run").run(seen.append)
    folder = tmp_path / "run"

    assert PPOConfig(**PPOConfig.read_some(folder / CONFIG_NAME)) == config

    rows = read_rows(folder)
    assert {
        "env_steps",
        "env_steps_per_second",
        "episode_return_mean",
        "success_rate",
        "learning_rate",
        *UPDATE_METRICS,
    } <= set(rows[0])
    assert [int(row["update"]) for row in rows] == list(range(1, len(rows) + 1))
    steps = [int(row["env_steps"]) for row in rows]
    assert steps[0] <= 128
    assert all(0 < b - a <= 128 for a, b in itertools.pairwise(steps))
    assert steps[-2] < 512 <= steps[-1]
    assert all(0 <= float(row["ratio_error"]) < RATIO_ERROR for row in rows)
    assert float(rows[0]["entropy"]) == pytest.approx(math.log(7), abs=0.05)  # almost uniform
    assert [row["env_steps"] for row in seen] == steps

    loaded = load_checkpoint(folder)
    assert (loaded.env_steps, loaded.updates) == (steps[-1], len(rows))
    assert loaded.config == config
    weights = checkpoint.make_policy().state_dict()
    assert all(torch.equal(weights[n], w) for n, w in loaded.make_policy().state_dict().items())
    assert all(bool(weight.isfinite().all()) for weight in weights.values())


def test_events_hold_the_rows_of_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Trainer(make_config(), folder).run()
    events = EventAccumulator(str(folder))
    events.Reload()
    for name, column in read_progress(folder).items():
        finite = [value for value in column if math.isfinite(value)]
        logged = [event.value for event in events.Scalars(name)] if finite else []
        # Events are single precision, the table has six digits.
        assert logged == pytest.approx(finite, rel=1e-5), name
    steps = [event.step for event in events.Scalars("entropy")]
    assert steps == read_progress(folder)["env_steps"]


def snapshot(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    rows = read_rows(folder)
    kept = [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in rows]
    return load_checkpoint(folder).policy, kept


@pytest.mark.parametrize("core", ["lstm", "rim_lstm"])
def test_same_seed_is_the_same_run_and_another_is_not(tmp_path: Path, core: str) -> None:
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        Trainer(make_config(core=core, seed=seed), tmp_path / name).run()
        torch.rand(3)  # what happens between runs does not matter
    (weights, rows), (weights_2, rows_2), (weights_3, rows_3) = (
        snapshot(tmp_path / name) for name in ("first", "second", "other")
    )
    assert rows == rows_2
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
    assert rows != rows_3
    assert not all(torch.equal(weights[name], weights_3[name]) for name in weights)


def test_learning_rate_falls_to_zero(tmp_path: Path) -> None:
    config = make_config(total_steps=2048, learning_rate=0.01, epochs=1)
    Trainer(config, tmp_path / "run").run()
    columns = read_progress(tmp_path / "run")
    before = [0.0, *columns["env_steps"][:-1]]
    expected = [0.01 * (1 - steps / 2048) for steps in before]
    assert columns["learning_rate"] == pytest.approx(expected, rel=1e-5)
    assert 0 <= columns["learning_rate"][-1] <= 0.01 * 128 / 2048


def test_learning_rate_stays_without_annealing(tmp_path: Path) -> None:
    Trainer(make_config(anneal_learning_rate=False), tmp_path / "run").run()
    assert set(read_progress(tmp_path / "run")["learning_rate"]) == {1e-3}


@pytest.mark.parametrize(
    ("env", "mission", "reads"),
    [
        ("MiniGrid-Empty-5x5-v0", "auto", False),
        ("MiniGrid-Empty-5x5-v0", "on", True),
        ("BabyAI-GoToObj-v0", "auto", True),
        ("BabyAI-GoToObj-v0", "off", False),
    ],
)
def test_mission_is_read_where_it_varies_or_as_asked(
    tmp_path: Path, env: str, mission: str, reads: bool
) -> None:
    config = make_config(env=env, mission=mission, total_steps=1)
    checkpoint = Trainer(config, tmp_path / "run").run()
    assert checkpoint.read_mission is reads
    assert load_checkpoint(tmp_path / "run").make_policy().encoder.mission is reads


# Stopping ---------------------------------------------------------------------------------------


def test_interruption_saves_the_agent_and_goes_on_raising(tmp_path: Path) -> None:
    trainer = Trainer(make_config(total_steps=10_000), tmp_path / "run")

    def interrupt(row: Mapping[str, float]) -> None:
        if row["update"] == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.run(interrupt)
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.updates == 3
    assert checkpoint.env_steps == int(read_rows(tmp_path / "run")[-1]["env_steps"])
    current = trainer.policy.state_dict()
    assert all(torch.equal(current[n], w) for n, w in checkpoint.make_policy().state_dict().items())


def test_checkpoints_are_written_on_the_way(tmp_path: Path) -> None:
    config = make_config(checkpoint_every=2)
    found: dict[int, int | None] = {}

    def look(row: Mapping[str, float]) -> None:
        exists = has_checkpoint(tmp_path / "run")
        found[int(row["update"])] = load_checkpoint(tmp_path / "run").updates if exists else None

    Trainer(config, tmp_path / "run").run(look)
    assert {update: found[update] for update in (1, 2, 3, 4)} == {1: None, 2: 2, 3: 2, 4: 4}


def test_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty") as caught:
        Trainer(make_config(), folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert (folder / "notes.txt").read_text() == "mine"


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    claim_run_folder(tmp_path).release()
    assert {path.name for path in tmp_path.iterdir()} <= {LOCK_NAME, HOLDER_NAME}
    claim_run_folder(tmp_path).release()  # a lock left behind counts for nothing


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="cannot be written") as caught:
            Trainer(make_config(), folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "", "cpu cpu"])
def test_unusable_device_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be used here") as caught:
        Trainer(make_config(device=name), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_device_without_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be used here"):
        usable_device("meta")


def test_missing_backend_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    config = make_config(backend="envpool")
    with pytest.raises(ValueError, match="on EnvPool") as caught:
        Trainer(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# Numbers ----------------------------------------------------------------------------------------


def test_recent_episodes_by_hand() -> None:
    recent = RecentEpisodes(2)
    recent.add([Episode(0, 0.5, 10, True)])
    recent.add([Episode(1, 0.0, 20, False)])
    assert recent.statistics() == {
        "episode_return_mean": 0.25,
        "episode_length_mean": 15.0,
        "success_rate": 0.5,
    }


def test_recent_episodes_wait_for_every_environment() -> None:
    """What finishes first is short, and short episodes are successes."""
    recent = RecentEpisodes(2)
    assert all(math.isnan(value) for value in recent.statistics().values())
    recent.add([Episode(0, 1.0, 2, True)] * 5)
    assert all(math.isnan(value) for value in recent.statistics().values())


def test_recent_episodes_forget_the_oldest_of_each_environment() -> None:
    recent = RecentEpisodes(4)
    for env in range(4):
        recent.add([Episode(env, 0.0, 9, False)] * 40 + [Episode(env, 1.0, 5, True)] * 25)
    assert EPISODE_WINDOW == 100  # 25 of each
    assert recent.statistics()["success_rate"] == 1.0
    recent.add([Episode(2, 0.0, 9, False)] * 5)
    assert recent.statistics()["success_rate"] == 0.95


def test_recent_episodes_are_the_same_number_of_each_environment() -> None:
    recent = RecentEpisodes(2)
    recent.add([Episode(0, 1.0, 2, True)] * 40)
    recent.add([Episode(1, 0.0, 80, False)])
    assert recent.statistics()["success_rate"] == 0.5


def test_progress_of_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=PROGRESS_NAME):
        read_progress(tmp_path)


@pytest.mark.parametrize(
    "core",
    short(["rim_lstm", "lstm", "none"], 2),
)
def test_core_learns_an_easy_task(tmp_path: Path, core: CoreName) -> None:
    config = PPOConfig(
        env="MiniGrid-Empty-Random-5x5-v0",
        core=core,
        total_steps=20_000,
        num_envs=32,
        rollout_steps_per_env=32,
        hidden_size=32,
        learning_rate=3e-3,
        backend="gymnasium",  # the same levels wherever the test runs
    )
    trained = Trainer(config, tmp_path / "run").run().make_policy()
    torch.manual_seed(0)
    untrained = RecurrentActorCritic(config, 7, read_mission=False)
    with_training, without = (
        evaluate(policy, config.task, episodes=100, seed=1, backend="gymnasium").mean_return.mean
        for policy in (trained, untrained)
    )
    # Acting at random solves about half of these levels within the step limit.
    assert with_training >= 0.9
    assert without <= 0.7


# What goes wrong on the way ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["value_loss", "actor.weight"])
def test_number_not_finite_stops_training_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    trainer = Trainer(make_config(checkpoint_every=2, total_steps=10_000), tmp_path / "run")

    def broken(*arguments: Any) -> dict[str, float]:
        metrics = update(*arguments)
        if trainer.progress.updates == 2 and what in metrics:
            metrics[what] = math.nan
        elif trainer.progress.updates == 2:
            with torch.no_grad():
                trainer.policy.actor.weight[0, 0] = math.inf
        return {**metrics, "explained_variance": math.nan}  # which is no fault

    monkeypatch.setattr(training, "update", broken)
    with pytest.raises(TrainingError, match=f"update 3: .*{what}") as caught:
        trainer.run()
    assert "\n" not in str(caught.value)
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.updates == 2
    assert all(bool(weight.isfinite().all()) for weight in checkpoint.policy.values())


def test_probabilities_not_finite_keep_the_last_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(make_config(checkpoint_every=1, total_steps=10_000), tmp_path / "run")

    def break_policy(row: Mapping[str, float]) -> None:
        with torch.no_grad():
            trainer.policy.actor.bias[0] = math.nan

    with pytest.raises(TrainingError, match="update 2: policy_loss"):
        trainer.run(break_policy)
    assert bool(load_checkpoint(tmp_path / "run").policy["actor.bias"].isfinite().all())


def test_interruption_does_not_save_a_broken_agent(tmp_path: Path) -> None:
    trainer = Trainer(make_config(checkpoint_every=2, total_steps=10_000), tmp_path / "run")

    def interrupt(row: Mapping[str, float]) -> None:
        with torch.no_grad():
            if row["update"] == 3:
                trainer.policy.actor.bias[0] = math.nan
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingError, match="parameter actor"):
        trainer.run(interrupt)
    assert load_checkpoint(tmp_path / "run").updates == 2
    assert bool(load_checkpoint(tmp_path / "run").policy["actor.bias"].isfinite().all())


@pytest.mark.parametrize("existed", [False, True])
def test_interruption_before_there_is_an_agent_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    if existed:
        folder.mkdir()
    monkeypatch.setattr(session, "make_vector_env", interrupt)
    trainer = Trainer(make_config(), folder)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert not trainer.saved
    assert [str(path) for path in tmp_path.rglob("*")] == ([str(folder)] if existed else [])


def test_folder_is_locked_until_the_run_has_ended(tmp_path: Path) -> None:
    trainer = Trainer(make_config(), tmp_path / "run")
    for claim in (
        lambda: Trainer(make_config(), tmp_path / "run"),
        lambda: lock_folder(tmp_path / "run"),
    ):
        with pytest.raises(ValueError, match="is in use by process") as caught:
            claim()
        assert str(tmp_path / "run") in str(caught.value)
        assert "\n" not in str(caught.value)
    trainer.run()
    lock_folder(tmp_path / "run").release()
    with pytest.raises(ValueError, match="not empty"):
        Trainer(make_config(), tmp_path / "run")
