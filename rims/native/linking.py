"""Make machine code of a kernel and all it calls at once: that takes little more than half as long.

Numba optimises every function alone and makes machine code of it, then again inside each function
that calls it, and so on up to the entry. Of kernels only the entry is ever called from outside, so
what it calls waits here, as LLVM code, until the entry is put together.

Numba has no option for that: two of its internal functions are replaced while an entry is compiled.
If a version of it has other ones, compilation takes its time, and the results are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def at_once(entry: str) -> Iterator[None]:
    """Compile what a function calls as parts of it.

    Args:
        entry: ``__qualname__`` of that function. Those that are compiled for its sake can
            afterwards be called from what Numba compiles, and not from Python.
    """
    with global_compiler_lock:  # no other thread compiles meanwhile
        if not POSSIBLE:
            yield
            return
        create_library, get_executable = _Codegen.create_library, cpu.CPUContext.get_executable

        def create(self: Any, name: str, **options: Any) -> Any:
            make = create_library if name == entry else _Part
            return make(self, name, **options)

        def executable(self: Any, library: Any, fndesc: Any, env: Any) -> Any:
            if isinstance(library, _Part):
                return [].append  # Numba tells functions apart by this, a built-in one
            return get_executable(self, library, fndesc, env)

        _Codegen.create_library, cpu.CPUContext.get_executable = create, executable
        try:
            yield
        finally:
            _Codegen.create_library = create_library
            cpu.CPUContext.get_executable = get_executable
