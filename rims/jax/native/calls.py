"""Calls of a kernel by XLA: the arrays that go in and out, and where in its table they belong."""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rims.jax.native import handler
from rims.native.once import once
from rims.native.vectors import VECTOR_BYTES
from rims.scan.native import build
from rims.scan.native import table as e
from rims.scan.native.layout import Layout, lay_out, round_up
from rims.scan.problem import Rules


class Sizes(NamedTuple):
    """Sizes that determine the layout of a table."""

    batch: int
    hh: tuple[int, ...]  # (N, G d, d)
    keys: int  # M dk
    values: int  # M dv
    rules: Rules
    dtype: np.dtype[Any]

    @property
    def layout(self) -> Layout:
        """With a block for every thread of XLA's, or more."""
        n, gates, d = self.hh
        return lay_out(self.batch, (n, gates, d), *self[2:5], self.dtype.itemsize, _num_threads())

    def array(self, *shape: int) -> jax.ShapeDtypeStruct:
        """An array of such a shape to be written."""
        return unwritten(shape, self.dtype)


def unwritten(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An array that is not there yet."""
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


class Operand(NamedTuple):
    """An array for an entry of the table."""

    array: Array
    by_step: bool = False  # what the entry points to begins with the first step of the call


def call(
    kernel: str,
    sizes: Sizes,
    first: Any,
    length: int,
    operands: dict[str, Operand],
    results: dict[str, jax.ShapeDtypeStruct],
    updated: Sequence[str] = (),
) -> dict[str, Array]:
    """Run a kernel over ``length`` steps.

    Args:
        kernel: its name in :mod:`rims.scan.native.entry`.
        sizes: of the whole sequence.
        first: number of the first step, which may be traced.
        operands: by entry. An array that is not there has none.
        results: what the kernel writes, by entry.
        updated: operands that it changes, which makes them results too.

    Returns:
        The results by entry, and those ``updated``.
    """
    shapes = dict(results)
    for name in updated:
        shapes[name] = unwritten(operands[name].array.shape, operands[name].array.dtype)
    outputs, inputs = list(shapes), list(operands)
    places, bytes_ = _places(sizes.layout, kernel == "back")
    found = jax.ffi.ffi_call(
        _target(kernel, sizes.dtype == np.float64),
        [*shapes.values(), sizes.array(bytes_ // sizes.dtype.itemsize)],
        vmap_method="sequential",
        input_output_aliases={1 + inputs.index(name): outputs.index(name) for name in updated},
    )(
        jnp.asarray(first, jnp.int32),
        *(operand.array for operand in operands.values()),
        plan=_plan(sizes.layout, length, operands, outputs, places),
    )
    return dict(zip(outputs, found, strict=False))


def _plan(
    layout: Layout,
    length: int,
    operands: dict[str, Operand],
    results: list[str],
    scratch: list[tuple[int, int]],
) -> np.ndarray:
    """Numbers from which a handler builds the table; see :mod:`rims.jax.native.handler`."""
    entries = list(layout.entries)
    entries[e.INDEX["is_end"]] = 1  # every call gives the sums of its own steps
    flags = {"has_reset": "reset", "has_valid": "valid", "has_fresh": "fresh_h"}
    for name, array in flags.items():
        entries[e.INDEX[name]] = int(array in operands)
    entries[e.INDEX["last"]] = length
    header = {
        handler.SIZE: e.SIZE,
        handler.HELPERS: layout.sizes["groups"] - 1,
        handler.FIRST: e.INDEX["first"],
        handler.LAST: e.INDEX["last"],
        handler.NUM_SCRATCH: len(scratch),
    }
    places = [number for name, o in operands.items() for number in (e.INDEX[name], _stride(o))]
    places += [e.INDEX[name] for name in results]
    places += [number for place in scratch for number in place]
    ordered = [header[place] for place in range(handler.HEADER)]
    return np.array(ordered + entries + places, dtype=np.int64)


def _stride(operand: Operand) -> int:
    """Bytes of a step, where the kernel counts from the first one of the call."""
    array = operand.array
    return array.size // len(array) * array.dtype.itemsize if operand.by_step else 0


def _places(layout: Layout, is_back: bool) -> tuple[list[tuple[int, int]], int]:
    """Entries of scratch and where it lies in the job, behind all tables; bytes of the job."""
    tables = handler.TABLE + (1 + layout.sizes["groups"]) * e.SIZE  # the shared and one per group
    start = round_up(tables * 8, 64)
    places = [(index, start + offset) for index, offset in layout.scratch]
    start += round_up(layout.arena_bytes, 64)
    if is_back:
        places += [(index, start + offset) for index, offset in layout.held]
        start += round_up(layout.held_bytes, 64)
    return places, start


@once
def _target(kernel: str, double: bool) -> str:
    """The name XLA knows a kernel by; that of another machine or another version differs.

    For XLA keeps compiled programs, which have the layout of a table in them.
    """
    version = zlib.crc32(" ".join((*e.NAMES, str(handler.PLAN_VERSION))).encode())
    name = f"rims_{kernel}_{64 if double else 32}_{VECTOR_BYTES}_{version:08x}"
    address = handler.entering(build.code(kernel, double).address)
    capsule = jax.ffi.pycapsule(ctypes.c_void_p(address))  # type: ignore[no-untyped-call]
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return name


def _num_threads() -> int:
    """Threads of XLA's pool, one for each processor it may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
