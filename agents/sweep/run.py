"""One run of a trial: train, then measure the agent. Called in a process of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from agents.config import PPOConfig
from agents.judging.evaluate import evaluate
from agents.learning.checkpoint import is_trained, load_checkpoint
from agents.learning.resuming import is_of, trainer_for
from envs import Task
from lab.disk.folder import read_progress

#: Training is judged by this last part of the run.
LAST_PART = 0.2

#: Columns of the progress table, by what is made large.
COLUMNS = {"success rate": "success_rate", "return": "episode_return_mean"}

_NOT_TOLD = (
    "success is not known: neither the environment nor the suite says what it is; take the "
    'objective "return" or "unseen_return".'
)


class Measured(NamedTuple):
    """The measured objective of one run."""

    value: float
    seconds: float  # of training and judging; less where the training was there already


def run_once(
    config: PPOConfig,
    folder: Path,
    unseen: tuple[Task, ...],
    episodes: int,
    measure: str = "success rate",
) -> Measured:
    """Train unless that is done, and measure the objective.

    Args:
        config: settings of the run.
        folder: the run folder. A run that was interrupted there goes on.
        unseen: tasks to be judged on; none to judge the training.
        episodes: per task.
        measure: "success rate" or "return".

    Raises:
        ValueError: for anything that keeps the run from being trained or measured.
        TrainingError: if a number that has to be finite is not.
    """
    started = time.perf_counter()
    if not (is_trained(folder, config.total_steps) and is_of(config, folder)):
        trainer_for(config, folder).run()
    if unseen:
        value = _on_unseen(config, folder, unseen, episodes, measure)
    else:
        value = last_part(folder, measure)
    return Measured(value, time.perf_counter() - started)


def last_part(folder: Path, measure: str = "success rate") -> float:
    """The measure of training: its mean over the updates of the last part of the run.

    Args:
        folder: the run's folder.
        measure: "success rate" or "return".

    Raises:
        ValueError: if it is not known, because an environment finished no episode or does not say
            what success is.
    """
    columns = read_progress(folder)
    last = _last_known(columns, COLUMNS[measure])
    if not last:
        if _last_known(columns, COLUMNS["return"]):
            raise ValueError(_NOT_TOLD)
        raise ValueError(
            f"no {measure}: some environment finished no episode; give more total_steps."
        )
    return sum(last) / len(last)


def _last_known(columns: Mapping[str, Sequence[float]], name: str) -> list[float]:
    steps = columns.get("env_steps", [])
    values = columns.get(name, [math.nan] * len(steps))  # a run that never knew has no such column
    return [
        value
        for step, value in zip(steps, values, strict=True)
        if step > (1 - LAST_PART) * steps[-1] and math.isfinite(value)
    ]


def _on_unseen(
    config: PPOConfig, folder: Path, unseen: tuple[Task, ...], episodes: int, measure: str
) -> float:
    torch.set_num_threads(config.threads)
    policy = load_checkpoint(folder).make_policy(config.device)
    values = []
    for task in unseen:
        result = evaluate(policy, task, episodes=episodes, seed=config.seed, backend=config.backend)
        estimate = result.mean_return if measure == "return" else result.success_rate
        if estimate is None:
            raise ValueError(f"{task.id}: {_NOT_TOLD}")
        values.append(estimate.mean)
    return sum(values) / len(values)
