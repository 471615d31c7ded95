"""A sequence by the machine code of :mod:`rims.scan.native`, which XLA calls on the CPU.

Importing this needs no Numba; importing its modules does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import jax

from rims.native.once import once

_HAS_NUMBA = importlib.util.find_spec("numba") is not None


class _Setting:
    """Whether sequences that are traced now may go this way."""

    on = True


@contextmanager
def left_out() -> Iterator[None]:
    """What is traced inside is computed as where there is no Numba."""
    _Setting.on = False
    try:
        yield
    finally:
        _Setting.on = True


def is_available(double: bool) -> bool:
    """Whether computing on JAX's default device can go this way, in this precision."""
    device = jax.config.values["jax_default_device"]
    platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    there = _HAS_NUMBA and _Setting.on
    return there and platform == "cpu" and fault("forward", double) is None


@once
def fault(name: Literal["forward", "back"], double: bool) -> str | None:
    """Why a kernel cannot be used in this process; None if it can."""
    from rims.jax.native import selftest
    from rims.scan.native import selftest as kernels

    return kernels.fault(name, double) or selftest.fault()
