"""How large folders, files and functions may be, and how many imports a folder may hold."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lab", "rims", "nfm", "envs", "agents", "experiments")

#: Python files of a folder, without ``__init__.py``.
MAX_FILES = 12
#: Lines of a file.
MAX_LINES = 350
#: Lines of code of a function, outside kernels.
MAX_CODE = 60
#: Imports between the files and folders of a folder; what its ``__init__.py`` offers is not one.
MAX_IMPORTS = 30

#: Folders of kernels: a kernel is one function because of how it is compiled.
KERNELS = ("rims/scan/native", "rims/scan/triton", "rims/jax/native", "nfm/native")
#: Decorators that make a function a kernel elsewhere.
KERNEL_DECORATORS = {"kernel", "inlined", "jit", "njit", "intrinsic"}

#: What may be larger than a rule allows, by rule and name. Numbers here only become smaller.
EXCEPTIONS = {
    # the readable path has a file for every part; scan and jax import most of them
    ("imports", "rims"): 50,
}


def product_files() -> dict[str, str]:
    """The source of every file of the product by its path."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def files_of_folders(files: dict[str, str]) -> dict[str, int]:
    """Python files of each folder, without ``__init__.py``."""
    counts: dict[str, int] = {}
    for path in files:
        folder, _, name = path.rpartition("/")
        counts[folder] = counts.get(folder, 0) + (name != "__init__.py")
    return counts


def code_of_functions(path: str, source: str) -> dict[str, int]:
    """Lines of code of each function of a file: docstrings, comments and blank lines do not count.

    Functions inside a function count as part of it, kernels are left out.
    """
    if path.rpartition("/")[0] in KERNELS:
        return {}
    tree = ast.parse(source)
    code = _lines_of_code(source) - _lines_of_docstrings(tree)
    return {
        f"{path}:{node.name}": len(code & set(range(node.lineno, (node.end_lineno or 0) + 1)))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_kernel(node)
    }


def _lines_of_code(source: str) -> set[int]:
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    return {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in blank
        for line in range(token.start[0], token.end[0] + 1)
    }


def _lines_of_docstrings(tree: ast.Module) -> set[int]:
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }


def _is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
    return any(name.split(".")[-1] in KERNEL_DECORATORS for name in names)


def imports_in_folders(files: dict[str, str]) -> dict[str, int]:
    """Pairs of a folder's files and folders of which the first imports the second.

    Imports of a name through the folder's own ``__init__.py``, and those in it, do not count.
    """
    modules = {_module(path): source for path, source in files.items()}
    imports = {
        (module, imported)
        for module, source in modules.items()
        for imported in _imported(ast.parse(source), modules)
        if imported != module
    }
    counts = {}
    for folder in {path.rpartition("/")[0] for path in files}:
        inside = folder.replace("/", ".") + "."
        pairs = {
            (a[len(inside) :].split(".")[0], b[len(inside) :].split(".")[0])
            for a, b in imports
            if a.startswith(inside) and b.startswith(inside)
        }
        counts[folder] = sum(a != b for a, b in pairs)
    return counts


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported(tree: ast.Module, modules: dict[str, str]) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in modules else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules.keys()


def offences(files: dict[str, str]) -> dict[tuple[str, str], int]:
    """What is larger than its rule allows, by the rule and its name."""
    code: dict[str, int] = {}
    for path, source in files.items():
        code |= code_of_functions(path, source)
    rules = {
        "files": (files_of_folders(files), MAX_FILES),
        "lines": ({path: source.count("\n") for path, source in files.items()}, MAX_LINES),
        "code": (code, MAX_CODE),
        "imports": (imports_in_folders(files), MAX_IMPORTS),
    }
    return {
        (rule, name): size
        for rule, (sizes, limit) in rules.items()
        for name, size in sizes.items()
        if size > limit
    }


# --- the repository


def test_folders_files_and_functions_are_small() -> None:
    assert offences(product_files()) == EXCEPTIONS


# --- the judge


def test_long_files_and_full_folders_are_found() -> None:
    files = {f"lab/file{i}.py": "" for i in range(MAX_FILES)} | {"lab/__init__.py": ""}
    assert offences(files) == {}
    files["lab/long.py"] = "x = 1\n" * (MAX_LINES + 1)
    assert offences(files) == {
        ("files", "lab"): MAX_FILES + 1,
        ("lines", "lab/long.py"): MAX_LINES + 1,
    }


@pytest.mark.parametrize(
    ("path", "decorator", "counted"),
    [
        ("lab/a.py", "", True),
        ("lab/a.py", "@once\n", True),
        ("lab/a.py", "@numba.njit(cache=True)\n", False),
        ("rims/scan/native/a.py", "", False),
    ],
)
def test_code_of_functions(path: str, decorator: str, counted: bool) -> None:
    source = (
        f"{decorator}def f():\n"
        '    """Title.\n\n    More.\n    """\n'
        "    # a comment\n\n"
        "    text = '''\n    two\n    '''\n"
        "    return text\n"
    )
    assert code_of_functions(path, source) == ({f"{path}:f": 5} if counted else {})


def test_long_functions_are_found() -> None:
    body = "    x = 1\n" * MAX_CODE
    assert offences({"lab/a.py": f"def f():\n{body}"}) == {("code", "lab/a.py:f"): MAX_CODE + 1}


def test_imports_in_folders() -> None:
    files = {
        "lab/__init__.py": "from lab.a import x",
        "lab/a.py": "import os\nfrom lab.deep.c import x\nfrom lab.deep import d",
        "lab/b.py": "def f():\n    from lab import a\nimport lab.deep.c",
        "lab/deep/__init__.py": "",
        "lab/deep/c.py": "from lab.deep import d\nfrom lab.a import y\nfrom envs import z",
        "lab/deep/d.py": "from lab import names",
        "envs/__init__.py": "",
    }
    assert imports_in_folders(files) == {"lab": 4, "lab/deep": 1, "envs": 0}
