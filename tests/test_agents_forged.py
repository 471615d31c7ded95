"""Checkpoints sealed by something else than a run: every value is checked before it is used."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.config import PPOConfig
from agents.learning.checkpoint import agent_store
from command_line import Rims, assert_one_line, snapshot
from experiment_cases import line
from experiments.fit import fit
from experiments.results import RESULTS_NAME
from lab.core_source import may_define_class
from lab.disk.manifest import sealed

MORE = ("--total-steps", "600")


@pytest.fixture
def run(toy_run: Path, tmp_path: Path, rims: Rims) -> Path:
    return Path(shutil.copytree(toy_run, tmp_path / "here" / "run"))


def forge(run: Path, **changes: Any) -> None:
    """Change fields of the last manifest, ``a__b`` for ``b`` inside of ``a``, and seal it again."""
    *_, path = sorted((run / "checkpoints").glob("*.json"))
    fields = json.loads(path.read_text())
    del fields["seal"]
    for name, value in changes.items():
        *outer, last = name.split("__")
        inner = fields
        for part in outer:
            inner = inner[part]
        inner[last] = value
    path.write_text(sealed(fields))


def forge_tensors(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the last checkpoint holds, with a manifest that fits it."""
    *_, manifest = sorted((run / "checkpoints").glob("*.json"))
    path = run / "checkpoints" / json.loads(manifest.read_text())["file"]
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    path.write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    forge(run, sha256=digest, bytes=len(buffer.getvalue()))


MANIFESTS: dict[str, dict[str, Any]] = {
    "no file": {"file": None},
    "file elsewhere": {"file": "../../notes.txt"},
    "file of another": {"file": "00000099-0123abcd.pt"},
    "file that is missing": {"file": "00000003-0123abcd.pt"},
    "device": {"file": "/dev/zero"},
    "no versions": {"versions": None},
    "versions that are numbers": {"versions": {"torch": 2}},
    "no checksum": {"sha256": None},
    "no size": {"bytes": None},
    "size beyond all": {"bytes": 10**30},
    "score of letters": {"score": "high"},
    "another number": {"number": 4},
    "nothing about it": {"about": None},
    "a thousand million actions": {"about__num_actions": 10**9},
    "no actions": {"about__num_actions": 0},
    "steps below none": {"about__env_steps": -1},
    "updates that are true": {"about__updates": True},
    "no backend": {"about__backend": ["gymnasium"]},
    "a core of any size": {"about__config__hidden_size": 2**40},
    "mechanisms without end": {"about__config__num_rims": 2**20},
    "no settings": {"about__config": []},
    "a module that is no core": {"about__config__core": "antigravity:X"},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_is_checked_before_anything_is_used_or_written(
    run: Path, rims: Rims, tmp_path: Path, name: str
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    forge(run, **MANIFESTS[name])
    before = snapshot(tmp_path)
    for arguments in (
        ("resume", "run", *MORE),
        ("evaluate", "run"),
    ):
        result = rims(*arguments)
        assert_one_line(result, code=result.code)
        assert result.code in (1, 2)
        assert snapshot(tmp_path) == before, arguments
    assert "antigravity" not in sys.modules


def test_manifest_sealed_again_unchanged_is_taken(run: Path, rims: Rims) -> None:
    """The control of the test above."""
    forge(run)
    assert rims("resume", "run", *MORE).code == 0


def nan_weight(tensors: dict[str, Any]) -> None:
    tensors["policy"]["critic.bias"][:] = math.nan


def infinite_weight(tensors: dict[str, Any]) -> None:
    tensors["policy"]["actor.weight"][0, 0] = math.inf


def claimed_weight(tensors: dict[str, Any]) -> None:
    tensors["policy"]["critic.weight"] = torch.zeros(1).expand(2**40)


def training(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors["training"][name] = value

    return change


def optimizer(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors["optimizer"]["param_groups"][0][name] = value

    return change


@pytest.mark.parametrize("change", [nan_weight, infinite_weight, claimed_weight])
def test_weights_that_cannot_be_are_never_used(
    run: Path, rims: Rims, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    forge_tensors(run, change)
    before = snapshot(tmp_path)
    for arguments in (
        ("evaluate", "run", "--episodes", "1"),
        ("record", "run", "--out", "x.gif"),
        ("resume", "run", *MORE),
    ):
        result = rims(*arguments)
        assert_one_line(result, code=result.code)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        training("seconds", "x"),
        training("seconds", None),
        training("seconds", math.nan),
        training("core_state", torch.ones(1)),
        training("core_state", [torch.ones(1, 2, 3)]),
        training("actions", "left"),
        training("random", {"torch": 3}),
        training("seen", []),
        optimizer("lr", None),
        optimizer("betas", (2.0, "x")),
        optimizer("eps", 5.0),
    ],
)
def test_what_training_goes_on_from_is_checked(
    run: Path, rims: Rims, change: Callable[[dict[str, Any]], None]
) -> None:
    forge_tensors(run, change)
    result = rims("resume", "run", *MORE)
    assert result.code in (1, 2)
    assert "Traceback" not in result.err
    assert result.err.splitlines()[-1].startswith("Error: ")


def test_tensors_forged_unchanged_are_taken(run: Path, rims: Rims) -> None:
    """The control of the tests above."""
    forge_tensors(run, lambda _: None)
    assert rims("resume", "run", *MORE).code == 0


def test_wrong_file_in_a_manifest_removes_nothing(run: Path) -> None:
    """Saving again must not take another's word for what may go."""
    store = agent_store(run)
    there = sorted(store.folder.iterdir())
    forge(run, file=f"{store.numbers()[-1]:08d}-0123abcd.pt")
    store.clear_remains()
    assert sorted(store.folder.iterdir()) == there


# Cores by import path ---------------------------------------------------------------------------


def test_module_without_the_class_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = "from pathlib import Path\nPath('imported').touch()\nimport json\nclass Plain: ...\n"
    Path("forged_core.py").write_text(source + "def function(): ...\n")
    for name in ("Missing", "json", "Plain", "function"):
        with pytest.raises(ValueError, match=r"torch\.nn\.Module"):
            PPOConfig(env="MiniGrid-Empty-5x5-v0", core=f"forged_core:{name}")
        assert not Path("imported").exists(), name
    Path("forged_core.py").write_text(source + "from torch.nn import GRU as Mine\n")
    PPOConfig(env="MiniGrid-Empty-5x5-v0", core="forged_core:Mine")
    assert Path("imported").exists()  # the control
    sys.modules.pop("forged_core")


@pytest.mark.parametrize(
    ("source", "may"),
    [
        ("if True:\n    class A(B): ...", True),
        ("try:\n    x = 1\nexcept E:\n    from b import A", True),
        ("A = make()", True),
        ("A: type = B", True),
        ("from b import *", True),
        ("def __getattr__(name): ...", True),
        ("@dec\nclass A: ...", True),
        ("class A(metaclass=M): ...", True),
        ("@dec\ndef A(): ...", True),
        ("match x:\n    case 1:\n        class A(B): ...", True),
        ("try:\n    pass\nfinally:\n    class A(B): ...", True),
        ("try:\n    pass\nexcept* E:\n    class A(B): ...", True),
        ("with x:\n    class A(B): ...", True),
        ("for x in y:\n    class A(B): ...", True),
        ("while x:\n    pass\nelse:\n    class A(B): ...", True),
        ("for A in classes: ...", True),
        ("with x as A: ...", True),
        ("match x:\n    case A: ...", True),
        ("match x:\n    case [*A]: ...", True),
        ("match x:\n    case {**A}: ...", True),
        ("if A := make(): ...", True),
        ("def f(x=(A := make())): ...", True),
        ("x, (A, *y) = classes", True),
        ("A, x = 1, 2", True),
        ("A += 1", True),
        ("import a.b as A", True),
        ("try:\n    from b import *\nexcept E: ...", True),
        ("__getattr__, __dir__, __all__ = attach(x, y)", True),
        ("__getattr__ = attach(x)[0]", True),
        ("from b import __getattr__", True),
        ("import b as me\nme.A = make()", True),
        ("def f():\n    global A\n    class A(B): ...", True),
        ("globals()['A'] = make()", True),
        ("exec(text)", True),
        ("import sys\nsys.modules[x] = make()", True),
        ("from sys import modules as them\nthem[x] = make()", True),
        ("import b\nb.make(__name__)", True),
        ("import b\nb.make(module=__name__)", True),
        ("A = 'text'", False),
        ("A: type", False),
        ("import A", False),
        ("import b as A", False),
        ("class A: ...", False),
        ("def A(): ...", False),
        ("class B:\n    def __getattr__(self, name): ...", False),
        ("def f():\n    class A(B): ...", False),
        ("class B:\n    class A(C): ...", False),
        ("A", False),
        ("if __name__ == '__main__':\n    f()", False),
        ("", False),
    ],
)
def test_what_a_source_may_define(source: str, may: bool) -> None:
    assert may_define_class(source.encode(), "A") == may


LAZY = """
def attach(name):
    def load(attribute):
        from torch import nn
        return getattr(nn, attribute)
    return load, None, []
"""


@pytest.mark.parametrize(
    "source",
    [
        f"{LAZY}\n__getattr__, __dir__, __all__ = attach(0)",
        "import torch\nmatch 1:\n    case 1:\n        class GRU(torch.nn.GRU): ...",
        "import torch\ndef dec(_): return torch.nn.GRU\n@dec\nclass GRU: ...",
        "import torch\nfor GRU in [torch.nn.GRU]: ...",
        "import torch\nvars()['GRU'] = torch.nn.GRU",
    ],
    ids=["lazy", "match", "decorated", "for", "vars"],
)
def test_core_that_only_importing_shows_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("hidden_core", None)
    Path("hidden_core.py").write_text(source)
    config = PPOConfig(env="MiniGrid-Empty-5x5-v0", core="hidden_core:GRU")
    assert config.core == "hidden_core:GRU"


# Experiments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"about__position": None},
        {"about__position__epoch": "x"},
        {"about__position__steps": -1},
        {"about__position__seconds": "long"},
        {"about__position__sums": {"loss": None}},
        {"file": None},
    ],
    ids=str,
)
def test_position_of_an_experiment_is_checked(tmp_path: Path, changes: dict[str, Any]) -> None:
    fit(line(), tmp_path)
    (tmp_path / RESULTS_NAME).unlink()
    forge(tmp_path, **changes)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"manifest holds no position|is damaged") as caught:
        fit(line(), tmp_path)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_broken_weights_of_an_experiment_are_refused(tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["model"]["1.bias"][:] = math.nan

    fit(line(), tmp_path)
    (tmp_path / RESULTS_NAME).unlink()
    forge_tensors(tmp_path, change)
    with pytest.raises(ValueError, match=r"not finite \(1\.bias\)"):
        fit(line(), tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"metrics": 1}', "null", "[" * 10**5])
def test_results_of_something_else_are_damaged(tmp_path: Path, content: str) -> None:
    fit(line(), tmp_path)
    (tmp_path / RESULTS_NAME).write_text(content)
    with pytest.raises(ValueError, match="is damaged; remove it"):
        fit(line(), tmp_path)
