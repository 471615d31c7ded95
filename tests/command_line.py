"""Calling the command line in tests."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from forked import Forked

ROOT = Path(__file__).resolve().parents[1]
ENV = "MiniGrid-Empty-5x5-v0"
TOY = (
    *("--num-envs", "8", "--rollout-steps-per-env", "16", "--minibatches", "2", "--epochs", "1"),
    *("--total-steps", "128", "--hidden-size", "16"),
)
TRAIN = ("train", "--env", ENV)
COMPARE = ("compare", "--suite", "empty", "--run-root", "root")


class Result(NamedTuple):
    code: int
    out: str
    err: str


Rims = Callable[..., Result]


class Process(subprocess.Popen[str]):
    """Is killed, with all of its group, where the block that it is used in fails."""

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        super().__exit__(kind, error, traceback)


def process(*arguments: str, folder: Path) -> Forked:
    """A process of its own, the first of a group, without the seconds that importing takes."""
    return Forked(arguments, folder)


def fresh_process(*arguments: str, folder: Path) -> Process:
    """A process that imports everything itself, as a terminal starts it."""
    return Process(
        [sys.executable, "-m", "cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_obey_signals,
    )


def _obey_signals() -> None:
    """Tests may be run in the background or by nohup, where these are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_for_rows(
    running: subprocess.Popen[str] | Forked, progress: Path, *, more_than: int = 2
) -> None:
    """Wait until training has written more than so many lines of its table; two are one update."""
    deadline = time.monotonic() + 60
    while not (progress.is_file() and progress.read_text().count("\n") > more_than):
        if running.poll() is not None or time.monotonic() > deadline:
            # Else whoever leaves the block of the process would wait for it for ever.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            raise AssertionError(f"{progress} does not grow; exit code {running.poll()}")
        time.sleep(0.05)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def snapshot(folder: Path) -> dict[str, tuple[int, int, str, bytes]]:
    """All that a command could change: names, kinds and rights, times, ends of links, contents."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        end = os.readlink(path) if path.is_symlink() else ""
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, end, content)
    return found


def assert_one_line(result: Result, code: int = 2) -> str:
    assert result.code == code
    assert result.out == ""
    assert "Traceback" not in result.err
    (line,) = result.err.splitlines()
    assert line.startswith("Error: ")
    assert len(line) > len("Error: ")
    return line
