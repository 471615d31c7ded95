"""Machine code of a function and of everything it calls, as one object that needs no others.

Numba makes machine code of every function alone and names it by a counter of the process. Objects
of two processes therefore share names for different functions, and what is loaded second would call
parts of what was loaded first. Here all parts stay LLVM code until the entry has been put together.
Then every name but the entry's becomes private, and machine code is made once. That is also faster:
Numba would optimise each function again inside each one that calls it.

Numba has no option for that: two of its internal functions are replaced while an entry is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

from numba import cfunc, config
from numba.core import codegen, cpu
from numba.core.compiler_lock import global_compiler_lock

#: What the entry is called in an object.
ENTRY = "entry"

_Library: Any = getattr(codegen, "JITCodeLibrary", object)
_Codegen: Any = getattr(codegen, "JITCPUCodegen", object)

#: Whether Numba works as this file supposes. If not, nothing is kept on disk.
POSSIBLE = (
    hasattr(_Codegen, "create_library")
    and hasattr(cpu.CPUContext, "get_executable")
    and all(
        hasattr(_Library, name)
        for name in (
            "_optimize_final_module",
            "_finalize_final_module",
            "_finalize_dynamic_globals",
            "has_dynamic_globals",
        )
    )
)


def object_code(signature: Any, function: Callable[..., Any]) -> bytes | None:
    """An object file with ``function`` as :data:`ENTRY`; None if it would need another object.

    Functions compiled with it can afterwards be called from code that Numba compiles, but not from
    Python.

    Raises:
        RuntimeError: while another thread or an outer call compiles.
    """
    if not POSSIBLE:
        return None
    with quickly(), _in_parts():
        entry: Any = cfunc(signature)(function)
        library: Any = entry._library
        module = _made_private(library._final_module, entry.native_name)
        _Library._optimize_final_module(library)
        module = library._final_module  # some versions replace it
        _number_parts(module)
        module.verify()
        if library.has_dynamic_globals or _needs_python(module):
            return None
        return bytes(library._codegen._tm.emit_object(module))


def _made_private(module: Any, entry: str) -> Any:
    for part in (*module.functions, *module.global_variables):
        if not part.is_declaration and part.name != entry:
            part.linkage = "internal"
    module.get_function(entry).name = ENTRY
    return module


def _number_parts(module: Any) -> None:
    """Give parts names that do not depend on what this process compiled before."""
    parts = (p for p in (*module.functions, *module.global_variables) if not p.is_declaration)
    for number, part in enumerate(part for part in parts if part.name != ENTRY):
        part.name = f"part{number}"


def _needs_python(module: Any) -> bool:
    """Whether it calls or reads something that exists in one process only."""
    outside = (*module.functions, *module.global_variables)
    return any(
        part.is_declaration and part.name.startswith(("numba", "NRT_", "Py", "_Py", "_ZN", "."))
        for part in outside
    )


@contextmanager
def quickly() -> Iterator[None]:
    """Compile with few optimisations: the kernels spell vectors out, so the rest finds nothing."""
    with global_compiler_lock:  # Numba's settings are the process's
        before = config.OPT, config.LOOP_VECTORIZE
        config.OPT, config.LOOP_VECTORIZE = type(config.OPT)(1), 0
        try:
            yield
        finally:
            config.OPT, config.LOOP_VECTORIZE = before


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
def _in_parts() -> Iterator[None]:
    """Compile everything as a part of the entry."""
    if isinstance(vars(_Codegen).get("create_library"), partialmethod):
        raise RuntimeError("object_code: another entry is being compiled.")
    _Codegen.create_library = partialmethod(_create)
    cpu.CPUContext.get_executable = _executable
    try:
        yield
    finally:
        _Codegen.create_library = _create_library
        cpu.CPUContext.get_executable = _get_executable


def _create(self: Any, name: str, **options: Any) -> Any:
    return _Part(self, name, **options)


def _executable(self: Any, library: Any, fndesc: Any, env: Any) -> Any:
    if isinstance(library, _Part):
        # Numba tells functions apart by this, a built-in one; called from Python it raises.
        return [].remove
    return _get_executable(self, library, fndesc, env)
