"""Errors that end a run early, and checks that numbers are finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # watching the runs of others needs no torch
    from torch import Tensor


class RunStopped(RuntimeError):
    """A run cannot continue; one line says why and what to do. Its last checkpoint is unchanged."""


class NotFinite(RuntimeError):
    """A number that has to be finite is not; ``name`` says which."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is no longer finite")
        self.name = name


class TrainingError(RunStopped):
    """A number that has to be finite is not; the update it happened in is not saved."""

    def __init__(self, name: str, update: int) -> None:
        super().__init__(
            f"training stopped in update {update}: {name} is no longer finite. "
            "A smaller learning rate may help."
        )


class CannotSave(RunStopped):
    """A checkpoint cannot be written."""

    def __init__(self, folder: object, error: OSError) -> None:
        super().__init__(
            f"no checkpoint can be written to {str(folder)!r} ({error.strerror or error}). Make "
            "room, or writable what is not, and resume the run."
        )


def first_not_finite(named: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """The name of the first tensor with a value that is not finite; ``None`` if all are.

    Example:
        >>> import torch
        >>> first_not_finite([("a", torch.ones(2)), ("b", torch.tensor([1.0, torch.nan]))])
        'b'
    """
    for name, tensor in named:
        if tensor is not None and not bool(tensor.isfinite().all()):
            return name
    return None
