"""Installed versions of the libraries that decide a run's numbers."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version

_OTHERS = ("torch", "numpy", "numba", "gymnasium", "minigrid", "envpool")
_LIBRARIES = ("rims-toolkit", *_OTHERS)

#: Top-level packages of these libraries.
PACKAGES = frozenset({"lab", "rims", "nfm", "envs", "agents", "experiments", "cli", *_OTHERS})


@functools.cache
def versions() -> dict[str, str]:
    """Versions by name; of Python too. What is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def other_versions(before: dict[str, str]) -> str:
    """Differences from ``before``, such as ``"torch 2.12.0, now 2.13.0"``; empty if none."""
    now = versions()
    return "; ".join(
        f"{name} {before.get(name, 'missing')}, now {now.get(name, 'missing')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )
