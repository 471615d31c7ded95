"""Finding out how to go on with a run."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from agents.checkpoint import Checkpoint, agent_store, load_stored
from agents.config import WITHOUT_EFFECT, PPOConfig, read_settings
from agents.run_folder import CONFIG_NAME, is_empty, lock_folder, set_aside
from agents.train import Trainer
from agents.versions import other_versions


class Interrupted(NamedTuple):
    """A run as it was left."""

    config: PPOConfig
    checkpoint: Checkpoint | None  # the last one; None: it stopped before the first
    notices: tuple[str, ...] = ()  # what may be otherwise than if it had not stopped


def read_run(folder: Path, *, fallback: bool = False) -> Interrupted:
    """What a run goes on from.

    Args:
        folder: of the run.
        fallback: where the last checkpoint is damaged, set it aside and take the one before.

    Raises:
        DamagedCheckpoint: if the last checkpoint is damaged, without ``fallback``.
        ValueError: in one line, if it is no run's folder or in use, or the checkpoint cannot be
            used.
    """
    if not folder.is_dir():
        raise ValueError(f"run folder {str(folder)!r} does not exist; 'rims train' makes one.")
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{str(folder)!r} holds no {CONFIG_NAME}: not a run folder.")
    notices = []
    if fallback:
        lock_folder(folder).release()  # somebody may be writing the very checkpoint
        aside = agent_store(folder).set_aside_damaged()
        notices += [f"damaged, set aside as {path}" for path in aside]
    if not agent_store(folder).numbers():
        return Interrupted(_config(folder), None, tuple(notices))
    checkpoint, stored = load_stored(folder)
    if other := other_versions(stored.versions):
        notices.append(f"numbers can differ from those of a run that did not stop: {other}")
    return Interrupted(checkpoint.config, checkpoint, tuple(notices))


def continued(
    folder: Path,
    before: Interrupted,
    *,
    total_steps: int | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> PPOConfig:
    """The settings with which a run goes on: those it had but for what is given.

    Args:
        folder: of the run.
        before: what it goes on from.
        total_steps: train until so many environment steps.
        threads: of torch.
        device: of torch.

    Raises:
        ValueError: in one line, if the run is complete.
    """
    changes: dict[str, Any] = {"total_steps": total_steps, "threads": threads, "device": device}
    config = replace(before.config, **{k: v for k, v in changes.items() if v is not None})
    if before.checkpoint is not None and before.checkpoint.env_steps >= config.total_steps:
        raise ValueError(
            f"the run in {str(folder)!r} is complete, with {before.checkpoint.env_steps} of "
            f"{config.total_steps} steps; to go on with it, give more --total-steps."
        )
    return config


def trainer_for(config: PPOConfig, folder: Path) -> Trainer:
    """A trainer of the run in ``folder``, which goes on if it was interrupted and begins otherwise.

    What is there and no beginning of a run with these settings is kept under another name.

    Raises:
        ValueError: as :func:`read_run` and :class:`Trainer`.
    """
    if (folder / CONFIG_NAME).is_file():
        before = read_run(folder)
        if _same(before.config, config):
            return Trainer.resuming(folder, config, before.checkpoint)
    if not is_empty(folder):
        set_aside(folder)
    return Trainer(config, folder)


def _config(folder: Path) -> PPOConfig:
    path = folder / CONFIG_NAME
    try:
        return PPOConfig(**read_settings(path))
    except TypeError as error:  # a setting is missing
        raise ValueError(f"{str(path)!r} cannot be used: {error}.") from None


def _same(before: PPOConfig, now: PPOConfig) -> bool:
    others, asked = asdict(before), asdict(now)
    return all(others[name] == asked[name] for name in asked if name not in WITHOUT_EFFECT)
