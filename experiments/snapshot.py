"""What a run needs to go on exactly where it was: weights, optimisers, random states, position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agents.checkpoint_store import CheckpointStore, has_checkpoint
from agents.guards import CannotSave
from agents.run_folder import (
    CONFIG_NAME,
    is_empty,
    lock_folder,
    require_writable,
    sweep_unfinished,
)
from experiments.config import ExperimentConfig, read_config
from experiments.experiment import State

KIND = "experiment"

Weights = dict[str, Tensor]


@dataclass(kw_only=True)
class Position:
    """How far a run is, and what it has counted so far."""

    epoch: int = 0  # complete ones
    step: int = 0  # of the epoch
    steps: int = 0  # of all epochs
    seconds: float = 0.0  # spent in training steps
    best_value: float | None = None
    best_epoch: int | None = None
    since_best: int = 0  # evaluations that were not better
    sums: dict[str, float] = field(default_factory=dict)  # of scalars, since the last row
    summed: int = 0  # steps


class Snapshot(NamedTuple):
    """What a run goes on from, besides the state it works on."""

    position: Position
    best: Weights | None = None  # those of ``position.best_epoch``
    data: str = ""  # :attr:`experiments.experiment.Experiment.data_identity`


def run_store(folder: Path) -> CheckpointStore:
    """The checkpoints of the run in ``folder``."""
    return CheckpointStore(folder, KIND)


def save_snapshot(folder: Path, state: State, snapshot: Snapshot) -> None:
    """Write a checkpoint, whole or not at all.

    The best weights stand in it, not beside it, so that they never disagree with the position.

    Raises:
        CannotSave: if it cannot be written.
    """
    content = {
        "best": snapshot.best,
        "model": state.model.state_dict(),
        "optimizers": {name: o.state_dict() for name, o in state.optimizers.items()},
        "generator": state.generator.get_state(),
        "carried": state.carried,
        "random": torch.get_rng_state(),
    }
    if state.generator.device.type == "cuda":
        content["random_cuda"] = torch.cuda.get_rng_state(state.generator.device)
    about = {"position": asdict(snapshot.position), "data": snapshot.data}
    try:
        run_store(folder).save(snapshot.position.steps, content, about)
    except OSError as error:
        raise CannotSave(folder, error) from None


def load_snapshot(folder: Path, state: State, data: str) -> Snapshot:
    """Bring ``state`` and the global random state to where the last checkpoint was written.

    Args:
        folder: of the run.
        state: is changed.
        data: the identity of the data there are now.

    Returns:
        The snapshot, of a run that has not begun if there is no checkpoint.

    Raises:
        ValueError: in one line, if it cannot be used or the run was made with other data.
    """
    if not has_checkpoint(folder):
        return Snapshot(Position(), data=data)
    stored = run_store(folder).load()
    content, about = stored.tensors, stored.about
    before = about.get("data")
    if before != data:
        raise ValueError(
            f"{str(folder)!r} was made with other data ({before}) than there are now ({data}). "
            "Give another folder, or the same data."
        )
    try:
        state.model.load_state_dict(content["model"])
        for name, optimizer in state.optimizers.items():
            optimizer.load_state_dict(content["optimizers"][name])
        state.generator.set_state(content["generator"])
        device = state.generator.device
        state.carried = tuple(part.to(device) for part in content["carried"])
        torch.set_rng_state(content["random"])
        if "random_cuda" in content and device.type == "cuda":
            torch.cuda.set_rng_state(content["random_cuda"], device)
        return Snapshot(Position(**about["position"]), content["best"], data)
    except (RuntimeError, ValueError, TypeError, KeyError):  # the first of torch, many lines long
        raise ValueError(f"{stored.path}: does not fit this program's model of the task.") from None


def weights_of(model: nn.Module) -> Weights:
    """A copy of all that is learned."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def load_weights(folder: Path, model: nn.Module) -> None:
    """Give ``model`` the weights by which a finished run was judged.

    Raises:
        ValueError: in one line, if there are none or they do not fit.
    """
    stored = run_store(folder).load()
    content = stored.tensors
    try:
        best = content["best"]
        model.load_state_dict(content["model"] if best is None else best)
    except (RuntimeError, KeyError):
        raise ValueError(f"{stored.path}: does not fit this program's model of the task.") from None


def require_same(folder: Path, config: ExperimentConfig) -> None:
    """Refuse a folder that holds anything but a run with these settings.

    Raises:
        ValueError: in one line, naming a setting that differs.
    """
    if (folder.is_dir() and is_empty(folder)) or not folder.exists():
        return
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ValueError(
            f"{str(folder)!r} is no run of this program and not empty; nothing was changed. "
            "Give another folder."
        )
    for name, (before, asked) in read_config(path, type(config)).differences(config).items():
        raise ValueError(
            f"{str(folder)!r} was made with {name}={before!r}, now asked for {asked!r}. "
            "Give another folder, or the same settings."
        )


@contextmanager
def claimed_run(folder: Path, config: ExperimentConfig) -> Iterator[None]:
    """Hold the lock of a run's folder, which is new or holds a run with these settings.

    Raises:
        ValueError: in one line, if it is another's, in use or not writable.
    """
    require_same(folder, config)
    require_writable(folder)
    lock = lock_folder(folder)
    try:
        require_same(folder, config)  # another run may have begun since the first look
        sweep_unfinished(folder)
        run_store(folder).clear_remains()
        yield
    finally:
        lock.release()


def copy_of(scalars: Mapping[str, Any]) -> dict[str, float]:
    """Plain numbers of tensors or numbers."""
    return {name: float(value) for name, value in scalars.items()}
