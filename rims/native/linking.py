"""Make machine code of a kernel and all it calls at once: that takes little more than half as long.

Numba optimises every function alone and makes machine code of it, then again inside each function
that calls it, and so on up to the entry. Of kernels only the entry is ever called from outside, so
what it calls waits here, as LLVM code, until the entry is put together.

Numba has no option for that: two of its internal functions are replaced while an entry is compiled.
A version of it without functions of these names compiles as it does otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

from numba.core import codegen, cpu
from numba.core.compiler_lock import global_compiler_lock

_Library: Any = getattr(codegen, "JITCodeLibrary", object)
_Codegen: Any = getattr(codegen, "JITCPUCodegen", object)

#: Whether Numba works as this file supposes.
POSSIBLE = (
    hasattr(_Codegen, "create_library")
    and hasattr(cpu.CPUContext, "get_executable")
    and all(
        hasattr(_Library, name)
        for name in (
            "_optimize_final_module",
            "_finalize_final_module",
            "_finalize_dynamic_globals",
        )
    )
)


class _Part(_Library):
    """The LLVM code of a function, for those that call it."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


_create_library: Any = getattr(_Codegen, "create_library", None)
_get_executable: Any = getattr(cpu.CPUContext, "get_executable", None)


@contextmanager
def at_once(entry: str) -> Iterator[None]:
    """Compile what a function calls as parts of it.

    Args:
        entry: ``__qualname__`` of that function. Those that are compiled for its sake can
            afterwards be called from what Numba compiles, and not from Python.

    Raises:
        RuntimeError: inside another one: its entry would be a part of the other.
    """
    with global_compiler_lock:  # no other thread compiles meanwhile
        if not POSSIBLE:
            yield
            return
        if isinstance(vars(_Codegen).get("create_library"), partialmethod):
            raise RuntimeError("at_once: another entry is being compiled.")
        _Codegen.create_library = partialmethod(_create, entry)
        cpu.CPUContext.get_executable = _executable
        try:
            yield
        finally:
            _Codegen.create_library = _create_library
            cpu.CPUContext.get_executable = _get_executable


def _create(self: Any, entry: str, name: str, **options: Any) -> Any:
    make: Any = _create_library if name == entry else _Part
    return make(self, name, **options)


def _executable(self: Any, library: Any, fndesc: Any, env: Any) -> Any:
    if isinstance(library, _Part):
        # Numba tells functions apart by this, a built-in one; called from Python it raises.
        return [].remove
    return _get_executable(self, library, fndesc, env)
