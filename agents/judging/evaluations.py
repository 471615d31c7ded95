"""Evaluations of trained runs, kept in each run's folder so that none is repeated."""

from __future__ import annotations

import json
from typing import Any

import torch

from agents.config import ActionMode
from agents.judging.comparison import Run
from agents.judging.evaluate import evaluate
from agents.learning.checkpoint import load_checkpoint, load_stored
from envs import Task, modules_of, resolve_backend
from lab.disk.folder import require_plain_run
from lab.disk.lock import acquire_lock, note_holder
from lab.disk.manifest import is_finite_number
from lab.disk.output import remove_abandoned, write_text
from lab.disk.plain_files import read_plain_text
from lab.disk.store import Stored
from lab.disk.versions import versions
from lab.own_modules import source_digest

EVALUATION_NAME = "evaluation.json"

#: Results by task id, each as of :meth:`agents.judging.evaluate.Evaluation.to_dict`.
Results = dict[str, dict[str, Any]]


def evaluate_run(run: Run, tasks: tuple[Task, ...], episodes: int, mode: ActionMode) -> Results:
    """Evaluate a run on those tasks that its cache does not have, and write them there.

    Returns:
        Evaluations by task id, of all ``tasks``.

    Raises:
        ValueError: if the run cannot be evaluated or another command is working on it.
    """
    torch.set_num_threads(run.config.threads)
    load_checkpoint(run.folder)  # what is refused is refused before anything is written
    require_plain_run(run.folder)
    lock = acquire_lock(run.folder)
    try:
        return _evaluate(run, tasks, episodes, mode)
    finally:
        lock.release()


def _evaluate(run: Run, tasks: tuple[Task, ...], episodes: int, mode: ActionMode) -> Results:
    checkpoint, stored = load_stored(run.folder)
    key = _key(run, stored, episodes, mode)
    results = _read(run, key)
    todo = [task for task in tasks if not _is_of(run, task, results)]
    if todo:
        note_holder(run.folder)
        remove_abandoned(run.folder)
        policy = checkpoint.make_policy(run.config.device)
    for task in todo:
        made_with = _made_with(task)  # before: while it runs, the source may be edited
        evaluation = evaluate(
            policy,
            task,
            episodes=episodes,
            seed=run.config.seed,
            mode=mode,
            backend=run.config.backend,
        )
        results[task.id] = {**evaluation.to_dict(), "made_with": made_with}
        content = {"key": key, "tasks": results}
        write_text(run.folder / EVALUATION_NAME, json.dumps(content, indent=1))
    return {task.id: results[task.id] for task in tasks}


def cached_results(
    run: Run, tasks: tuple[Task, ...], episodes: int, mode: ActionMode
) -> Results | None:
    """Evaluations by task id if the run's cache has all of them."""
    try:
        _, stored = load_stored(run.folder)
        known = _read(run, _key(run, stored, episodes, mode))
        if not all(_is_of(run, task, known) for task in tasks):
            return None
    except ValueError:  # the evaluation will say what is wrong
        return None
    return {task.id: known[task.id] for task in tasks}


def _key(run: Run, stored: Stored, episodes: int, mode: ActionMode) -> dict[str, Any]:
    """Everything besides the task that decides the result of an evaluation."""
    core = stored.about["config"]["core"]
    return {
        "sha256": stored.sha256,  # of the weights
        "seal": stored.seal,  # of the settings and all else that the manifest says
        "core": source_digest([core.partition(":")[0]]) if ":" in core else None,
        "versions": {n: version for n, version in versions().items() if n != "python"},
        "env_steps": stored.about["env_steps"],
        "training_backend": stored.about["backend"],
        "episodes": episodes,
        "mode": mode,
        "seed": run.config.seed,
        "device": run.config.device,  # which draws other random numbers
    }


def _made_with(task: Task) -> dict[str, Any]:
    """What defines the environment besides its id: a user can change its suite or source."""
    rule = {"success": task.success} if task.success else {}
    modules = modules_of(task.id)
    source = {"source": source_digest(modules)} if modules else {}
    return {
        "gym_kwargs": dict(task.gym_kwargs),
        "envpool_id": task.envpool_id,
        "envpool_kwargs": dict(task.envpool_kwargs),
        **rule,
        **source,
    }


def _is_of(run: Run, task: Task, known: Results) -> bool:
    """Whether there is a result of this task, on the backend that would run it now."""
    result = known.get(task.id)
    return (
        isinstance(result, dict)
        and result.get("made_with") == _made_with(task)
        and result.get("backend") == resolve_backend(task, run.config.backend)
        and _is_whole(result)
    )


def _is_whole(result: dict[str, Any]) -> bool:
    """Whether a result holds the numbers that reports are made of; success may be unknown."""
    means = [result.get("mean_return"), result.get("mean_length")]
    if result.get("success_rate", ...) is not None:
        means.append(result.get("success_rate"))
    return type(result.get("episodes")) is int and all(
        isinstance(estimate, dict) and is_finite_number(estimate.get("mean")) for estimate in means
    )


def _read(run: Run, key: dict[str, Any]) -> Results:
    """Kept results of this very agent, on any tasks."""
    try:
        content = json.loads(read_plain_text(run.folder / EVALUATION_NAME))
        known: Results = content["tasks"]
        return dict(known) if content["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # none, or damaged: it is only a cache
