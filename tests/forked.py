"""Command lines in real processes that need not import anything first.

Each is forked off a process that has imported what commands use, which costs more than what most
tests do. It has a group, a session, streams and signals of its own, as a terminal starts it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

import pytest

import unsynced

#: Imported once, by the process that all others are forked off.
PRELOADED = (
    "agents.commands.compare",
    "agents.judging.compare",
    "cli",
    "envpool",
    "envs.backends.gymnasium_backend",
    "experiments.commands.experiment",
    "torch._dynamo",
    "torch.utils.tensorboard",
)

SERVER = multiprocessing.get_context("forkserver")


class Forked:
    """``python -m cli ARGUMENTS`` in a folder, with what tests use of ``subprocess.Popen``."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        pipes = [os.pipe() for _ in range(2)]
        ends = [DupFd(write) for _, write in pipes]
        work = (list(arguments), str(folder), dict(os.environ), *ends)
        self._process = SERVER.Process(target=_run, args=work)
        self._process.start()
        for _, write in pipes:
            os.close(write)
        self.stdout, self.stderr = (_stream(read, "r") for read, _ in pipes)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> Any:  # None before the end, as of Popen
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("rims", timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float = 60.0) -> tuple[str, str]:
        """Wait until the process and all that write to its streams have ended; what they wrote."""
        end = time.monotonic() + timeout
        rest = ["", ""]

        def read(place: int, stream: TextIO) -> None:
            with stream:
                rest[place] = stream.read()

        readers = [
            threading.Thread(target=read, args=given, daemon=True)
            for given in enumerate((self.stdout, self.stderr))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(max(0.0, end - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired("rims", timeout)
        self.wait(max(0.1, end - time.monotonic()))
        return rest[0], rest[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: Any, _traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        self.stdout.close()
        self.stderr.close()


def _stream(descriptor: int, mode: str) -> TextIO:
    return cast(TextIO, os.fdopen(descriptor, mode, 1, "utf-8"))


def _run(
    arguments: list[str], folder: str, environment: dict[str, str], out: Any, err: Any
) -> None:
    os.setsid()
    # Tests may be run in the background or by nohup, where these are ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, end in ((1, out), (2, err)):
        received = end.detach()
        os.dup2(received, number)
        os.close(received)
    sys.stdout, sys.stderr = (_stream(number, "w") for number in (1, 2))
    sys.argv = ["rims", *arguments]
    import cli

    with pytest.MonkeyPatch.context() as patch:
        unsynced.patch_disk(patch)
        cli.main()
