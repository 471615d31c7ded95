"""Starting from another run's agent, on another task: fine-tuning, curricula."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from agents.config import PPOConfig
from agents.learning.checkpoint import load_checkpoint
from agents.model.policy import reads_mission
from envs import view_of
from lab.cores import folder_name
from lab.settings import ConfigError


def source_folder(config: PPOConfig) -> Path:
    """The run folder that ``config.init_from`` names for this core and seed.

    Example:
        >>> config = PPOConfig(env="MiniGrid-Empty-8x8-v0", core="gru", seed=2,
        ...                    init_from="/runs/{core}-seed{seed}")
        >>> source_folder(config).name
        'gru-seed2'
    """
    named = config.init_from.replace("{core}", folder_name(config.core))
    return Path(named.replace("{seed}", str(config.seed)))


def initial_weights(config: PPOConfig) -> dict[str, Any] | None:
    """The weights a run begins with, if they are another run's: those of its last checkpoint.

    Only weights are taken. The optimiser begins anew, as the schedule of the step size does, and
    so do the streams of random numbers.

    Returns:
        The state of a policy, or ``None`` where ``config.init_from`` names no run.

    Raises:
        ValueError: in one line, if there is no such run, or its agent is built otherwise.
    """
    if not config.init_from:
        return None
    source = source_folder(config)
    try:
        checkpoint = load_checkpoint(source)
    except ValueError as error:
        raise ConfigError("init_from", f"names no agent to begin with: {error}") from None
    ignored = {"mission", *(config.unused.keys() & checkpoint.config.unused.keys())}
    for field in dataclasses.fields(PPOConfig):
        if field.metadata["group"] in ("Network", "RIM") and field.name not in ignored:
            _require_equal(field.name, config, checkpoint.config, source)
    if reads_mission(config) != checkpoint.read_mission:
        there = "reads" if checkpoint.read_mission else "does not read"
        chosen = "on" if checkpoint.read_mission else "off"
        rule = f"must be {chosen!r}: the agent in {str(source)!r}, to begin with, {there} missions."
        raise ConfigError("mission", rule)
    view = view_of(config.task, config.backend)
    if view != checkpoint.view:
        rule = (
            f"names an agent, in {str(source)!r}, that sees {checkpoint.view}; in {config.task.id} "
            f"it would be {view}."
        )
        raise ConfigError("init_from", rule)
    return checkpoint.policy


def _require_equal(name: str, config: PPOConfig, other: PPOConfig, source: Path) -> None:
    ours, theirs = getattr(config, name), getattr(other, name)
    if ours != theirs:
        rule = (
            f"must be {theirs!r} as in {str(source)!r}, whose weights this run begins with; "
            f"got {ours!r}."
        )
        raise ConfigError(name, rule)
