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

from rims.native.linking import at_once

#: Numba's settings are the process's: one thread at a time changes them.
_settings = threading.RLock()

_ENTRY = types.void(types.CPointer(types.int64))

#: Makes what threads enter, a function of a table's address, from a number of the type computed in
#: and a hash of all sources. Numba finds machine code on disk by a function's name and what it
#: closes over, hence the hash in each. The kernels have to be globals of the maker's file: closed
#: over, they would look new in every process.
Maker = Callable[[Any, str], Callable[[Any], None]]


def compiled(make: Maker, double: bool, folder: Path) -> Any:
    """What ``make`` makes as machine code, for double or single precision.

    Args:
        make: see :data:`Maker`.
        double: the precision.
        folder: where the kernels are written. Those of this package count too.
    """
    return cached(_ENTRY, make(np.float64(0) if double else np.float32(0), _sources(folder)))


def cached(signature: Any, function: Callable[..., Any]) -> Any:
    """``function`` as machine code, kept on disk where that can be written."""
    with _quickly(), at_once(function.__qualname__):
        try:
            return cfunc(signature, cache=True)(function)
        except OSError:  # no room on the disk
            pass
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
        return cfunc(signature)(function)  # nowhere to write: compiled anew in every process


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
def _sources(folder: Path) -> str:
    """A hash of the kernels: Numba itself notices only changes of the file compiled last."""
    files = [*sorted(Path(__file__).parent.glob("*.py")), *sorted(folder.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
