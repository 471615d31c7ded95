"""The module that a core's import path names, looked at before anything of it is run."""

from __future__ import annotations

import ast
import hashlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


def module_source(module: str) -> bytes | None:
    """The source of a module that could be imported; nothing is imported.

    Modules are looked for in the current directory first, as ``python -m`` does. ``None`` where
    there is no module of that name, or no source of it.
    """
    path: list[str] | None = [str(Path.cwd()), *sys.path]
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for number in range(len(parts)):
        if path is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[: number + 1]), path)
        if spec is None:
            return None
        locations = spec.submodule_search_locations
        path = None if locations is None else list(locations)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return Path(spec.origin).read_bytes()
    except OSError:
        return None


def may_define_class(source: bytes, name: str) -> bool:
    """Whether a module of this source can have a class of this name that derives from another.

    Example:
        >>> may_define_class(b"import webbrowser", "Core")
        False
        >>> may_define_class(b"class Core(Base): ...", "Core")
        True
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True  # importing it says what is wrong
    return any(_may_bind(node, name) for node in _at_module_level(tree.body))


def core_digest(path: str) -> str | None:
    """A checksum of the module of a core given by import path; ``None`` if it has no source."""
    source = module_source(path.partition(":")[0])
    return None if source is None else hashlib.sha256(source).hexdigest()


def _at_module_level(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that run when a module is imported, those inside of ``if`` and ``try`` too."""
    found = []
    for node in body:
        found.append(node)
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]
            handlers = [part.body for part in getattr(node, "handlers", [])]
            found += _at_module_level(parts)
            for handler in handlers:
                found += _at_module_level(handler)
    return found


def _may_bind(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.ClassDef):
        return node.name == name and bool(node.bases or node.keywords)
    if isinstance(node, ast.FunctionDef):
        return node.name == "__getattr__"
    if isinstance(node, ast.ImportFrom):
        return any("*" in (a.name,) or (a.asname or a.name) == name for a in node.names)
    if isinstance(node, ast.Assign | ast.AnnAssign) and not isinstance(node.value, ast.Constant):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(isinstance(n, ast.Name) and n.id == name for t in targets for n in ast.walk(t))
    return False
