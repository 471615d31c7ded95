"""Saving and loading agents: one file, written whole or not at all, free of pickled code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents.config import CoreImportError, PPOConfig
from agents.policy import RecurrentActorCritic
from agents.tensor_file import load_tensors, save_tensors

CHECKPOINT_NAME = "checkpoint.pt"
FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An agent and how far its training came."""

    config: PPOConfig
    num_actions: int
    read_mission: bool
    backend: str  # that ran the environments
    env_steps: int
    updates: int
    policy: dict[str, Any]
    optimizer: dict[str, Any]

    def make_policy(self, device: str = "cpu") -> RecurrentActorCritic:
        """The agent, with its architecture and weights."""
        policy = RecurrentActorCritic(self.config, self.num_actions, read_mission=self.read_mission)
        policy.load_state_dict(self.policy)
        return policy.to(device).eval()


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/checkpoint.pt``. A crash at any moment leaves the previous file intact."""
    path = folder / CHECKPOINT_NAME
    content = {f: getattr(checkpoint, f) for f in checkpoint.__dataclass_fields__}
    content["config"] = asdict(checkpoint.config)
    save_tensors(path, content, FORMAT_VERSION)
    return path


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint of a run folder.

    Nothing in the file is executed. An agent whose core was given by import path has only the
    path in it: the class is imported by that name from the user's own code.

    Raises:
        ValueError: in one line, if the folder or file is missing, damaged or of another format,
            or the module of its core cannot be imported.
    """
    if not folder.is_dir():
        raise ValueError(f"run folder {str(folder)!r} does not exist; 'rims train' makes one.")
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        raise ValueError(
            f"{str(folder)!r} holds no {CHECKPOINT_NAME}: not a run folder, or its training "
            "stopped before the first checkpoint."
        )
    content = load_tensors(path, FORMAT_VERSION)
    try:
        checkpoint = Checkpoint(**{**content, "config": PPOConfig(**content["config"])})
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
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a complete checkpoint ({error}).") from None
    return checkpoint


def is_trained(folder: Path, total_steps: int) -> bool:
    """Whether a run folder holds an agent that was trained for ``total_steps``.

    Raises:
        ValueError: as :func:`load_checkpoint`, for a checkpoint that cannot be used.
    """
    return (folder / CHECKPOINT_NAME).is_file() and load_checkpoint(folder).env_steps >= total_steps
