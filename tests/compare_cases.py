"""A comparison at toy size, of several test files."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from agents.config import PPOConfig
from agents.judging.compare import judge, plan
from agents.judging.comparison import Comparison, Run
from agents.judging.evaluations import EVALUATION_NAME
from agents.judging.report import write_report
from agents.learning.checkpoint import load_checkpoint, save_checkpoint
from envs import SUITES
from lab.comparing import train_missing
from shared import made_once

SUITE = SUITES["empty"]
TASKS = SUITE.tasks[:2]
CORES = ["rim_gru", "none"]
SEEDS = [0, 1]
EPISODES = 6


def make_config(**changes: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "suite": "empty",
        "num_envs": 8,
        "rollout_steps_per_env": 16,
        "minibatches": 2,
        "epochs": 1,
        "total_steps": 256,
        "hidden_size": 16,
        "num_rims": 4,
        "k": 2,
        **changes,
    }
    return PPOConfig(**settings)


def ignore(_: object) -> None:
    pass


def interrupt(_: object) -> None:
    signal.raise_signal(signal.SIGINT)


def compare(root: Path, **changes: Any) -> Comparison:
    settings: dict[str, Any] = {"episodes": EPISODES, "mode": "sample", "jobs": 2, **changes}
    return judge(
        plan(make_config(), CORES, SEEDS, root), SUITE, TASKS, on_progress=ignore, **settings
    )


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison, list[Run]]:
    """A finished comparison. Only to be read."""

    def make(folder: Path) -> None:
        seen: list[Run] = []
        root = folder / "root"
        assert train_missing(plan(make_config(), CORES, SEEDS, root), 2, seen.extend) == []
        comparison = compare(root)
        write_report(comparison, root)
        (folder / "told").write_bytes(pickle.dumps((comparison, seen)))

    folder = made_once(tmp_path_factory, "compare", make)
    comparison, seen = pickle.loads((folder / "told").read_bytes())
    return folder / "root", comparison, seen


@pytest.fixture
def root(done: tuple[Path, Comparison, list[Run]], tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(done[0], tmp_path / "copy"))


@pytest.fixture
def comparison(done: tuple[Path, Comparison, list[Run]]) -> Comparison:
    return done[1]


def folder_times(root: Path, pattern: str) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in sorted(root.glob(pattern))}


def evaluations(root: Path, core: str, seeds: list[int] = SEEDS) -> list[dict[str, Any]]:
    return [
        json.loads((root / f"{core}-seed{seed}" / EVALUATION_NAME).read_text())["tasks"]
        for seed in seeds
    ]


def judge_runs(runs: list[Run], **changes: Any) -> Comparison:
    settings = {"episodes": EPISODES, "mode": "sample", "jobs": 1, "on_progress": ignore}
    return judge(runs, SUITE, TASKS, **{**settings, **changes})


def change_checkpoint(folder: Path, **changes: Any) -> None:
    save_checkpoint(folder, replace(load_checkpoint(folder), **changes))


class BreaksDown(nn.GRU):
    """A core that acts well and cannot learn."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output, hx = super().forward(input, hx)
        if output.requires_grad:
            output.register_hook(lambda grad: grad * math.nan)  # type: ignore[no-untyped-call]
        return output, hx
