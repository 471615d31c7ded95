"""What a run needs to go on exactly where it was: weights, optimisers, random states, position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agents.run_folder import (
    CONFIG_NAME,
    LOCK_NAME,
    is_empty,
    lock_folder,
    require_writable,
)
from agents.tensor_file import load_tensors, save_tensors
from experiments.config import ExperimentConfig, read_config
from experiments.experiment import State

CHECKPOINT_NAME = "checkpoint.pt"
FORMAT_VERSION = 1

#: Of runs that began before the best weights stood in the checkpoint; only read.
BEST_NAME = "best.pt"

Weights = dict[str, Tensor]

_UNFINISHED = ".tmp"
_NO_WORK = (LOCK_NAME, ".writable")  # what may be left of a run that has not begun


@dataclass(kw_only=True)
class Position:
    """How far a run is, and what it has counted so far."""

    epoch: int = 0  # complete ones
    step: int = 0  # of the epoch
    steps: int = 0  # of all epochs
    rows: int = 0  # of progress.csv
    seconds: float = 0.0  # spent in training steps
    best_value: float | None = None
    best_epoch: int | None = None
    sums: dict[str, float] = field(default_factory=dict)  # of scalars, since the last row
    summed: int = 0  # steps


class Snapshot(NamedTuple):
    """What a run goes on from, besides the state it works on."""

    position: Position
    best: Weights | None = None  # those of ``position.best_epoch``
    data: str = ""  # :attr:`experiments.experiment.Experiment.data_identity`


def save_snapshot(folder: Path, state: State, snapshot: Snapshot) -> None:
    """Write ``checkpoint.pt``, whole or not at all.

    The best weights stand in it, not beside it, so that they never disagree with the position.
    """
    content = {
        "position": asdict(snapshot.position),
        "best": snapshot.best,
        "data": snapshot.data,
        "model": state.model.state_dict(),
        "optimizers": {name: o.state_dict() for name, o in state.optimizers.items()},
        "generator": state.generator.get_state(),
        "random": torch.get_rng_state(),
    }
    if state.generator.device.type == "cuda":
        content["random_cuda"] = torch.cuda.get_rng_state(state.generator.device)
    save_tensors(folder / CHECKPOINT_NAME, content, FORMAT_VERSION)
    (folder / BEST_NAME).unlink(missing_ok=True)


def load_snapshot(folder: Path, state: State, data: str) -> Snapshot:
    """Bring ``state`` and the global random state to where ``checkpoint.pt`` was written.

    Args:
        folder: of the run.
        state: is changed.
        data: the identity of the data there are now.

    Returns:
        The snapshot, of a run that has not begun if there is no checkpoint.

    Raises:
        ValueError: in one line, if the file cannot be used or the run was made with other data.
    """
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        return Snapshot(Position(), data=data)
    content = load_tensors(path, FORMAT_VERSION)
    before = content.get("data", data)  # a run of an earlier version does not know
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
        torch.set_rng_state(content["random"])
        if "random_cuda" in content and state.generator.device.type == "cuda":
            torch.cuda.set_rng_state(content["random_cuda"], state.generator.device)
        position = Position(**content["position"])
    except (RuntimeError, ValueError, TypeError, KeyError):  # the first of torch, many lines long
        raise ValueError(f"{path}: does not fit this program's model of the task.") from None
    best, position.best_epoch = _best(folder, content)
    return Snapshot(position, best, data)


def _best(folder: Path, content: Mapping[str, Any]) -> tuple[Weights | None, int | None]:
    """The best weights of a checkpoint and their epoch, if there are any yet."""
    epoch: int | None = content["position"]["best_epoch"]
    if "best" in content or epoch is None:
        return content.get("best"), epoch
    # An earlier version wrote them beside it, at another moment: the epoch there is the true one.
    beside = load_tensors(folder / BEST_NAME, FORMAT_VERSION)
    return beside["model"], beside["epoch"]


def weights_of(model: nn.Module) -> Weights:
    """A copy of all that is learned."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def load_weights(folder: Path, model: nn.Module) -> None:
    """Give ``model`` the weights by which a finished run was judged.

    Raises:
        ValueError: in one line, if there are none or they do not fit.
    """
    path = folder / CHECKPOINT_NAME
    content = load_tensors(path, FORMAT_VERSION)
    try:
        best, _ = _best(folder, content)
        model.load_state_dict(content["model"] if best is None else best)
    except (RuntimeError, KeyError):
        raise ValueError(f"{path}: does not fit this program's model of the task.") from None


def require_same(folder: Path, config: ExperimentConfig) -> None:
    """Refuse a folder that holds anything but a run with these settings.

    Raises:
        ValueError: in one line, naming a setting that differs.
    """
    if not folder.exists() or _holds_no_work(folder):
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


def _holds_no_work(folder: Path) -> bool:
    return folder.is_dir() and all(
        path.name in _NO_WORK or path.name.endswith(_UNFINISHED) for path in folder.iterdir()
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
        if not is_empty(folder):
            for path in folder.glob(f"*{_UNFINISHED}"):  # of a process that was killed
                path.unlink()
        yield
    finally:
        lock.release()


def copy_of(scalars: Mapping[str, Any]) -> dict[str, float]:
    """Plain numbers of tensors or numbers."""
    return {name: float(value) for name, value in scalars.items()}
