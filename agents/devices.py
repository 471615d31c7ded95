"""Torch devices: which there are, which of them a process uses, and what the machine holds."""

from __future__ import annotations

import math
import os

import torch

from agents.config import ConfigError
from agents.ranks import launched


def usable_device(name: str) -> torch.device:
    """The torch device called ``name``.

    Raises:
        ValueError: if there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        torch.Generator(device)  # actions are sampled there
    except (RuntimeError, AssertionError):  # torch asserts when built without CUDA
        raise ConfigError("device", f"{name!r} cannot be used here; 'cpu' always can.") from None
    return device


def require_devices(name: str) -> None:
    """See that every process on this machine has the device that is its own.

    Args:
        name: of the run's settings.

    Raises:
        ValueError: in one line, if not.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched()[1] > 1 else 1
    if name == "cuda" and here > 1:
        for rank in range(here):
            usable_device(f"cuda:{rank}")
    elif name.startswith("cuda:") and here > 1:
        rule = (
            f"{name!r} cannot be shared by {here} processes; give 'cuda', so that each has its own."
        )
        raise ConfigError("device", rule)
    else:
        usable_device(name)


def physical_memory() -> float:
    """Bytes of memory of this machine; infinity where the system does not say."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return math.inf
    return size if size > 0 else math.inf  # it says -1 for what it does not know
