"""Requests to stop: the step is finished, all is saved, and the exit code says which it was."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agents.learning import session
from agents.learning import train as training
from agents.learning.checkpoint import agent_store, load_checkpoint, save_checkpoint
from agents.learning.train import Trainer
from command_line import ENV, TOY, process, wait_for_rows
from envs import make_vector_env
from lab.disk.folder import PROGRESS_NAME, read_progress
from lab.disk.output import is_unfinished
from lab.running import signals
from lab.running.signals import STOPPING, Stopped, StopRequest, exit_code, raise_when_stopped
from selection import short
from test_agents_resume import go_on, left, make_config

# Taking note ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STOPPING)
def test_first_signal_is_noted_and_the_second_stops(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST", 0.0)
    handler = signal.getsignal(number)
    seen: list[int] = []
    signal.signal(number, lambda n, _: seen.append(n))
    try:
        with StopRequest() as stop:
            stop.obey()  # nothing to obey yet
            signal.raise_signal(number)
            assert stop.wanted
            assert seen == []
            with pytest.raises(Stopped) as caught:
                stop.obey()
            assert exit_code(caught.value) == 128 + number
            signal.raise_signal(number)
            assert seen == [number]  # what was there before has it
        signal.raise_signal(number)
        assert seen == [number] * 2
    finally:
        signal.signal(number, handler)


def test_ignored_signal_stays_ignored() -> None:
    """As nohup starts a process."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.wanted
    finally:
        signal.signal(signal.SIGINT, handler)


def test_other_threads_have_no_signals() -> None:
    def use() -> None:
        with StopRequest() as stop:
            assert not stop.wanted

    thread = threading.Thread(target=use)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) == before


def test_commands_turn_termination_into_an_interruption() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    try:
        raise_when_stopped()
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert exit_code(caught.value) == 143
    finally:
        for number, handler in zip(STOPPING, before, strict=True):
            signal.signal(number, handler)


# Training ---------------------------------------------------------------------------------------


def stop_in(monkeypatch: pytest.MonkeyPatch, place: str, times: int = 1) -> None:
    """Send SIGINT in the middle of the 3rd call of a part of training."""
    real: Callable[..., Any] = getattr(training, place)
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return real(*arguments, **named)

    monkeypatch.setattr(training, place, call)


@pytest.mark.parametrize("place", short(["collect", "update", "save_checkpoint"], 1))
def test_signal_anywhere_finishes_the_update_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    config = make_config(core="none", checkpoint_every=1)
    Trainer(config, tmp_path / "whole").run()
    with monkeypatch.context() as patch:
        stop_in(patch, place)
        with pytest.raises(Stopped):
            Trainer(config, tmp_path / "run").run()
    assert load_checkpoint(tmp_path / "run").updates == 3
    go_on(tmp_path / "run")
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_signal_that_comes_twice_is_one_request() -> None:
    """As from a terminal that closes, or from a terminal and from torchrun."""
    with StopRequest() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert stop.wanted


@pytest.mark.parametrize("place", ["collect", "update", "save_checkpoint"])
def test_second_signal_stops_at_once_and_harms_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST", 0.0)
    stop_in(monkeypatch, place, times=2)
    with pytest.raises(KeyboardInterrupt):
        Trainer(make_config(core="none", checkpoint_every=1), tmp_path / "run").run()
    assert agent_store(tmp_path / "run").load().number == 2


def test_second_signal_in_the_middle_of_a_file_harms_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST", 0.0)
    trainer = Trainer(make_config(core="none", checkpoint_every=1), tmp_path / "run")
    fsync = os.fsync

    def interrupt(file: int) -> None:
        if trainer.progress.updates == 3 and trainer._log is not None:
            signal.raise_signal(signal.SIGINT)
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    assert agent_store(tmp_path / "run").load().number == 2
    assert not any(is_unfinished(path) for path in tmp_path.rglob("*"))
    go_on(tmp_path / "run")


def test_signal_in_the_last_save_of_all_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(core="none", checkpoint_every=1000)

    def interrupted(*arguments: Any) -> Path:
        signal.raise_signal(signal.SIGTERM)
        return save_checkpoint(*arguments)

    monkeypatch.setattr(training, "save_checkpoint", interrupted)
    done = Trainer(config, tmp_path / "run").run()
    assert load_checkpoint(tmp_path / "run").env_steps == done.env_steps >= config.total_steps


def test_work_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped twice when updates have been made, but no checkpoint."""
    monkeypatch.setattr(signals, "SAME_REQUEST", 0.0)

    def stop_twice(row: Mapping[str, float]) -> None:
        if row["update"] == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    config = make_config(core="none", checkpoint_every=1000)
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, tmp_path / "run").run(stop_twice)
    assert read_progress(tmp_path / "run")["update"] == [1, 2, 3]
    go_on(tmp_path / "run")
    Trainer(config, tmp_path / "whole").run()
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_signal_before_the_first_update_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return make_vector_env(*arguments)

    monkeypatch.setattr(session, "make_vector_env", interrupted)
    with pytest.raises(Stopped):
        Trainer(make_config(core="none"), tmp_path / "run").run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_terminated_training_saves_the_agent(tmp_path: Path, number: int, code: int) -> None:
    arguments = ("train", "--env", ENV, *TOY, "--total-steps", "100000000", "--run-dir", "run")
    with process(*arguments, folder=tmp_path) as running:
        wait_for_rows(running, tmp_path / "run" / PROGRESS_NAME)
        running.send_signal(number)
        _, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert "Traceback" not in err
    assert "'rims resume run' goes on" in err.splitlines()[-1]
    assert load_checkpoint(tmp_path / "run").updates >= 2


@pytest.mark.long
def test_terminated_comparison_saves_its_runs(tmp_path: Path) -> None:
    arguments = ("compare", "--suite", "empty", "--cores", "none", "--seeds", "1", *TOY)
    steps = ("--total-steps", "100000000", "--run-root", "root")
    with process(*arguments, *steps, folder=tmp_path) as running:
        run = tmp_path / "root" / "none-seed0"
        wait_for_rows(running, run / PROGRESS_NAME)
        running.send_signal(signal.SIGTERM)
        try:
            _, err = running.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            raise
    assert running.returncode == 143
    assert "Traceback" not in err
    assert load_checkpoint(run).updates >= 2
