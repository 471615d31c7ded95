"""Evaluations that a comparison keeps, of environments and cores whose source is edited."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from agents.judging.compare import judge, plan
from agents.judging.comparison import Row
from agents.judging.evaluate import evaluate
from agents.judging.evaluations import EVALUATION_NAME, cached_results, evaluate_run
from agents.learning.train import Trainer
from compare_cases import TASKS, folder_times, ignore, make_config
from envs import Suite, Task
from lab.running.processes import Outcome

ROOM = """
import gymnasium, own_size
from minigrid.envs import EmptyEnv

class Room(EmptyEnv):
    def __init__(self, **given):
        super().__init__(size=5, max_steps=own_size.STEPS, **given)

gymnasium.register("Own-Room-v0", entry_point=Room)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of one run, not yet judged. Only to be read."""
    root = tmp_path_factory.mktemp("compare")
    (run,) = plan(make_config(), ["none"], [0], root)
    Trainer(run.config, run.folder).run()
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture
def own_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Task]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("own_room.py").write_text(ROOM)
    Path("own_size.py").write_text("STEPS = 4")
    forget("own_room", "own_size")
    yield Task(id="own_room:Own-Room-v0")
    forget("own_room", "own_size")


def forget(*modules: str) -> None:
    """As in a process that has not imported them yet."""
    importlib.invalidate_caches()
    gymnasium.registry.pop("Own-Room-v0", None)
    for module in modules:
        sys.modules.pop(module, None)


def here(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *_: Any) -> list[Outcome]:
    """Calls made in this process."""
    return [Outcome(function(*call)) for call in calls]


def length_on(task: Task, root: Path) -> float:
    runs = plan(make_config(), ["none"], [0], root)
    settings: dict[str, Any] = {"episodes": 2, "mode": "sample", "jobs": 1}
    suite = Suite(name="own", description="", train=task, unseen=())
    found = judge(runs, suite, [task], on_progress=ignore, **settings)
    (length,) = found.values("none", Row(task, "mean_length"))
    return length


@pytest.mark.parametrize("edited", ["own_room.py", "own_size.py"])
def test_task_whose_source_was_edited_is_evaluated_again(
    root: Path, own_room: Task, monkeypatch: pytest.MonkeyPatch, edited: str
) -> None:
    monkeypatch.setattr("agents.judging.compare.run_all", here)
    (run,) = plan(make_config(), ["none"], [0], root)
    assert length_on(own_room, root) == 4
    before = folder_times(root, "**/*")
    assert length_on(own_room, root) == 4
    assert folder_times(root, "**/*") == before  # the control
    text = Path(edited).read_text()
    Path(edited).write_text(text.replace("STEPS = 4", "STEPS = 3").replace(".STEPS", ".STEPS - 1"))
    assert cached_results(run, (own_room,), 2, "sample") is None
    forget("own_room", "own_size")
    assert length_on(own_room, root) == 3


def test_task_edited_during_its_evaluation_is_evaluated_again(
    root: Path, own_room: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate_and_edit(*args: Any, **options: Any) -> Any:
        found = evaluate(*args, **options)
        Path("own_size.py").write_text("STEPS = 3")
        return found

    (run,) = plan(make_config(), ["none"], [0], root)
    monkeypatch.setattr("agents.judging.evaluations.evaluate", evaluate_and_edit)
    evaluate_run(run, (own_room,), 2, "sample")
    assert cached_results(run, (own_room,), 2, "sample") is None


def test_task_without_source_is_reported_and_never_kept(
    root: Path, own_room: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.judging.compare.run_all", here)
    monkeypatch.setattr(sys, "path", [*sys.path, "own.zip"])
    with zipfile.ZipFile("own.zip", "w") as archive:
        archive.write("own_size.py")
    Path("own_size.py").unlink()
    for _ in range(2):
        before = folder_times(root, "**/*")
        assert length_on(own_room, root) == 4
        assert folder_times(root, "**/*") != before


def test_evaluations_kept_before_sources_counted_are_taken(root: Path) -> None:
    """Of minigrid's own tasks and cores by name, nothing else is noted than was."""
    (run,) = plan(make_config(), ["none"], [0], root)
    evaluate_run(run, TASKS[:1], 2, "sample")
    content = json.loads((run.folder / EVALUATION_NAME).read_text())
    assert content["key"]["core"] is None
    assert content["tasks"][TASKS[0].id]["made_with"] == {
        "gym_kwargs": {},
        "envpool_id": None,
        "envpool_kwargs": {},
    }


def test_core_whose_source_was_edited_is_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget("own_cell", "own_base")
    Path("own_cell.py").write_text("from own_base import Base\nclass Cell(Base): ...")
    Path("own_base.py").write_text("from torch import nn\nclass Base(nn.GRU): ...")
    (run,) = plan(make_config(), ["own_cell:Cell"], [0], tmp_path)
    Trainer(run.config, run.folder).run()
    evaluate_run(run, TASKS[:1], 2, "sample")
    assert cached_results(run, TASKS[:1], 2, "sample") is not None
    Path("own_base.py").write_text("from torch import nn\nclass Base(nn.GRU):\n    edited = 1")
    assert cached_results(run, TASKS[:1], 2, "sample") is None
    forget("own_cell", "own_base")
