"""Whether a module's source can define a core, decided before the module runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

#: By these a module gets names that its source does not bind.
_INDIRECT = {"globals", "locals", "vars", "exec", "eval", "setattr", "__dict__", "modules"}

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def may_define_class(source: bytes, name: str) -> bool:
    """Whether a module of this source can have a class of this name that derives from another.

    ``False`` is certain; ``True`` is not, and importing the module tells.

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
    names = {name, "__getattr__"}  # which is asked for what a module does not have
    return any(_may_bind(node, names) for node in _at_module_level(tree)) or any(
        _may_bind_indirectly(node, names) for node in ast.walk(tree)
    )


def _at_module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that can bind a name of the module to a class, and others."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        without = {id(part) for part in _without_effect(node)}
        waiting += [part for part in ast.iter_child_nodes(node) if id(part) not in without]


def _without_effect(node: ast.AST) -> Sequence[ast.AST]:
    """Bodies of functions and classes, and names that are bound to a constant or to nothing."""
    if isinstance(node, _SCOPES):
        return node.body
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is None or isinstance(node.value, ast.Constant):
            return [target for target in targets if isinstance(target, ast.Name)]
    return ()


def _may_bind(node: ast.AST, names: set[str]) -> bool:
    match node:
        case ast.ClassDef(name=name):
            return name in names and bool(node.bases or node.keywords or node.decorator_list)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name == "__getattr__" or (name in names and bool(node.decorator_list))
        case ast.Import():  # "import a.b as c" binds any attribute, the other forms modules
            return any("." in a.name and a.asname in names for a in node.names)
        case ast.ImportFrom():
            return any(a.name == "*" or (a.asname or a.name) in names for a in node.names)
        case ast.Name(id=name, ctx=ast.Store()):
            return name in names
        case ast.MatchAs(name=name) | ast.MatchStar(name=name) | ast.MatchMapping(rest=name):
            return name in names
    return False


def _may_bind_indirectly(node: ast.AST, names: set[str]) -> bool:
    match node:
        case ast.Global():
            return not names.isdisjoint(node.names)
        case ast.Name(id=name):
            return name in _INDIRECT
        case ast.Attribute(attr=name):
            return name in _INDIRECT or (name in names and isinstance(node.ctx, ast.Store))
        case ast.alias(name=name):
            return name in _INDIRECT
        case ast.Call():  # who is told the module's name can put something into it
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            return any(isinstance(n, ast.Name) and n.id == "__name__" for n in given)
    return False
