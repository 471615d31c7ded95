"""Kernels as machine code: compiled on first use, kept on disk for other processes."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import multiprocessing
import platform
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding
from numba import cfunc, config, types
from numba.core.registry import cpu_target

from rims.native import compiler, store

_ENTRY = types.void(types.CPointer(types.int64))

#: Makes the function that threads enter, of a table's address, from a number of the compute type.
Maker = Callable[[Any], Callable[[Any], None]]


class Code(NamedTuple):
    """A function in machine code."""

    address: int
    path: Path | None  # the file it is kept in; None if it is kept in none


def compiled(make: Maker, double: bool, folder: Path) -> Code:
    """The result of ``make`` as machine code, for double or single precision.

    Args:
        make: see :data:`Maker`.
        double: the precision.
        folder: of the kernels' source. This package counts too.
    """
    function = make(np.float64(0) if double else np.float32(0))
    name = f"{folder.parent.name}-{function.__name__}-{64 if double else 32}"
    return machine_code(name, _ENTRY, function, folder)


#: Owners of machine code. None is freed: a thread may run it, or a library have its address.
_alive: list[Any] = []


def machine_code(name: str, signature: Any, function: Callable[..., Any], folder: Path) -> Code:
    """``function`` as machine code, from disk if it is there; every call loads it anew.

    Args:
        name: of its file, for people. It and ``folder`` say which function it is.
        signature: Numba's, of the function.
        function: what Numba can compile.
        folder: of the source of it and all it calls, besides this package.
    """
    key = _key(name, signature, folder)
    path = store.path_of(name, key)
    code = store.load(path, key) or _kept(path, key, signature, function)
    if code is None:  # this Numba is too different: in this process alone
        with compiler.quickly():
            plain = cfunc(signature)(function)
        _alive.append(plain)
        return Code(int(plain.address), None)
    # Code compiled just now is loaded in the same way as code that another process compiled.
    return Code(address_in(_loaded(code), compiler.ENTRY), path)


def address_in(engine: Any, name: str) -> int:
    """Address of a function of an engine, valid for as long as the process lives."""
    _alive.append(engine)
    return int(engine.get_function_address(name))


def _kept(path: Path, key: str, signature: Any, function: Callable[..., Any]) -> bytes | None:
    """The object of ``function``, compiled and put into its file unless another process did."""
    with store.compiling(path) if compiler.POSSIBLE else nullcontext():  # else nothing is kept
        code = store.load(path, key, warn=False)
        if code is None:
            _say_why_it_takes_long()
            code = compiler.object_code(signature, function)
            if code is not None:
                store.save(path, key, code)
        return code


@functools.cache
def _say_why_it_takes_long() -> None:
    """One line at a terminal, in a process that a user started."""
    if sys.stderr is None or multiprocessing.parent_process() is not None:
        return
    if sys.stderr.isatty():
        print("rims: compiling kernels (once per machine, about 10 s each)", file=sys.stderr)


def _key(name: str, signature: Any, folder: Path) -> str:
    return "\n".join((name, str(signature), _sources(folder), _made_by()))


def _loaded(code: bytes) -> Any:
    """A new engine for an object: its names cannot clash with those of other objects."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine()
    options = {"use_lmm": True} if getattr(config, "USE_LLVMLITE_MEMORY_MANAGER", False) else {}
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine, **options)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


@functools.cache
def _made_by() -> str:
    """The compiler, its settings, and the processor it compiles for."""
    versions = (importlib.metadata.version(name) for name in ("numba", "llvmlite"))
    processor = cpu_target.target_context.codegen().magic_tuple()
    settings = (config.BOUNDSCHECK, config.DEBUGINFO_DEFAULT)
    return repr((*versions, platform.python_version(), *processor, *settings))


@functools.cache
def _sources(folder: Path) -> str:
    """A hash of the files that the kernels and their constants are written in."""
    here = Path(__file__).parent
    files = [
        *sorted(here.glob("*.py")),
        here.parent / "functional.py",
        *sorted(folder.glob("*.py")),
    ]
    content = b"".join(f"\n{file.name}\n".encode() + file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()
