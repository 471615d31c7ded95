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
    results = _read(run, checkpoint, episodes, mode)
    policy = checkpoint.make_policy(run.config.device)
    for task in tasks:
        if _is_of(run, task, results):
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
        known = _read(run, load_checkpoint(run.folder), episodes, mode)
        if not all(_is_of(run, task, known) for task in tasks):
            return None
    except ValueError:  # the evaluation will say what is wrong
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
    rule = {"success": task.success} if task.success else {}
    return {
        "gym_kwargs": dict(task.gym_kwargs),
        "envpool_id": task.envpool_id,
        "envpool_kwargs": dict(task.envpool_kwargs),
        **rule,
    }


def _is_of(run: Run, task: Task, known: Results) -> bool:
    """Whether there is a result of this task, on the backend that would run it now."""
    result = known.get(task.id)
    return (
        isinstance(result, dict)
        and result.get("made_with") == _made_with(task)
        and result.get("backend") == resolve_backend(task, run.config.backend)
    )


def _read(run: Run, checkpoint: Checkpoint, episodes: int, mode: ActionMode) -> Results:
    """What is known of this very agent, of whatever tasks."""
    try:
        content = json.loads((run.folder / EVALUATION_NAME).read_text(encoding="utf-8"))
        known: Results = content["tasks"]
        return dict(known) if content["key"] == _key(checkpoint, episodes, mode) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # none, or damaged: it is only a cache
