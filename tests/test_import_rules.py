"""Which package may import which: read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (
    *("lab", "rims", "nfm", "envs", "agents", "experiments"),
    *("benchmarks", "examples", "tests"),
)

#: What nobody builds on. Tests may import the command line and benchmarks, and each other as
#: top-level modules.
LEAVES = {"cli", "tests", "benchmarks", "examples"}
TEST_MODULES = {path.stem for path in (ROOT / "tests").glob("*.py")}

#: Packages (ours, and torch) each package must not import at all.
FORBIDDEN = {
    "lab": {"rims", "nfm", "envs", "agents", "experiments"},
    "rims": {"nfm", "envs", "lab", "agents", "experiments"},
    "nfm": {"envs", "lab", "agents", "experiments"},
    "envs": {"rims", "nfm", "agents", "experiments", "torch"},
    "agents": {"experiments"},
    "experiments": {"agents"},
}

#: What the extra ``jax`` brings; only rims.jax, the command line, tests and examples touch it.
JAX = {"jax", "jaxlib", "flax", "optax"}

#: Where the commands of ``cli`` are.
COMMANDS = ("agents.commands.", "experiments.commands.")

#: Packages of which agents may use what their ``__init__`` offers, and nothing below it.
PUBLIC_ONLY = ("rims", "nfm", "envs")


class Import(NamedTuple):
    """``from module import name``; ``import module`` has no name."""

    module: str
    name: str | None

    def __str__(self) -> str:
        return self.module if self.name is None else f"{self.module}.{self.name}"


def imports_of(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """Every import of a file, wherever it stands; relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            drop = node.level - is_package
            base = module.split(".")[: -drop or None] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(source, alias.name)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(node.args[0].value, None)


def attributes_of(tree: ast.Module, package: str) -> Iterator[str]:
    """What is taken from ``package`` by ``import package; package.x``."""
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == package
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in names
        ):
            yield node.attr


def offences(
    module: str, source: str, public: dict[str, set[str]], *, is_package: bool = False
) -> list[str]:
    """Imports of the file ``module`` (dotted) that break a rule, each as one line."""
    tree = ast.parse(source)
    owner = owner_of(module)
    found = [
        f"{module} imports {imported}"
        for imported in imports_of(tree, module, is_package)
        if _breaks_a_rule(module, owner, imported, public)
    ]
    if owner == "agents":
        for package in PUBLIC_ONLY:
            found += [
                f"{module} uses {package}.{name}"
                for name in attributes_of(tree, package)
                if name not in public[package]
            ]
    return found


def owner_of(module: str) -> str:
    """The package a module belongs to; the commands of ``cli`` count as part of it."""
    return "cli" if f"{module}.".startswith(COMMANDS) else module.split(".")[0]


def _breaks_a_rule(module: str, owner: str, imported: Import, public: dict[str, set[str]]) -> bool:
    root = owner_of(str(imported))
    if owner == "tests":
        return root in LEAVES - {"cli", "benchmarks"}
    if root in (LEAVES | TEST_MODULES) - {owner}:
        return True
    if root in FORBIDDEN.get(owner, set()):
        return True
    needs_jax = root in JAX or f"{imported}.".startswith("rims.jax.")
    if needs_jax and owner not in ("cli", "examples"):
        return not f"{module}.".startswith("rims.jax.")
    if module == "rims.functional":
        return root == "rims"
    if owner == "nfm":
        return _breaks_a_rule_of_nfm(module, imported)
    if owner == "agents" and root in PUBLIC_ONLY:
        return imported.module != root or not (
            imported.name is None or imported.name in public[root]
        )
    return False


def _breaks_a_rule_of_nfm(module: str, imported: Import) -> bool:
    """Of rims it shares functions and what kernels are made of; its bench is one of rims' users."""
    is_bench = f"{module}.".startswith("nfm.bench.")
    name = f"{imported}."
    if name.startswith("rims."):
        shared = ("rims.functional.", "rims.native.") + ("rims.bench.",) * is_bench
        return not name.startswith(shared)
    return name.startswith("nfm.bench.") and not is_bench


def circles(files: dict[str, str]) -> list[list[str]]:
    """Files, by their dotted names, that import each other, directly or through others."""
    reached = {
        module: {
            name
            for found in imports_of(ast.parse(source), module, is_package=False)
            for name in (str(found), found.module)
            if name in files
        }
        for module, source in files.items()
    }
    for between in files:  # Warshall
        for module in files:
            if between in reached[module]:
                reached[module] |= reached[between]
    found = {
        tuple(sorted({module, *(other for other in reached[module] if module in reached[other])}))
        for module in files
        if module in reached[module]
    }
    return [list(circle) for circle in sorted(found)]


def public_names(source: str) -> set[str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError("the package has no __all__")


def python_files() -> list[Path]:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return files + sorted(ROOT.glob("*.py"))


# --- the repository


def test_imports_run_one_way() -> None:
    public = {name: public_names((ROOT / name / "__init__.py").read_text()) for name in PUBLIC_ONLY}
    found = []
    for path in python_files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found += offences(module, path.read_text(), public, is_package=is_package)
    assert found == []


@pytest.mark.parametrize("package", ["lab", "envs", "nfm", "rims", "agents", "experiments"])
def test_no_files_import_each_other(package: str) -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert files
    assert circles(files) == []


def test_the_files_judged_are_there() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in python_files()}
    assert {
        "rims/functional.py",
        "rims/scan/__init__.py",
        "envs/__init__.py",
        "lab/settings.py",
    } <= names
    assert Path(__file__).relative_to(ROOT).as_posix() in names


@pytest.mark.parametrize(
    "module",
    ["lab.settings", "lab.disk.folder", "envs", "cli", "experiments", "experiments.registry"],
)
def test_import_does_not_load_torch(module: str) -> None:
    if (
        not (ROOT / module).is_dir()
        and not (ROOT / f"{module.replace(chr(46), chr(47))}.py").exists()
    ):
        pytest.skip(f"there is no {module} yet")
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "False\n"


# --- the judge

PUBLIC = {"rims": {"RIM_LSTM", "trace"}, "nfm": {"NFM"}, "envs": {"Task"}}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rims.layers", "import envs"),
        ("rims.layers", "def f():\n    from agents.learning.ppo import train"),
        ("rims.layers", "import nfm.module as m"),
        ("rims.layers", "import torch, experiments"),
        ("rims.layers", "import cli"),
        ("rims.scan.scan", "from tests.oracles import rim_step"),
        ("rims.scan.scan", "from oracles import rim_step"),
        ("rims.scan.scan", "import importlib\nimportlib.import_module('envs.backends.base')"),
        ("rims.functional", "from rims.cells import RIMCell"),
        ("rims.functional", "from . import cells"),
        ("rims.functional", "from .cells import RIMCell"),
        ("rims.functional", "import rims"),
        ("rims.layers", "import jax"),
        ("rims.layers", "def f():\n    from flax import nnx"),
        ("rims", "from rims.jax import scan"),
        ("rims.bench.run", "from rims import jax"),
        ("agents.model.policy", "import optax"),
        ("rims.jax.step", "from agents.learning import ppo"),
        ("nfm.module", "import rims"),
        ("nfm.module", "from rims import RIM_LSTM"),
        ("nfm.module", "from rims.cells import RIMCell"),
        ("nfm.module", "from rims.bench import machine"),
        ("nfm.module", "from rims.scan.native import build"),
        ("nfm.module", "from nfm.bench.run import bench_nfm"),
        ("nfm.bench.run", "from rims.layers import RIM_LSTM"),
        ("nfm.module", "import envs"),
        ("nfm.module", "from agents.learning import ppo"),
        ("envs.backends.base", "import torch"),
        ("envs.backends.base", "from torch import nn"),
        ("envs.backends.base", "from torch.nn import Module"),
        ("envs.backends.base", "from rims.functional import topk_mask"),
        ("envs.backends.base", "__import__('agents')"),
        ("agents.model.policy", "import rims.layers"),
        ("agents.model.policy", "from rims.layers import RIMLayer"),
        ("agents.model.policy", "from rims import layers"),
        ("agents.model.policy", "from rims import *"),
        ("agents.model.policy", "import rims\nrims.layers.RIMLayer"),
        ("agents.model.policy", "import rims as r\nr.cells"),
        ("agents.model.policy", "from envs import vector"),
        ("agents.model.policy", "from envs.backends.base import VectorEnv"),
        ("agents.model.policy", "from nfm.module import NFM"),
        ("agents.model.policy", "from nfm import network"),
        ("agents.model.policy", "import cli"),
        ("agents.model.policy", "from agents.commands.parsing import options"),
        ("agents.model.policy", "from agents import commands"),
        ("experiments.fit", "import agents.commands.train"),
        ("agents.commands.train", "from tests.oracles import rim_step"),
        ("cli", "import benchmarks.table"),
        ("experiments.fit", "import cli"),
        ("experiments.fit", "from agents.learning.train import Trainer"),
        ("experiments.tasks.gan", "import agents"),
        ("lab.disk.folder", "from envs import read_text"),
        ("lab.running.devices", "from agents.config import PPOConfig"),
        ("lab.settings", "def f():\n    import experiments.configs"),
        ("lab.slurm.job", "from rims import RIM_LSTM"),
        ("rims.layers", "from lab.settings import ConfigError"),
        ("nfm.module", "import lab.disk"),
        ("experiments.fit", "from experiments.commands import experiment"),
        ("agents.learning.train", "from experiments import fit"),
        ("agents.commands.train", "import tests.oracles"),
        ("examples.small", "import cli"),
        ("benchmarks.table", "from examples import small"),
        ("tests.test_x", "import examples.small"),
    ],
)
def test_offences_finds(module: str, source: str) -> None:
    assert len(offences(module, source, PUBLIC)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rims.layers", "from rims.cells import RIMCell\nimport torch"),
        ("rims.scan.scan", "from ..functional import topk_mask\nfrom . import reference"),
        ("rims.functional", "import math\nfrom torch import Tensor"),
        ("rims.jax", "import jax"),
        ("rims.jax.step", "import jax.numpy as jnp\nfrom rims.jax import functional"),
        ("agents.commands.bench", "from rims.jax.bench import bench_jax"),
        ("examples.small", "import optax\nfrom rims.jax import RIM_LSTM"),
        ("nfm.module", "from rims.functional import topk_softmax"),
        ("nfm.module", "from rims import functional\nimport rims.functional as RF"),
        ("nfm.native.run", "from rims.native import threads\nfrom rims.native.simd import load"),
        ("nfm.bench.run", "from rims.bench import machine\nfrom nfm.bench import memory"),
        ("envs.backends.base", "import numpy as np\nfrom envs.mission import encode_mission"),
        ("agents.model.policy", "from rims import RIM_LSTM, trace\nimport rims\nrims.trace(1)"),
        (
            "agents.model.policy",
            "from envs import Task\nfrom agents.learning.losses import entropy",
        ),
        ("agents.model.policy", "from nfm import NFM"),
        ("cli", "from agents.learning.ppo import train\nimport envs, nfm"),
        ("cli", "from agents.commands.train import train"),
        ("agents.commands.bench", "from rims.bench.run import bench_cells\nimport cli"),
        ("experiments.fit", "from nfm import NFM"),
        ("envs.suites", "from lab.words import did_you_mean"),
        ("agents.learning.train", "from lab.disk import folder"),
        ("lab.disk.folder", "from lab.running.guards import RunStopped\nimport torch"),
        ("experiments.fit", "import rims, torch\nfrom lab.disk.log import RunLog"),
        ("experiments.commands.experiment", "from agents.commands.compare import claimed"),
        ("cli", "from experiments.commands.experiment import experiment"),
        ("benchmarks.table", "from benchmarks.timing import clock\nimport rims.cells"),
        (
            "tests.test_x",
            "import cli\nfrom oracles import rim_step\nfrom rims.cells import RIMCell",
        ),
    ],
)
def test_offences_lets_pass(module: str, source: str) -> None:
    assert offences(module, source, PUBLIC) == []


def test_offences_resolves_relative_imports_of_a_package() -> None:
    # in an __init__, one dot is the package itself
    assert offences("agents", "from .ppo import train", PUBLIC, is_package=True) == []
    source = "from ..cli import main"
    assert offences("agents.sub", source, PUBLIC, is_package=True) == []
    assert [str(i) for i in imports_of(ast.parse(source), "agents.sub", True)] == [
        "agents.cli.main"
    ]
    assert [str(i) for i in imports_of(ast.parse(source), "a.b.c", False)] == ["a.cli.main"]


def test_public_names_reads_all() -> None:
    assert public_names("x = 1\n__all__ = ['a', 'b']") == {"a", "b"}


def test_circles_are_found() -> None:
    files = {
        "a.first": "from a.second import x",
        "a.second": "def f():\n    from a import third",
        "a.third": "import a.first\nfrom a.below.fourth import y",
        "a.below.fourth": "from a.below.fifth import z\nimport os",
        "a.below.fifth": "",
        "a.last": "from .last import own",
        "a.above": "from a.first import x",
    }
    assert circles(files) == [["a.first", "a.second", "a.third"], ["a.last"]]
    files["a.third"] = "from a.below.fourth import y"
    assert circles(files) == [["a.last"]]
