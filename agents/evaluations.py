"""Evaluations of trained runs, kept in each run's folder so that none is done twice."""

from __future__ import annotations

import json
from typing import Any

import torch

from agents.checkpoint import Checkpoint, load_checkpoint
from agents.comparison import Run
from agents.config import ActionMode
from agents.evaluate import evaluate
from agents.run_folder import lock_folder, write_text
from envs import Task, resolve_backend

EVALUATION_NAME = "evaluation.json"

#: Results by task id, each as of :meth:`agents.evaluate.Evaluation.to_dict`.
Results = dict[str, dict[str, Any]]


def evaluate_run(run: Run, tasks: tuple[Task, ...], episodes: int, mode: ActionMode) -> None:
    """Evaluate a run on those tasks that its cache does not have, and write them there.

    Raises:
        ValueError: if the run cannot be evaluated or another command is working on it.
    """
    torch.set_num_threads(run.config.threads)
    lock = lock_folder(run.folder)
    try:
        _evaluate(run, tasks, episodes, mode)
    finally:
        lock.release()


def _evaluate(run: Run, tasks: tuple[Task, ...], episodes: int, mode: ActionMode) -> None:
    checkpoint = load_checkpoint(run.folder)
    results = _read(run, checkpoint, tasks, episodes, mode)
    policy = checkpoint.make_policy(run.config.device)
    for task in tasks:
        if task.id in results:
            continue
        evaluation = evaluate(
            policy,
            task,
            episodes=episodes,
            seed=run.config.seed,
            mode=mode,
            backend=run.config.backend,
        )
        results[task.id] = {**evaluation.to_dict(), "made_with": _made_with(task)}
        content = {"key": _key(checkpoint, episodes, mode), "tasks": results}
        write_text(run.folder / EVALUATION_NAME, json.dumps(content, indent=1))


def cached_results(
    run: Run, tasks: tuple[Task, ...], episodes: int, mode: ActionMode
) -> Results | None:
    """Evaluations by task id if the run's cache has all of them."""
    try:
        known = _read(run, load_checkpoint(run.folder), tasks, episodes, mode)
    except ValueError:  # the evaluation will say what is wrong
        return None
    if not all(task.id in known for task in tasks):
        return None
    return {task.id: known[task.id] for task in tasks}


def _key(checkpoint: Checkpoint, episodes: int, mode: ActionMode) -> dict[str, Any]:
    return {
        "env_steps": checkpoint.env_steps,
        "training_backend": checkpoint.backend,
        "episodes": episodes,
        "mode": mode,
    }


def _made_with(task: Task) -> dict[str, Any]:
    """What makes the environment besides its id: a suite of a user's own can change it."""
    return {
        "gym_kwargs": dict(task.gym_kwargs),
        "envpool_id": task.envpool_id,
        "envpool_kwargs": dict(task.envpool_kwargs),
    }


def _read(
    run: Run, checkpoint: Checkpoint, tasks: tuple[Task, ...], episodes: int, mode: ActionMode
) -> Results:
    """What is known of this very agent on these tasks, on the backend that would run each now."""
    try:
        content = json.loads((run.folder / EVALUATION_NAME).read_text(encoding="utf-8"))
        if content["key"] != _key(checkpoint, episodes, mode):
            return {}
        known = content["tasks"]
        return {
            task.id: known[task.id]
            for task in tasks
            if task.id in known
            and known[task.id]["made_with"] == _made_with(task)
            and known[task.id]["backend"] == resolve_backend(task, run.config.backend)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # none, or damaged: it is only a cache
