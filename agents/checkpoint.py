"""Saving and loading agents, and what their training needs to go on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from agents.checkpoint_store import CheckpointStore, Stored, has_checkpoint
from agents.config import CoreImportError, PPOConfig
from agents.policy import RecurrentActorCritic
from agents.run_folder import require_run_folder
from envs import STOCK_VIEW, BackendName, View

KIND = "agent"

#: What of a checkpoint is tensors; all else stands in its manifest.
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
    #: What else the run goes on from, as :class:`agents.train.Trainer` fills it; may be empty.
    training: dict[str, Any]
    #: Mean return of the latest episodes, by which the best checkpoint is known; None: not known.
    score: float | None = None
    #: What the agent can see. Checkpoints written before it was saved are all of the usual view.
    view: View = STOCK_VIEW

    def make_policy(self, device: str = "cpu") -> RecurrentActorCritic:
        """The agent, with its architecture and weights."""
        policy = RecurrentActorCritic(
            self.config, self.num_actions, read_mission=self.read_mission, view=self.view
        )
        policy.load_state_dict(self.policy)
        return policy.to(device).eval()


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
    about = {**fields, "config": asdict(checkpoint.config)}
    return agent_store(folder).save(checkpoint.updates, tensors, about, score=score)


def load_checkpoint(folder: Path, which: str | int = "last") -> Checkpoint:
    """Read a checkpoint of the run in ``folder``.

    Nothing in it is executed. An agent whose core was given by import path has only the
    path in it: the class is imported by that name from the user's own code.

    Args:
        folder: of the run.
        which: ``"last"``, ``"best"``, that with the highest mean return of the latest episodes, or
            the number of an update.

    Raises:
        DamagedCheckpoint: in one line, if it is not as it was written.
        ValueError: in one line, if the folder or checkpoint is missing or of another format, or the
            module of its core cannot be imported.
    """
    return load_stored(folder, which)[0]


def load_stored(folder: Path, which: str | int = "last") -> tuple[Checkpoint, Stored]:
    """As :func:`load_checkpoint`, with the file it was read from."""
    require_run_folder(folder)
    stored = agent_store(folder).load(which)
    path = stored.path
    try:
        checkpoint = _unpacked({**stored.about, **stored.tensors, "score": stored.score})
        checkpoint.make_policy()
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
    return checkpoint, stored


def _unpacked(content: dict[str, Any]) -> Checkpoint:
    kinds = {"num_actions": int, "read_mission": bool, "env_steps": int, "updates": int}
    for name, kind in kinds.items():
        if type(content[name]) is not kind:
            raise TypeError(f"{name} must be of type {kind.__name__}")
    if content["backend"] not in get_args(BackendName):
        raise TypeError(f"unknown backend {content['backend']!r}")
    view = View.parse(content.get("view", STOCK_VIEW))
    return Checkpoint(**{**content, "view": view, "config": PPOConfig(**content["config"])})


def is_trained(folder: Path, total_steps: int) -> bool:
    """Whether a run folder holds an agent that was trained for ``total_steps``.

    Raises:
        ValueError: as :func:`load_checkpoint`, for a checkpoint that cannot be used.
    """
    return has_checkpoint(folder) and load_checkpoint(folder).env_steps >= total_steps
