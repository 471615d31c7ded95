"""One run of a trial: train, then say how good the agent is. Called in a process of its own."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import NamedTuple

import torch

from agents.checkpoint import is_trained, load_checkpoint
from agents.config import PPOConfig
from agents.evaluate import evaluate
from agents.resuming import is_of, trainer_for
from agents.run_folder import read_progress
from envs import Task

#: The success rate of training is that of this last part of the run.
LAST_PART = 0.2


class Measured(NamedTuple):
    """What came of one run."""

    value: float
    seconds: float  # of training and judging; less where the training was there already


def run_once(config: PPOConfig, folder: Path, unseen: tuple[Task, ...], episodes: int) -> Measured:
    """Train unless that is done, and measure the objective.

    Args:
        config: what to train.
        folder: the run folder. A run that was interrupted there goes on.
        unseen: tasks to be judged on; none for the success rate of training.
        episodes: per task.

    Raises:
        ValueError: for anything that keeps the run from being trained or measured.
        TrainingError: if a number that has to be finite is not.
    """
    started = time.perf_counter()
    if not (is_trained(folder, config.total_steps) and is_of(config, folder)):
        trainer_for(config, folder).run()
    value = _success_unseen(config, folder, unseen, episodes) if unseen else last_success(folder)
    return Measured(value, time.perf_counter() - started)


def last_success(folder: Path) -> float:
    """Success rate of training, mean over the updates of the last part of the run.

    Raises:
        ValueError: if it is not known, because an environment finished no episode.
    """
    columns = read_progress(folder)
    steps, rates = columns.get("env_steps", []), columns.get("success_rate", [])
    last = [
        rate
        for step, rate in zip(steps, rates, strict=True)
        if step > (1 - LAST_PART) * steps[-1] and math.isfinite(rate)
    ]
    if not last:
        raise ValueError(
            "no success rate: some environment finished no episode; give more total_steps."
        )
    return sum(last) / len(last)


def _success_unseen(
    config: PPOConfig, folder: Path, unseen: tuple[Task, ...], episodes: int
) -> float:
    torch.set_num_threads(config.threads)
    policy = load_checkpoint(folder).make_policy(config.device)
    rates = [
        evaluate(
            policy, task, episodes=episodes, seed=config.seed, backend=config.backend
        ).success_rate.mean
        for task in unseen
    ]
    return sum(rates) / len(rates)
