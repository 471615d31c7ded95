"""Compile kernels on first use and keep the machine code on disk for other processes."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numba import cfunc, config, types

from rims.scan.native import entry
from rims.scan.native.table import as_table

#: Numba's settings are the process's: one thread at a time changes them.
_settings = threading.RLock()

_ENTRY = types.void(types.CPointer(types.int64))


@functools.cache
def address(name: str, double: bool) -> int:
    """Where the machine code of ``entry.<name>`` begins, for double or single precision."""
    return int(_compiled(name, double).address)


@functools.cache
def _compiled(name: str, double: bool) -> Any:
    function = _ENTRIES[name](np.float64(0) if double else np.float32(0), _sources())
    with _quickly():
        try:
            return cfunc(_ENTRY, cache=True)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return cfunc(_ENTRY)(function)  # nowhere to write: compiled anew in every process


@contextmanager
def _quickly() -> Iterator[None]:
    """Compile with few optimisations: the kernels spell vectors out, so the rest finds nothing."""
    with _settings:
        before = config.OPT, config.LOOP_VECTORIZE
        config.OPT, config.LOOP_VECTORIZE = type(config.OPT)(1), 0
        try:
            yield
        finally:
            config.OPT, config.LOOP_VECTORIZE = before


@functools.cache
def _sources() -> str:
    """A hash of the kernels: Numba itself notices only changes of the file compiled last."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# Numba finds machine code on disk by a function's name and what it closes over, hence the hash in
# each. The kernels have to be globals: closed over, they would look new in every process.
_forward, _back = entry.forward, entry.back


def _forward_entry(like: Any, sources: str) -> Callable[[Any], None]:
    def forward(table: Any) -> None:
        sources  # noqa: B018
        _forward(as_table(table, like))

    return forward


def _back_entry(like: Any, sources: str) -> Callable[[Any], None]:
    def back(table: Any) -> None:
        sources  # noqa: B018
        _back(as_table(table, like))

    return back


_ENTRIES = {"forward": _forward_entry, "back": _back_entry}
