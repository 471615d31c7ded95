"""Resuming a run: what its folder holds, and a trainer that continues it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from agents.config import PPOConfig
from agents.learning.checkpoint import Checkpoint, agent_store, load_stored
from agents.learning.run_settings import notice_of_what_may_change, require_unedited
from agents.learning.train import Resumed, Trainer, check
from lab.disk.folder import (
    CONFIG_NAME,
    begin_writing,
    claim_existing_run,
    is_empty,
    require_plain_run,
    require_run_folder,
    set_aside,
)
from lab.disk.store import SET_ASIDE, has_checkpoint
from lab.disk.versions import other_versions
from lab.running.world import World


class RunComplete(ValueError):
    """There is nothing left to do in a run."""


class Interrupted(NamedTuple):
    """A run as it was left."""

    config: PPOConfig
    checkpoint: Checkpoint | None  # the last one; None: it stopped before the first
    notices: tuple[str, ...] = ()  # what may be otherwise than if it had not stopped


#: A trainer, and notices about its resumed run.
Prepared = tuple[Trainer, tuple[str, ...]]


def read_run(folder: Path, *, fallback: bool = False) -> Interrupted:
    """Read the state that a run resumes from; hold the folder's lock to keep it valid.

    Nothing is changed.

    Args:
        folder: the run's folder.
        fallback: where the last checkpoint is damaged, take the one before; it is to be set aside.

    Raises:
        DamagedCheckpoint: if the last checkpoint is damaged, without ``fallback``.
        ValueError: in one line, if it is no run's folder, the checkpoint cannot be used, or it was
            made with other settings than the folder says.
    """
    _require_run(folder)
    require_plain_run(folder)
    notices = []
    store = agent_store(folder)
    damaged = store.damaged() if fallback else []
    notices += [f"damaged, set aside as {store.manifest(n)}{SET_ASIDE}" for n in damaged]
    whole = [number for number in store.numbers() if number not in damaged]
    if not whole:
        settings = PPOConfig.read_some(folder / CONFIG_NAME)
        return Interrupted(PPOConfig(**settings), None, tuple(notices))
    checkpoint, stored = load_stored(folder, whole[-1])
    require_unedited(folder, checkpoint.config)
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
) -> Prepared:
    """A trainer that resumes a run, and notices about it.

    Args:
        folder: the run's folder.
        total_steps: new total of environment steps; ``None``: unchanged.
        threads: new number of torch's threads.
        device: new torch device.
        fallback: see :func:`read_run`.
        world: the processes that train together; all of them call this.

    Raises:
        RunComplete: if it has made all the steps it was to make.
        ValueError: as :func:`read_run` and :class:`Trainer`; or if the run is in use.
    """
    world = world or World()
    changes: dict[str, Any] = {"total_steps": total_steps, "threads": threads, "device": device}
    changes = {name: value for name, value in changes.items() if value is not None}

    def prepared(*, fallback: bool = False, lock: FileLock | None = None) -> Prepared:
        before = read_run(folder, fallback=fallback)
        config = replace(before.config, **changes)
        _require_steps(folder, before.checkpoint, config.total_steps)
        edited = notice_of_what_may_change(folder, before.config, changes.keys())
        notices = (*before.notices, edited) if edited else before.notices
        return Trainer(config, folder, world, Resumed(before.checkpoint, lock)), notices

    # All processes refuse together, before anything is written.
    prepared(fallback=fallback)
    world.wait()
    if not world.is_first:  # looks at what the first one has left
        world.wait()
        return prepared()
    lock = claim_existing_run(folder)
    try:
        found = prepared(fallback=fallback, lock=lock)  # the run may have gone on since
        _begin(folder, fallback=fallback)
        world.wait()
    except BaseException:
        lock.release()
        raise
    return found


def trainer_for(config: PPOConfig, folder: Path) -> Trainer:
    """A trainer of the run in ``folder``: resumes it if it was interrupted, begins it otherwise.

    What is there and no beginning of a run with these settings is kept under another name.

    Raises:
        ValueError: as :func:`resume` and :class:`Trainer`.
    """
    if _is_run(folder) and is_of(config, folder):
        lock = claim_existing_run(folder)
        try:
            before = read_run(folder)
            if _same(before.config, config):
                trainer = Trainer(config, folder, resumed=Resumed(before.checkpoint, lock))
                _begin(folder)
                return trainer
        except BaseException:
            lock.release()
            raise
        lock.release()
    check(config)  # before anything is renamed
    if not is_empty(folder):
        set_aside(folder)
    return Trainer(config, folder)


def device_of(folder: Path, *, fallback: bool = False) -> str:
    """The device a run is trained on.

    Raises:
        ValueError: as :func:`read_run`.
    """
    return read_run(folder, fallback=fallback).config.device


def _begin(folder: Path, *, fallback: bool = False) -> None:
    """Make the first changes in the locked folder of a run to resume."""
    begin_writing(folder)
    if fallback:
        agent_store(folder).set_aside_damaged()
    agent_store(folder).clear_remains()


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


def is_of(config: PPOConfig, folder: Path) -> bool:
    """Whether the run in ``folder`` has these settings, but for those without effect.

    Raises:
        ValueError: as :func:`read_run`.
    """
    return _same(read_run(folder).config, config)


def _same(before: PPOConfig, now: PPOConfig) -> bool:
    return not before.differences(now)
