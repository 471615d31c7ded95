"""Finding out how to go on with a run."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from agents.checkpoint import Checkpoint, agent_store, load_stored
from agents.checkpoint_store import has_checkpoint
from agents.config import WITHOUT_EFFECT, PPOConfig, read_settings
from agents.run_folder import (
    CONFIG_NAME,
    claim_existing_run,
    is_empty,
    require_run_folder,
    set_aside,
)
from agents.train import Trainer
from agents.versions import other_versions
from agents.world import World


class RunComplete(ValueError):
    """There is nothing left to do in a run."""


class Interrupted(NamedTuple):
    """A run as it was left."""

    config: PPOConfig
    checkpoint: Checkpoint | None  # the last one; None: it stopped before the first
    notices: tuple[str, ...] = ()  # what may be otherwise than if it had not stopped


def read_run(folder: Path, *, fallback: bool = False) -> Interrupted:
    """What a run goes on from; hold the lock of its folder if that is to stay so.

    Args:
        folder: of the run.
        fallback: where the last checkpoint is damaged, set it aside and take the one before.

    Raises:
        DamagedCheckpoint: if the last checkpoint is damaged, without ``fallback``.
        ValueError: in one line, if it is no run's folder or the checkpoint cannot be used.
    """
    _require_run(folder)
    notices = []
    if fallback:
        aside = agent_store(folder).set_aside_damaged()
        notices += [f"damaged, set aside as {path}" for path in aside]
    if not agent_store(folder).numbers():
        return Interrupted(PPOConfig(**read_settings(folder / CONFIG_NAME)), None, tuple(notices))
    checkpoint, stored = load_stored(folder)
    if other := other_versions(stored.versions):
        notices.append(f"numbers can differ from those of a run that did not stop: {other}")
    return Interrupted(checkpoint.config, checkpoint, tuple(notices))


def resume(
    folder: Path,
    *,
    total_steps: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    fallback: bool = False,
    world: World | None = None,
) -> tuple[Trainer, tuple[str, ...]]:
    """A trainer that goes on with a run, and what there is to know about it.

    Args:
        folder: of the run.
        total_steps: train until so many environment steps; ``None``: as the run was to.
        threads: of torch, instead of those before.
        device: of torch, instead of that before.
        fallback: see :func:`read_run`.
        world: the processes that train together; all of them call this.

    Raises:
        RunComplete: if it has made all the steps it was to make.
        ValueError: as :func:`read_run` and :meth:`Trainer.resuming`; or if the run is in use.
    """
    _require_run(folder)
    world = world or World()
    lock = _claim(folder) if world.is_first else None
    try:
        if world.is_first:  # the others look at what it has left
            before = read_run(folder, fallback=fallback)
        world.wait()
        if not world.is_first:
            before = read_run(folder)
        changes: dict[str, Any] = {"total_steps": total_steps, "threads": threads, "device": device}
        config = replace(before.config, **{k: v for k, v in changes.items() if v is not None})
        _require_steps(folder, before.checkpoint, config.total_steps)
        trainer = Trainer.resuming(folder, config, before.checkpoint, world, lock)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return trainer, before.notices


def trainer_for(config: PPOConfig, folder: Path) -> Trainer:
    """A trainer of the run in ``folder``, which goes on if it was interrupted and begins otherwise.

    What is there and no beginning of a run with these settings is kept under another name.

    Raises:
        ValueError: as :func:`resume` and :class:`Trainer`.
    """
    if _is_run(folder):
        lock = _claim(folder)
        try:
            before = read_run(folder)
            if _same(before.config, config):
                return Trainer.resuming(folder, config, before.checkpoint, lock=lock)
        except BaseException:
            lock.release()
            raise
        lock.release()
    if not is_empty(folder):
        set_aside(folder)
    return Trainer(config, folder)


def device_of(folder: Path) -> str:
    """The device a run is trained on.

    Raises:
        ValueError: as :func:`read_run`.
    """
    _require_run(folder)
    path = folder / CONFIG_NAME
    config = PPOConfig(**read_settings(path)) if path.is_file() else read_run(folder).config
    return config.device


def _claim(folder: Path) -> FileLock:
    lock = claim_existing_run(folder)
    agent_store(folder).clear_remains()
    return lock


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file() or has_checkpoint(folder)


def _require_run(folder: Path) -> None:
    require_run_folder(folder)
    if not _is_run(folder):
        raise ValueError(f"{str(folder)!r} holds no {CONFIG_NAME}: not a run folder.")


def _require_steps(folder: Path, checkpoint: Checkpoint | None, total_steps: int) -> None:
    if checkpoint is not None and checkpoint.env_steps >= total_steps:
        raise RunComplete(
            f"the run in {str(folder)!r} is complete, with {checkpoint.env_steps} of "
            f"{total_steps} steps; to go on with it, give more --total-steps."
        )


def _same(before: PPOConfig, now: PPOConfig) -> bool:
    others, asked = asdict(before), asdict(now)
    return all(others[name] == asked[name] for name in asked if name not in WITHOUT_EFFECT)
