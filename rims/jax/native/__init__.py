"""A sequence by the machine code of :mod:`rims.scan.native`, which XLA calls on the CPU.

Importing this needs no Numba; importing its modules does.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import jax

from rims.native.once import once

_HAS_NUMBA = importlib.util.find_spec("numba") is not None


def is_available(double: bool) -> bool:
    """Whether computing on JAX's default device can go this way, in this precision."""
    device = jax.config.values["jax_default_device"]
    platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    return _HAS_NUMBA and platform == "cpu" and fault("forward", double) is None


@once
def fault(name: Literal["forward", "back"], double: bool) -> str | None:
    """Why a kernel cannot be used in this process; None if it can."""
    from rims.jax.native import selftest
    from rims.scan.native import selftest as kernels

    return kernels.fault(name, double) or selftest.fault()
