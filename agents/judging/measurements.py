"""What is reported of each run."""

from __future__ import annotations

from agents.config import ActionMode
from agents.judging.comparison import CoreCost, Measured, Run
from agents.judging.evaluations import cached_results
from agents.learning.checkpoint import load_checkpoint
from agents.model.cost import multiply_adds
from agents.model.policy import RecurrentActorCritic, count_parameters
from envs import Task
from lab.disk.folder import PROGRESS_NAME, read_progress


def measure(run: Run, tasks: tuple[Task, ...], episodes: int, mode: ActionMode) -> Measured:
    """Collect what is reported of a run that was trained and evaluated.

    Raises:
        ValueError: if something of it is not there any more.
    """
    results = cached_results(run, tasks, episodes, mode)
    if results is None:
        raise ValueError("its evaluation was changed by something else meanwhile.")
    curve = read_progress(run.folder)
    if not curve:
        raise ValueError(f"{PROGRESS_NAME} holds no rows.")
    for name in ("env_steps", "success_rate", "env_steps_per_second"):
        if name not in curve:
            raise ValueError(f"{PROGRESS_NAME} holds no column {name!r}.")
    checkpoint = load_checkpoint(run.folder)
    return Measured(
        config=checkpoint.config,
        folder=run.folder,
        results=results,
        curve=curve,
        cost=_cost(checkpoint.make_policy(), checkpoint.config.hidden_size),
        training_backend=checkpoint.backend,
    )


def _cost(policy: RecurrentActorCritic, hidden_size: int) -> CoreCost:
    try:
        operations = multiply_adds(policy)
    except Exception:  # a user's own core may do what cannot be counted; all else is still known
        operations = None
    return CoreCost(
        hidden_size=hidden_size,
        core_parameters=count_parameters(policy.core),
        total_parameters=count_parameters(policy),
        core_multiply_adds=operations.core if operations else None,
        total_multiply_adds=operations.total if operations else None,
    )
