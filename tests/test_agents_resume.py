"""A run that was interrupted or killed ends with the very numbers of one that was not."""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from agents.config import PPOConfig
from agents.learning import resuming, session
from agents.learning.checkpoint import agent_store, load_checkpoint, save_checkpoint
from agents.learning.resuming import read_run, resume, trainer_for
from agents.learning.train import Trainer
from command_line import TOY, Rims, assert_one_line, tree
from envs import level_seeds
from lab.disk.folder import CONFIG_NAME, PROGRESS_NAME, claim_existing_run, read_progress
from lab.disk.store import SET_ASIDE, has_checkpoint
from lab.running.guards import RunStopped
from lab.running.signals import Stopped
from selection import short

TIME_COLUMNS = ("seconds", "env_steps_per_second")
UPDATES = 12
STEPS = 4 * 16  # of environments, in an update


class Killed(BaseException):
    """Ends a run at once, with nothing tidied up but the lock."""


def make_config(**changes: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "env": "MiniGrid-DoorKey-5x5-v0",
        "core": "rim_lstm",
        "num_envs": 4,
        "rollout_steps_per_env": 16,
        "minibatches": 2,
        "epochs": 2,
        "total_steps": UPDATES * STEPS,
        "hidden_size": 32,
        "k": 2,
        "restart_envs_every": 5,
        "checkpoint_every": 4,
        "backend": "gymnasium",
        **changes,
    }
    return PPOConfig(**settings)


def digest(value: Any) -> str:
    """Of all numbers in it, bit by bit."""
    found = hashlib.sha256()

    def take(part: Any) -> None:
        if isinstance(part, dict):
            for name in part:
                found.update(str(name).encode())
                take(part[name])
        elif isinstance(part, list | tuple):
            for item in part:
                take(item)
        elif isinstance(part, torch.Tensor):
            found.update(part.contiguous().numpy().tobytes())
        else:
            found.update(repr(part).encode())

    take(value)
    return found.hexdigest()


def left(folder: Path) -> dict[str, str]:
    """All that a run left, but for time."""
    checkpoint = load_checkpoint(folder)
    with (folder / PROGRESS_NAME).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "weights": digest(checkpoint.policy),
        "optimizer": digest(checkpoint.optimizer),
        "training": digest({**checkpoint.training, "seconds": 0}),
        "counts": digest((checkpoint.env_steps, checkpoint.updates, checkpoint.score)),
        "rows": digest([{k: v for k, v in r.items() if k not in TIME_COLUMNS} for r in rows]),
    }


def end_after(update: int, error: BaseException) -> Callable[[Mapping[str, float]], None]:
    def on_update(row: Mapping[str, float]) -> None:
        if row["update"] == update:
            raise error

    return on_update


def begin(folder: Path, config: PPOConfig, update: int, error: BaseException) -> None:
    with pytest.raises(type(error)):
        Trainer(config, folder).run(end_after(update, error))


def go_on(folder: Path, **changes: Any) -> None:
    trainer, _ = resume(folder, **changes)
    trainer.run()


# The same numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("core", "backend"),
    short(product(["rim_lstm", "lstm", "rim_gru", "gru", "none"], ["gymnasium", "envpool"]), 1),
)
def test_killed_and_resumed_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, core: str, backend: str
) -> None:
    if backend == "envpool":
        pytest.importorskip("envpool")
    config = make_config(core=core, backend=backend)
    Trainer(config, tmp_path / "whole").run()
    expected = left(tmp_path / "whole")
    # After 3 there is no checkpoint yet; from 4, episodes are under way in the first environments;
    # from 8, in the second ones.
    for update in (3, 7, 10):
        folder = tmp_path / str(update)
        begin(folder, config, update, Killed())
        assert has_checkpoint(folder) == (update > 4)
        go_on(folder)
        assert left(folder) == expected, update
    # An episode was under way where it went on.
    whole = load_checkpoint(tmp_path / "whole")
    assert whole.updates > 10
    assert len(whole.training["actions"]) == (whole.updates % 5) * 16


def test_run_that_is_stopped_after_every_update_ends_the_same(tmp_path: Path) -> None:
    config = make_config(core="gru")
    Trainer(config, tmp_path / "whole").run()
    folder = tmp_path / "run"
    config_with_other_checkpoints = replace(config, checkpoint_every=1000)
    begin(folder, config_with_other_checkpoints, 1, Killed())
    stops = 0
    while True:
        trainer, _ = resume(folder)
        try:
            trainer.run(lambda _: signal.raise_signal(signal.SIGTERM))
        except Stopped:
            stops += 1
        else:
            break
    assert stops == load_checkpoint(folder).updates - 1  # the last update is the end anyhow
    assert left(folder) == left(tmp_path / "whole")


def test_seconds_go_on(tmp_path: Path) -> None:
    begin(tmp_path / "run", make_config(core="none"), 9, Killed())
    at_checkpoint = read_progress(tmp_path / "run")["seconds"][7]
    go_on(tmp_path / "run")
    seconds = read_progress(tmp_path / "run")["seconds"]
    assert seconds == sorted(seconds)
    assert at_checkpoint <= seconds[8] <= at_checkpoint + 60


def test_another_seed_gives_other_numbers(tmp_path: Path) -> None:
    """Equality above is not trivial."""
    found = []
    for seed in (0, 1):
        # Long enough for episodes to end, at different steps.
        config = make_config(core="none", seed=seed, num_envs=8, total_steps=2 * UPDATES * STEPS)
        Trainer(config, tmp_path / str(seed)).run()
        found.append(left(tmp_path / str(seed)))
    assert all(found[0][name] != found[1][name] for name in found[0])


@pytest.mark.parametrize(
    "lost", short(["core_state", "random", "actions", "recent_episodes"], 0, 2)
)
def test_each_part_of_what_is_saved_is_needed(tmp_path: Path, lost: str) -> None:
    """A part that is left as it was at the beginning gives other numbers, or is refused."""
    config = make_config(core="gru", env="MiniGrid-Empty-5x5-v0", restart_envs_every=100)
    Trainer(config, tmp_path / "whole").run()
    folder = tmp_path / "run"
    begin(folder, config, 11, Killed())
    saved = load_checkpoint(folder)
    training = dict(saved.training)
    if lost == "random":
        training["random"] = {n: g.clone() for n, g in training["random"].items()}
        training["random"]["actions"] = torch.Generator().manual_seed(99).get_state()
    elif lost == "core_state":
        training["core_state"] = [torch.zeros_like(x) for x in training["core_state"]]
    else:
        training[lost] = training[lost][:0]
    save_checkpoint(folder, replace(saved, training=training))
    if lost == "actions":
        with pytest.raises(RunStopped, match="do not lead where they led"):
            go_on(folder)
    else:
        go_on(folder)
        assert left(folder) != left(tmp_path / "whole")


# Killed by force --------------------------------------------------------------------------------

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(  # so that a process is at work a moment after its start
    ["agents.learning.resuming", "envs.backends.gymnasium_backend", "torch.utils.tensorboard"]
)


def begin_or_go_on(folder: str, config: PPOConfig) -> None:
    trainer_for(config, Path(folder)).run()


@pytest.mark.parametrize("times", short([2, 20], 0))
def test_killed_at_random_moments(tmp_path: Path, times: int) -> None:
    """SIGKILL at any time, also while saving, needs no clean-up; the end is the same."""
    config = make_config(
        core="gru", env="MiniGrid-Empty-5x5-v0", checkpoint_every=1, hidden_size=8,
        num_envs=2, rollout_steps_per_env=8, total_steps=10**7, epochs=1, minibatches=1,
    )  # fmt: skip
    kills, rng = 0, random.Random(0)
    folder = tmp_path / "run"
    updates = []
    while kills < times:
        process = _SERVER.Process(target=begin_or_go_on, args=(str(folder), config))
        process.start()
        wait_for_work(folder)
        time.sleep(rng.uniform(0, 0.25))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        if has_checkpoint(folder):
            agent_store(folder).load()  # whole
            updates.append(load_checkpoint(folder).updates)
    assert updates == sorted(updates)
    assert updates[0] < updates[-1]
    steps = load_checkpoint(folder).env_steps + 50
    go_on(folder, total_steps=steps)
    assert not list(folder.rglob("*.tmp"))
    assert sorted(p.name for p in folder.glob("*.interrupted*")) == []

    # Annealing follows the steps to go, so the whole run is told of them at the same moment.
    whole = tmp_path / "whole"
    begin(whole, config, updates[-1], Killed())
    go_on(whole, total_steps=steps)
    assert left(folder) == left(whole)


def wait_for_work(folder: Path) -> None:
    """Until the process that was started last has made an update."""
    deadline = time.monotonic() + 60
    before = number_of_rows(folder)
    while number_of_rows(folder) <= before:
        before = min(before, number_of_rows(folder))  # rows after the checkpoint are made again
        assert time.monotonic() < deadline
        time.sleep(0.005)


def number_of_rows(folder: Path) -> int:
    path = folder / PROGRESS_NAME
    return path.read_text().count("\n") if path.is_file() else 0


# What is gone on with ---------------------------------------------------------------------------


def test_complete_run_goes_on_for_more_steps(tmp_path: Path) -> None:
    config = make_config(core="gru", anneal_learning_rate=False)
    Trainer(config, tmp_path / "whole").run()
    folder = tmp_path / "run"
    Trainer(replace(config, total_steps=5 * STEPS), folder).run()
    go_on(folder, total_steps=config.total_steps)
    assert left(folder) == left(tmp_path / "whole")
    assert f"total_steps = {config.total_steps}" in (folder / CONFIG_NAME).read_text()
    assert load_checkpoint(folder).config == config


def test_more_steps_are_not_forgotten_by_a_kill(tmp_path: Path) -> None:
    config = make_config(core="none", anneal_learning_rate=False)
    Trainer(config, tmp_path / "whole").run()
    folder = tmp_path / "run"
    Trainer(replace(config, total_steps=5 * STEPS), folder).run()
    trainer, _ = resume(folder, total_steps=config.total_steps, threads=2)
    updates = trainer.progress.updates
    with pytest.raises(Killed):
        trainer.run(end_after(load_checkpoint(folder).updates + 1, Killed()))
    assert read_run(folder).config == replace(config, threads=2)
    assert updates == 0  # nothing is done before it runs
    go_on(folder, threads=1)
    assert left(folder) == left(tmp_path / "whole")


@pytest.mark.parametrize("content", ["nonsense", "3,x\n", "\0"])
def test_damaged_table_is_cut_there(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "run"
    begin(folder, make_config(core="none"), 9, Killed())
    path = folder / PROGRESS_NAME
    lines = path.read_text().splitlines(keepends=True)
    values = lines[3].split(",")
    values[1] = content.strip()
    lines[3] = ",".join(values)
    path.write_text("".join(lines))
    go_on(folder)
    assert read_progress(folder)["update"][:3] == [1, 2, 9]


def test_checkpoint_is_read_when_nobody_writes_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command may save and end while this one waits for the folder."""
    folder = tmp_path / "run"
    config = make_config(core="none")
    begin(folder, config, 5, Killed())

    def late(path: Path) -> FileLock:
        with monkeypatch.context() as patch:
            patch.setattr(resuming, "claim_existing_run", claim_existing_run)
            with pytest.raises(Killed):
                resume(path)[0].run(end_after(9, Killed()))
        return claim_existing_run(path)

    monkeypatch.setattr(resuming, "claim_existing_run", late)
    trainer, _ = resume(folder)
    trainer.run()
    Trainer(config, tmp_path / "whole").run()
    assert left(folder) == left(tmp_path / "whole")


@pytest.mark.parametrize("left_over", ["config.toml.123.tmp", ".writable.9.tmp", ".lock-holder"])
def test_run_that_was_killed_before_it_had_begun_needs_no_clean_up(
    tmp_path: Path, left_over: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / left_over).write_text("half")
    Trainer(make_config(core="none", total_steps=STEPS), folder).run()
    assert not (folder / left_over).exists() or left_over == ".lock-holder"


def test_checkpoint_without_what_training_needs_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, make_config(core="none"), 5, Killed())
    save_checkpoint(folder, replace(load_checkpoint(folder), training={}))
    with pytest.raises(RunStopped, match="not what its training goes on from"):
        go_on(folder)


def test_interruption_changes_nothing_about_the_best_checkpoint(tmp_path: Path) -> None:
    config = make_config(core="none", env="MiniGrid-Empty-5x5-v0", total_steps=30 * STEPS)
    Trainer(config, tmp_path / "whole").run()
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        Trainer(config, folder).run(
            lambda row: signal.raise_signal(signal.SIGINT) if row["update"] == 18 else None
        )
    assert load_checkpoint(folder).score is None
    go_on(folder)
    assert (
        load_checkpoint(folder, "best").updates
        == load_checkpoint(tmp_path / "whole", "best").updates
    )


def test_lost_table_hinders_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, make_config(core="none"), 9, Killed())
    (folder / PROGRESS_NAME).unlink()
    go_on(folder)
    updates = load_checkpoint(folder).updates
    assert read_progress(folder)["update"] == list(range(9, updates + 1))


def test_table_that_was_cut_in_a_row_goes_on(tmp_path: Path) -> None:
    config = make_config(core="none")
    Trainer(config, tmp_path / "whole").run()
    folder = tmp_path / "run"
    begin(folder, config, 9, Killed())
    path = folder / PROGRESS_NAME
    path.write_text(path.read_text()[:-20])
    go_on(folder)
    assert left(folder) == left(tmp_path / "whole")


def test_trainer_for_a_folder_begins_goes_on_or_makes_room(tmp_path: Path) -> None:
    config, folder = make_config(core="none"), tmp_path / "run"
    with pytest.raises(Killed):
        trainer_for(config, folder).run(end_after(5, Killed()))
    trainer_for(replace(config, threads=2), folder).run()  # a setting without effect
    updates = load_checkpoint(folder).updates
    assert read_progress(folder)["update"] == list(range(1, updates + 1))
    assert not list(tmp_path.glob("*.interrupted-*"))
    trainer_for(replace(config, seed=1), folder).run()
    assert load_checkpoint(tmp_path / "run.interrupted-1").config.seed == 0
    assert load_checkpoint(folder).config.seed == 1


# The command ------------------------------------------------------------------------------------

RUN = ("train", "--env", "MiniGrid-Empty-5x5-v0", "--core", "none", *TOY, "--run-dir", "run")


def test_resume_from_the_command_line(tmp_path: Path, rims: Rims) -> None:
    assert rims(*RUN).code == 0
    before = tree(tmp_path)
    result = rims("resume", "run")  # as a launcher does that starts the command again
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith("Notice: the run in 'run' is complete, with ")
    assert "is complete" in assert_one_line(rims("resume", "run", "--total-steps", "64"))
    assert tree(tmp_path) == before
    result = rims("resume", "run", "--total-steps", "300", "--threads", "2")
    assert result.code == 0
    assert "Notice" not in result.err
    folder = tmp_path / "here" / "run"
    assert 300 <= load_checkpoint(folder).env_steps < 300 + 128
    assert load_checkpoint(folder).config.threads == 2
    result = rims("train", *RUN[1:])
    assert "'rims resume run' goes on with it" in assert_one_line(result)


def test_damaged_checkpoint_is_gone_on_without_when_asked(tmp_path: Path, rims: Rims) -> None:
    folder = tmp_path / "here" / "run"
    assert rims(*RUN, "--checkpoint-every", "1", "--total-steps", "400").code == 0
    expected = left(folder)
    agent_store(folder).load().path.write_bytes(b"x")
    before = tree(folder)
    line = assert_one_line(rims("resume", "run"), code=1)
    assert "is damaged" in line
    assert "is whole" in line
    assert tree(folder) == before
    result = rims("resume", "run", "--fallback")
    assert result.code == 0
    assert SET_ASIDE in result.err
    assert left(folder) == expected


def test_other_versions_are_noticed(
    tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rims(*RUN).code == 0
    monkeypatch.setattr(resuming, "other_versions", lambda _: "torch 1.0, now 2.0")
    result = rims("resume", "run", "--total-steps", "200")
    assert result.code == 0
    assert result.err.startswith("Notice: numbers can differ")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("resume",), "RUN"),
        (("resume", "nowhere"), "does not exist"),
        (("resume", "empty"), "not a run folder"),
        (("resume", "run", "--total-steps", "0"), "--total-steps"),
        (("resume", "run", "--total-steps", "9999", "--device", "cuda:99"), "cuda:99"),
        (("resume", "run", "--threads", "0"), "--threads"),
        (("evaluate", "run", "--checkpoint", "newest"), "--checkpoint"),
        (("evaluate", "run", "--checkpoint", "77"), "has no checkpoint 77; it has 1"),
    ],
    ids=str,
)
def test_mistakes(tmp_path: Path, rims: Rims, arguments: tuple[str, ...], hint: str) -> None:
    (tmp_path / "here" / "empty").mkdir()
    assert rims(*RUN).code == 0
    before = tree(tmp_path)
    assert hint in assert_one_line(rims(*arguments))
    assert tree(tmp_path) == before


def test_best_and_numbered_checkpoints_are_judged(tmp_path: Path, rims: Rims) -> None:
    assert rims(*RUN, "--checkpoint-every", "1", "--total-steps", "384").code == 0
    for which in ("best", "3", "last"):
        result = rims("evaluate", "run", "--episodes", "2", "--checkpoint", which)
        assert result.code == 0, which


def test_environments_that_lead_elsewhere_are_told_in_one_line(
    tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ("--env", "MiniGrid-DoorKey-5x5-v0")
    assert rims(*RUN, *other, "--total-steps", "1000").code == 0
    monkeypatch.setattr(session, "level_seeds", lambda seed, *rest: level_seeds(seed + 1, *rest))
    line = assert_one_line(rims("resume", "run", "--total-steps", "9999"), code=1)
    assert "cannot be resumed" in line
    shutil.rmtree(tmp_path / "here" / "run")
