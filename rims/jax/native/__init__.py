"""A sequence by the machine code of :mod:`rims.scan.native`, which XLA calls on the CPU.

Importing this needs no Numba; importing its modules does.
"""

from __future__ import annotations

import importlib.util

import jax

_HAS_NUMBA = importlib.util.find_spec("numba") is not None


def is_available() -> bool:
    """Whether computing on JAX's default device can go this way."""
    device = jax.config.values["jax_default_device"]
    platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    return _HAS_NUMBA and platform == "cpu"
