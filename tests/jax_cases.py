"""What the tests of :mod:`rims.jax` share: arrays of both libraries and what a layer computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import Array
from torch import Tensor

from rims.jax import xla

#: Compiling takes most of the time here, and how fast the code is does not matter.
_QUICKLY = {"xla_backend_optimization_level": 0}

both_ways = pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit mode, for one test."""
    with jax.enable_x64():
        yield


def quick_jit(function: Callable[..., Any]) -> Any:
    return jax.jit(function, compiler_options=_QUICKLY)


def to_jax(tensor: Tensor) -> Array:
    return jnp.array(tensor.detach().numpy())


def to_numpy(array: Any) -> np.ndarray:
    return np.asarray(array.detach() if isinstance(array, Tensor) else array)


def assert_near(got: Any, expected: Any, *, tolerance: float = 1e-9) -> None:
    """As :func:`tolerances.assert_near`; with 1e-5 for a dozen terms in single precision, some
    steps in a row."""
    np.testing.assert_allclose(to_numpy(got), to_numpy(expected), rtol=tolerance, atol=tolerance)


def flat(part: Any) -> list[Any]:
    """h_n or (h_n, c_n), stacked or a tuple per layer, as a list."""
    return [one for p in part for one in flat(p)] if isinstance(part, tuple) else [part]


@contextmanager
def chunks_of(rows: int) -> Iterator[None]:
    """So that a short sequence has several chunks."""
    with patch.object(xla, "CHUNK_ROWS", rows):
        yield


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)
