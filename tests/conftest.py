"""Fixtures of several test files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cli
import forked
import unsynced
from agents.config import PPOConfig
from command_line import Result, Rims
from compare_cases import comparison, done, root  # noqa: F401  (fixtures)
from lab.running import processes
from shared import made_once

#: A run of a second: one update of 8 environments by 16 steps at a time.
TOY = {
    "num_envs": 8,
    "rollout_steps_per_env": 16,
    "minibatches": 2,
    "epochs": 2,
    "hidden_size": 16,
    "num_rims": 4,
    "k": 2,
}


@pytest.hookimpl(optionalhook=True)  # without xdist there is none
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than processors: tests also wait, for processes and for files."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """Shells let what they start in the background ignore Ctrl-C, and so would what is tested."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _unsynced() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        unsynced.patch_disk(patch)
        yield


@pytest.fixture(autouse=True, scope="session")
def _imported_once() -> Iterator[None]:
    """Runs of comparisons and sweeps are forked off a process that has imported what they use.

    Those that a command in a process of its own starts are spawned, as a user's are.
    """
    forked.SERVER.set_forkserver_preload(list(forked.PRELOADED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_SPAWN", forked.SERVER)
        yield


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """One thread, or RIMS_TEST_THREADS: sums are rounded by how many share them out."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("RIMS_TEST_THREADS", "1")))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with mechanisms. Only to be read."""

    def make(folder: Path) -> None:
        from agents.learning.train import Trainer

        config = PPOConfig(env="MiniGrid-Empty-5x5-v0", total_steps=256, **TOY)  # type: ignore[arg-type]
        Trainer(config, folder / "toy").run()

    return made_once(tmp_path_factory, "runs", make) / "toy"


@pytest.fixture
def rims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Rims:
    """The entry point, called in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["rims", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            sys.exit(cli.main())  # type: ignore[func-returns-value]
        return Result(int(caught.value.code or 0), *capsys.readouterr())

    return call
