"""Requests to stop: the step is finished, all is saved, and the exit code says which it was."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents import train as training
from agents.checkpoint import agent_store, load_checkpoint
from agents.run_folder import PROGRESS_NAME
from agents.signals import STOPPING, Stopped, StopRequest, exit_code, raise_when_stopped
from agents.train import Trainer
from command_line import ENV, TOY, process, wait_for_rows
from test_agents_resume import go_on, left, make_config

# Taking note ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STOPPING)
def test_first_signal_is_noted_and_the_second_stops(number: int) -> None:
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


@pytest.mark.parametrize("place", ["collect", "update", "save_checkpoint"])
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


@pytest.mark.parametrize("place", ["collect", "update", "save_checkpoint"])
def test_second_signal_stops_at_once_and_harms_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    stop_in(monkeypatch, place, times=2)
    with pytest.raises(KeyboardInterrupt):
        Trainer(make_config(core="none", checkpoint_every=1), tmp_path / "run").run()
    assert agent_store(tmp_path / "run").load().number == 2


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
