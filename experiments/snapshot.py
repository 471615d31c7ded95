"""Saved state from which a run resumes exactly: weights, optimisers, random states, position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.configs.base import ExperimentConfig
from experiments.experiment import State
from lab.disk.folder import (
    CONFIG_NAME,
    claim_folder,
    is_empty,
    require_plain_run,
)
from lab.disk.manifest import is_finite_number
from lab.disk.store import CheckpointStore, Stored, has_checkpoint
from lab.running.guards import CannotSave, first_not_finite

KIND = "experiment"

Weights = dict[str, Tensor]


@dataclass(kw_only=True)
class Position:
    """The progress of a run, with its counts so far."""

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
    """The saved state of a run, besides the state that a step works on."""

    position: Position
    best: Weights | None = None  # those of ``position.best_epoch``
    data: str = ""  # :attr:`experiments.experiment.Experiment.data_identity`
    settings: Mapping[str, Any] | None = None  # of the run; ``None``: of an earlier version


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
    about = {
        "position": asdict(snapshot.position),
        "data": snapshot.data,
        "settings": snapshot.settings,
    }
    try:
        run_store(folder).save(snapshot.position.steps, content, about)
    except OSError as error:
        raise CannotSave(folder, error) from None


def load_snapshot(folder: Path, state: State, data: str) -> Snapshot:
    """Bring ``state`` and the global random state to where the last checkpoint was written.

    Args:
        folder: the run's folder.
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
    position = _position(stored)
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
        best = content["best"]
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):  # of torch, many lines
        raise ValueError(f"{stored.path}: does not fit this program's model of the task.") from None
    _require_finite(stored, state.model)
    return Snapshot(position, best, data, about.get("settings"))


def _position(stored: Stored) -> Position:
    """The saved position of a run, checked before it is used.

    Raises:
        ValueError: in one line, if it is none.
    """
    values = stored.about.get("position")
    names = {field.name for field in fields(Position)}
    if isinstance(values, dict) and values.keys() == names:
        counts = ("epoch", "step", "steps", "since_best", "summed")
        whole = all(type(values[name]) is int and 0 <= values[name] < 2**62 for name in counts)
        seconds = is_finite_number(values["seconds"]) and values["seconds"] >= 0
        best = values["best_value"] is None or is_finite_number(values["best_value"])
        epoch = values["best_epoch"] is None or type(values["best_epoch"]) is int
        sums = values["sums"]
        summed = isinstance(sums, dict) and all(is_finite_number(v) for v in sums.values())
        if whole and seconds and best and epoch and summed and values["steps"] == stored.number:
            return Position(**values)
    raise ValueError(f"{stored.path}: its manifest holds no position of a run.")


def _require_finite(stored: Stored, model: nn.Module) -> None:
    broken = first_not_finite(model.named_parameters())
    if broken is not None:
        raise ValueError(
            f"{stored.path}: its weights are not finite ({broken}); remove the folder of the run "
            "to train it again."
        )


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
    except (RuntimeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{stored.path}: does not fit this program's model of the task.") from None
    _require_finite(stored, model)


def judged_checkpoint(folder: Path) -> str | None:
    """The checksum of the last checkpoint of a run; ``None`` if no checkpoint is whole.

    Raises:
        ValueError: in one line, if it is of another program.
    """
    store = run_store(folder)
    numbers = store.numbers()
    manifest = store.about(numbers[-1]) if numbers else None
    return manifest.sha256 if manifest else None


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
            f"{str(folder)!r} is not empty and holds no run of this program; nothing was changed. "
            "Give another folder."
        )
    for name, (before, asked) in type(config).read(path).differences(config).items():
        raise ValueError(
            f"{str(folder)!r} was made with {name}={before!r}, now asked for {asked!r}. "
            "Give another folder, or the same settings."
        )
    _require_same_checkpoint(folder, config)


def _require_same_checkpoint(folder: Path, config: ExperimentConfig) -> None:
    """Refuse a folder whose ``config.toml`` was edited, or whose checkpoints are another run's."""
    store = run_store(folder)
    numbers = store.numbers()
    manifest = store.about(numbers[-1]) if numbers else None
    made_with = manifest.about.get("settings") if manifest else None
    if not isinstance(made_with, dict):
        return  # damaged, which is told when it is read; or of an earlier version
    for name, value in config.settings_with_effect().items():
        if name in made_with and made_with[name] != value:
            raise ValueError(
                f"{str(folder / CONFIG_NAME)!r} says {name}={value!r}; its checkpoint was made "
                f"with {made_with[name]!r}. Put that back, or give another folder."
            )


@contextmanager
def claimed_run(folder: Path, config: ExperimentConfig) -> Iterator[None]:
    """Hold the lock of a run's folder, which is new or holds a run with these settings.

    Raises:
        ValueError: in one line, if it is another's, in use or not writable.
    """
    require_same(folder, config)
    require_plain_run(folder)
    lock = claim_folder(folder)
    try:
        require_same(folder, config)  # another run may have begun since the first look
        run_store(folder).clear_remains()
        yield
    finally:
        lock.release()


def copy_of(scalars: Mapping[str, Any]) -> dict[str, float]:
    """Plain numbers of tensors or numbers."""
    return {name: float(value) for name, value in scalars.items()}
