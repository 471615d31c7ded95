"""Saving and loading agents, with the state that their training resumes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from agents.config import PPOConfig
from agents.model.policy import RecurrentActorCritic
from envs import STOCK_VIEW, ActionSpace, AnyView, BackendName, Layout, parse_view
from lab.cores import CoreImportError
from lab.disk.folder import require_run_folder
from lab.disk.manifest import is_finite_number
from lab.disk.store import CheckpointStore, Stored, has_checkpoint
from lab.running.guards import first_not_finite

KIND = "agent"

#: Parts of a checkpoint that are tensors; all others are in its manifest.
_TENSORS = ("policy", "optimizer", "training")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An agent and how far its training came."""

    config: PPOConfig
    num_actions: int
    read_mission: bool
    backend: BackendName  # that ran the environments
    env_steps: int
    updates: int
    policy: dict[str, Any]
    optimizer: dict[str, Any]
    #: Further state of the run (:mod:`agents.learning.session`); may be empty.
    training: dict[str, Any]
    #: Mean return of the latest episodes, by which the best checkpoint is known; None: not known.
    score: float | None = None
    #: The agent's view. Checkpoints written before it was saved all have the usual view.
    view: AnyView = STOCK_VIEW
    #: The space of actions; None: of ``num_actions`` single ones.
    action_space: ActionSpace | None = None

    @property
    def space(self) -> ActionSpace:
        """The space of actions."""
        return self.action_space or ActionSpace.discrete(self.num_actions)

    def make_policy(self, device: str = "cpu") -> RecurrentActorCritic:
        """The agent, with its architecture and weights."""
        policy = self.new_policy()
        policy.load_state_dict(self.policy)
        return policy.to(device).eval()

    def new_policy(self) -> RecurrentActorCritic:
        """An agent of its architecture, with new weights."""
        return RecurrentActorCritic(
            self.config, self.space, read_mission=self.read_mission, view=self.view
        )


def agent_store(folder: Path) -> CheckpointStore:
    """The checkpoints of the run in ``folder``."""
    return CheckpointStore(folder, KIND)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint of the run in ``folder``. A crash at any moment leaves those before.

    Returns:
        The path of its tensors.

    Raises:
        OSError: if it cannot be written.
    """
    fields = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
    tensors = {name: fields.pop(name) for name in _TENSORS}
    score = fields.pop("score")
    space, view = fields.pop("action_space"), fields.pop("view")
    about = {
        **fields,
        "view": view._asdict() if isinstance(view, Layout) else view,
        "config": asdict(checkpoint.config),
    }
    if space is not None and space.kind != "discrete":
        about["action_space"] = space._asdict()
    return agent_store(folder).save(checkpoint.updates, tensors, about, score=score)


def load_checkpoint(folder: Path, which: str | int = "last") -> Checkpoint:
    """Read a checkpoint of the run in ``folder``.

    Nothing in it is executed. An agent whose core was given by import path has only the
    path in it: the class is imported by that name from the user's own code.

    Args:
        folder: the run's folder.
        which: ``"last"``, ``"best"``, that with the highest mean return of the latest episodes, or
            the number of an update.

    Raises:
        DamagedCheckpoint: in one line, if it is not as it was written.
        ValueError: in one line, if the folder or checkpoint is missing or of another format, the
            module of its core cannot be imported, or a weight is not finite.
    """
    return load_stored(folder, which)[0]


def load_stored(folder: Path, which: str | int = "last") -> tuple[Checkpoint, Stored]:
    """Load a checkpoint as :func:`load_checkpoint` does, with the file it was read from."""
    require_run_folder(folder)
    stored = agent_store(folder).load(which)
    path = stored.path
    try:
        checkpoint = _unpacked(stored)
        broken = first_not_finite(checkpoint.make_policy().named_parameters())
    except RuntimeError:  # of torch, many lines long
        raise ValueError(f"{path}: its weights do not fit the agent it describes.") from None
    except CoreImportError as error:
        raise ValueError(
            f"{path}: {error} Make module {error.module!r} importable: call from the folder it is "
            "in, or put that on PYTHONPATH."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not a complete checkpoint ({error}).") from None
    if broken is not None:
        raise ValueError(
            f"{path}: its weights are not finite ({broken}), so the agent cannot act; take another "
            "checkpoint, or train again."
        )
    return checkpoint, stored


def _unpacked(stored: Stored) -> Checkpoint:
    """A checkpoint, of which everything is seen to be what it has to be before it is used."""
    content = {**stored.about, **stored.tensors}
    for name, (rule, holds) in _RULES.items():
        if not holds(content[name]):
            raise TypeError(f"{name} must be {rule}")
    if content["updates"] != stored.number:
        raise TypeError(f"updates must be {stored.number}, the number of the checkpoint")
    for name, value in content["training"].items():
        rule, holds = _TRAINING_RULES.get(name, _ANYTHING)
        if not holds(value):
            raise TypeError(f"training's {name} must be {rule}")
    parsed = {
        "config": PPOConfig(**content["config"]),
        "view": parse_view(content.get("view", STOCK_VIEW)),
        "action_space": _parse_space(content.get("action_space"), content["num_actions"]),
        "score": stored.score,
    }
    checkpoint = Checkpoint(**{**content, **parsed})
    _require_fitting(checkpoint)
    return checkpoint


def _parse_space(value: Any, num_actions: int) -> ActionSpace | None:
    if value is None:
        return None
    space = ActionSpace.parse(value)
    if space.length != num_actions:
        raise TypeError(f"action_space must be of {num_actions} components; got {value!r}")
    return space


def _require_fitting(checkpoint: Checkpoint) -> None:
    """Refuse weights that do not have the shapes of the agent, before memory is taken for it.

    Raises:
        ValueError: in one line.
    """
    try:
        with torch.device("meta"):
            agent = checkpoint.new_policy()
    except (RuntimeError, NotImplementedError):
        if ":" in checkpoint.config.core:
            return  # somebody's own core may need real numbers
        raise
    shapes = {
        name: torch.empty_like(part, device="meta") for name, part in checkpoint.policy.items()
    }
    try:
        agent.load_state_dict(shapes)  # which knows the names of former versions
    except RuntimeError:  # of torch, many lines long
        raise ValueError("its weights do not fit the agent it describes.") from None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_named_tensors(value: object) -> bool:
    return isinstance(value, dict) and all(
        type(name) is str and isinstance(part, torch.Tensor) for name, part in value.items()
    )


Rule = tuple[str, Callable[[Any], bool]]

#: The rule of each part of a checkpoint, in words and as a check.
_RULES: dict[str, Rule] = {
    "config": ("settings", lambda v: isinstance(v, dict)),
    # A checkpoint holds actions as bytes.
    "num_actions": ("in [1, 256]", lambda v: type(v) is int and 1 <= v <= 256),
    "read_mission": ("true or false", lambda v: type(v) is bool),
    "backend": ("a backend", lambda v: v in get_args(BackendName)),
    "env_steps": ("a count", _is_count),
    "updates": ("a count", _is_count),
    "policy": ("tensors by name", _is_named_tensors),
    "optimizer": ("a state", lambda v: isinstance(v, dict)),
    "training": ("a state", lambda v: isinstance(v, dict)),
}

#: The rules of the training state, where it is there.
_TRAINING_RULES: dict[str, Rule] = {
    "seconds": ("a finite number", lambda v: is_finite_number(v) and v >= 0),
    "core_state": (
        "tensors",
        lambda v: isinstance(v, list) and all(isinstance(part, torch.Tensor) for part in v),
    ),
    "actions": ("a tensor", lambda v: isinstance(v, torch.Tensor)),
    "seen": ("tensors by name", _is_named_tensors),
    "recent_episodes": ("a tensor", lambda v: isinstance(v, torch.Tensor)),
    "random": ("tensors by name", _is_named_tensors),
}

_ANYTHING: Rule = ("", lambda _: True)


def is_trained(folder: Path, total_steps: int) -> bool:
    """Whether a run folder holds an agent that was trained for ``total_steps``.

    Raises:
        ValueError: as :func:`load_checkpoint`, for a checkpoint that cannot be used.
    """
    return has_checkpoint(folder) and load_checkpoint(folder).env_steps >= total_steps
