"""Modules of a user's own: their source, and a checksum of it and of all that they import."""

from __future__ import annotations

import ast
import hashlib
import os
import sys
import sysconfig
import uuid
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, all_suffixes
from pathlib import Path

from lab.disk.versions import PACKAGES

#: Folders of Python itself; other installed packages are in folders of the names below.
_STANDARD = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
_INSTALLED = {"site-packages", "dist-packages"}


class _NoSource(Exception):
    """Something would be imported whose source cannot be read."""


def module_source(module: str) -> bytes | None:
    """The source of a module that could be imported; nothing is imported.

    Modules are looked for in the current directory first, as ``python -m`` does. ``None`` where
    there is no module of that name, or no source of it.
    """
    try:
        return _source_file(_found(module)).read_bytes()
    except (OSError, _NoSource):
        return None


def source_digest(modules: Iterable[str]) -> str:
    """A checksum of the source of modules and of what they import, directly or through others.

    All files of a package count. Left out are installed libraries, unless they are named
    themselves, and in any case those whose version is known (:mod:`lab.disk.versions`).

    If something has no source, as what is compiled, in an archive or was typed in, the text is
    another one each time: then nobody knows whether it is still the same.
    """
    try:
        content = {line for module in modules for line in _content(module)}
    except (OSError, _NoSource):
        return f"unknown {uuid.uuid4().hex}"
    return hashlib.sha256("\n".join(sorted(content)).encode()).hexdigest()


def _content(module: str) -> Iterator[str]:
    """A line with name and checksum for each file that a module consists of."""
    first = module.partition(".")[0]
    if first in PACKAGES:
        return
    _require_loaded_from(module, _source_file(_found(module)))
    waiting, seen = [first], set(PACKAGES)
    while waiting:
        name = waiting.pop()
        spec = None if name in seen else _found(name)
        seen.add(name)
        if spec is None:  # seen, missing or a part of the interpreter
            continue
        is_installed = _is_installed(spec)
        if is_installed and name != first:
            continue
        for label, file in _files(name, spec):
            stat = file.stat()
            state = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
            yield f"{label} {_checksum(str(file), state)}"
            if not is_installed and file.suffix == ".py":
                waiting += _imported(str(file), state)


def _found(module: str) -> ModuleSpec | None:
    """The file that an import would find, in the current directory first."""
    path: list[str] | None = [str(Path.cwd()), *sys.path]
    python = (BuiltinImporter, FrozenImporter)
    finders = [f for f in sys.meta_path if f not in python and hasattr(f, "find_spec")]
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for number in range(len(parts)):
        if path is None:
            return None
        name = ".".join(parts[: number + 1])
        specs = (finder.find_spec(name, path) for finder in finders)
        spec = next(filter(None, specs), None)
        if spec is None:
            return None
        locations = spec.submodule_search_locations
        path = None if locations is None else list(locations)
    return spec


def _source_file(spec: ModuleSpec | None) -> Path:
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise _NoSource
    return Path(spec.origin)


def _require_loaded_from(module: str, file: Path) -> None:
    """Refuse a module that is loaded already from another place than the file."""
    if module in sys.modules:
        loaded = getattr(sys.modules[module], "__file__", None)
        if loaded is None or Path(loaded).resolve() != file.resolve():
            raise _NoSource


def _is_installed(spec: ModuleSpec) -> bool:
    places = [Path(place) for place in spec.submodule_search_locations or [spec.origin or ""]]
    return all(
        not _INSTALLED.isdisjoint(place.parts) or any(map(place.is_relative_to, _STANDARD))
        for place in places
    )


def _files(name: str, spec: ModuleSpec) -> Iterator[tuple[str, Path]]:
    """The files of a module, or of a package and the packages in it, each with its name."""
    if spec.submodule_search_locations is None:
        yield f"{name}.py", _source_file(spec)
        return
    seen = set()
    for location in spec.submodule_search_locations:
        if not os.path.isdir(location):  # an archive
            raise _NoSource
        for folder, below, files in os.walk(location, followlinks=True):
            seen.add(os.path.realpath(folder))
            below[:] = [
                other
                for other in below
                if other.isidentifier()
                and other != "__pycache__"
                and os.path.realpath(os.path.join(folder, other)) not in seen
            ]
            for file in map(Path(folder).joinpath, files):
                if file.name.endswith(tuple(all_suffixes())):
                    yield f"{name}/{file.relative_to(location).as_posix()}", file


# The same files are asked for with every run and task of a comparison.
@lru_cache(maxsize=10_000)
def _checksum(path: str, state: tuple[int, ...]) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@lru_cache(maxsize=10_000)
def _imported(path: str, state: tuple[int, ...]) -> frozenset[str]:
    """Top-level names of the modules that a file imports, wherever in it."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()  # nor can it be imported
    names: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names += [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(module), level=0):
                names.append(module)
            case ast.Call(args=[ast.Constant(value=str(module)), *_]):
                if ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
                    names.append(module)
    return frozenset(name.partition(".")[0] for name in names)
