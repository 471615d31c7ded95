"""Checks that an agent can be trained in an environment, before anything is made."""

from __future__ import annotations

from collections.abc import Iterable

from agents.config import PPOConfig
from agents.model.policy import reads_mission, require_settings
from envs import (
    AnyView,
    BackendChoice,
    BackendName,
    EnvironmentFailed,
    Layout,
    Task,
    actions_of,
    require_makeable,
    require_missions_differ,
    view_of,
)


def require_trainable(
    config: PPOConfig,
    backend: BackendChoice | None = None,
    *,
    others: Iterable[Task] = (),
    view: AnyView | None = None,
) -> BackendName:
    """The backend that will run the task of ``config``, after seeing that agents can learn it.

    Args:
        config: settings of the run.
        backend: in place of that of ``config``.
        others: tasks that the agent is to be judged on.
        view: the agent's view, if there is an agent already.

    Raises:
        ValueError: in one line, if the environment cannot be made, its observations or actions are
            not such as the agent reads and has, or differ from those of another task.
    """
    task, wanted = config.task, backend or config.backend
    chosen = require_makeable(task, wanted, config.action_numbers, config.parts, view)
    if config.normalize_observations or config.encoder != "linear":
        require_settings(config, view or view_of(task, chosen))
    try:
        if reads_mission(config):
            require_missions_differ(task)
    except EnvironmentFailed as error:
        raise ValueError(str(error)) from error
    others = [other for other in others if other != task]
    if others:
        view = view or view_of(task, chosen)
    for other in others:
        require_makeable(other, wanted, config.action_numbers, config.parts, view)
        if isinstance(view, Layout):
            _require_same_actions(task, other, wanted)
    return chosen


def _require_same_actions(task: Task, other: Task, backend: BackendChoice) -> None:
    ours, theirs = (actions_of(each, backend) for each in (task, other))
    if ours != theirs:
        raise ValueError(f"{other.id} has {theirs}, but {task.id}, trained on, {ours}.")
