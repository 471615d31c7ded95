"""Processes of several runs: they end, saved, when the one that began them does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import ROOT

_CALL = """
import sys
from lab.running.processes import run_all
from test_agents_processes import linger
run_all(linger, [(sys.argv[1], 1), (sys.argv[1], 2)], 2)
"""

#: As a shell starts what a script has in the background; Ctrl-C is for others.
_IN_BACKGROUND = f"""
import signal
from lab.running.signals import raise_when_stopped
signal.signal(signal.SIGINT, signal.SIG_IGN)
raise_when_stopped()
{_CALL}
"""


def linger(folder: str, number: int) -> None:
    """Wait for signals, and note them."""
    path = Path(folder) / str(number)
    try:
        path.write_text("begun")
        time.sleep(300)
    except KeyboardInterrupt:
        try:
            time.sleep(1)  # time for a second one, which must not come
        except KeyboardInterrupt:
            path.write_text("interrupted twice")
        else:
            path.write_text("saved")
        raise


def _begin(folder: Path, program: str = _CALL) -> subprocess.Popen[str]:
    running = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while _noted(folder) != ["begun", "begun"]:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return running


def _noted(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_signal_to_the_parent_alone_reaches_all(tmp_path: Path, number: signal.Signals) -> None:
    running = _begin(tmp_path)
    running.send_signal(number)
    running.communicate(timeout=30)  # until all that hold its outputs have ended
    assert _noted(tmp_path) == ["saved", "saved"]


def test_termination_in_the_background_reaches_all(tmp_path: Path) -> None:
    running = _begin(tmp_path, _IN_BACKGROUND)
    running.send_signal(signal.SIGINT)
    time.sleep(0.4)
    assert _noted(tmp_path) == ["begun", "begun"]
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert _noted(tmp_path) == ["saved", "saved"]


def test_ctrl_c_in_a_terminal_reaches_all_once(tmp_path: Path) -> None:
    running = _begin(tmp_path)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert _noted(tmp_path) == ["saved", "saved"]
    assert err.count("Traceback") == 1  # of the parent, which here nobody catches


def test_second_ctrl_c_is_passed_on(tmp_path: Path) -> None:
    running = _begin(tmp_path)
    running.send_signal(signal.SIGINT)
    time.sleep(0.4)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert _noted(tmp_path) == ["interrupted twice", "interrupted twice"]
