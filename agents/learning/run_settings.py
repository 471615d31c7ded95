"""Comparing a run's ``config.toml`` with the settings its checkpoints were made with."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from agents.config import PPOConfig
from lab.disk.folder import CONFIG_NAME, read_config

#: Settings that 'rims resume' may change, besides those without effect.
MAY_CHANGE = ("total_steps", "device", *PPOConfig.without_effect())


def differing(folder: Path, made_with: PPOConfig) -> dict[str, tuple[Any, Any]]:
    """Settings in which a run's ``config.toml`` and a checkpoint differ.

    Nothing of the file is imported or otherwise used.

    Args:
        folder: the run's folder.
        made_with: the checkpoint's.

    Returns:
        By name, what the file says and what the checkpoint was made with; nothing where there is no
        such file, where the file says nothing of a setting, or where the run makes no use of it.

    Raises:
        ValueError: in one line, if the file is damaged.
    """
    written = read_config(folder)
    return {
        name: (written[name], value)
        for name, value in dataclasses.asdict(made_with).items()
        if name in written and written[name] != value and name not in made_with.unused
    }


def require_unedited(folder: Path, made_with: PPOConfig) -> None:
    """Refuse a run whose ``config.toml`` was edited, or whose checkpoints are another run's.

    Raises:
        ValueError: in one line that names what differs.
    """
    found = {n: v for n, v in differing(folder, made_with).items() if n not in MAY_CHANGE}
    if found:
        raise ValueError(
            f"{_told(folder, found)}. A run goes on with the settings it began with: put them back "
            f"into {CONFIG_NAME}, or its own checkpoints into the folder; or begin another run, "
            "which can take this one's weights (--init-from)."
        )


def notice(folder: Path, made_with: PPOConfig) -> str:
    """One line about differing settings with an effect, for commands that use the agent; or ""."""
    try:
        found = differing(folder, made_with)
    except ValueError as error:
        return f"{str(error).removesuffix('.')}; the settings in the checkpoint count"
    found = {name: values for name, values in found.items() if name not in MAY_CHANGE}
    return f"{_told(folder, found)}; the checkpoint counts" if found else ""


def notice_of_what_may_change(folder: Path, made_with: PPOConfig, given: Collection[str]) -> str:
    """One line about differing settings that have options, unless these are given; or ""."""
    found = {
        name: values
        for name, values in differing(folder, made_with).items()
        if name in MAY_CHANGE and name not in given
    }
    return f"{_told(folder, found)}; the checkpoint counts" if found else ""


def _told(folder: Path, found: dict[str, tuple[Any, Any]]) -> str:
    says = ", ".join(f"{name}={written!r}" for name, (written, _) in found.items())
    made = ", ".join(f"{name}={value!r}" for name, (_, value) in found.items())
    return f"{str(folder / CONFIG_NAME)!r} says {says}; its checkpoint was made with {made}"
