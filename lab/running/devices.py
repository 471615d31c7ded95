"""Torch devices: which exist, and which one a process uses."""

from __future__ import annotations

import torch

from lab.running.ranks import launched, processes_here
from lab.settings import ConfigError


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
    """Refuse a run whose processes on this machine outnumber its devices.

    Args:
        name: the device in the run's settings.

    Raises:
        ValueError: in one line.
    """
    here = processes_here(launched()[1])
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
