"""Suites of a user's own: what a file may say, and what is answered to one that is wrong."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

from envs import BackendName, Task, get_suite, mission_varies, require_makeable

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed"
)
BACKENDS = [pytest.param("envpool", marks=needs_envpool), "gymnasium"]

GOOD = """
name = "lavagap"
description = "Step over a strip of lava."
train = "MiniGrid-LavaGapS5-v0"
unseen = ["MiniGrid-LavaGapS6-v0", { id = "MiniGrid-LavaGapS7-v0", name = "LavaGap-7x7" }]
chance = 0.25

[preset]
total_steps = 5_000
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_describes_a_suite(tmp_path: Path) -> None:
    suite = get_suite(write(tmp_path, GOOD))
    assert suite.name == "lavagap"
    assert suite.description == "Step over a strip of lava."
    assert suite.tasks == (
        Task(id="MiniGrid-LavaGapS5-v0"),
        Task(id="MiniGrid-LavaGapS6-v0"),
        Task(id="MiniGrid-LavaGapS7-v0", name="LavaGap-7x7"),
    )
    assert suite.chance == 0.25
    assert suite.preset == {"total_steps": 5000}


def test_little_is_needed(tmp_path: Path) -> None:
    text = 'name = "x"\ntrain = "MiniGrid-LavaGapS5-v0"\nunseen = []'
    suite = get_suite(write(tmp_path, text))
    assert (suite.chance, suite.preset, suite.unseen, suite.description) == (None, {}, (), "")


def test_arguments_of_an_environment_are_passed_on(tmp_path: Path) -> None:
    task = '{ id = "MiniGrid-LavaGapS6-v0", gym_kwargs = { size = 9 }, name = "LavaGap-9x9" }'
    text = f'name = "x"\ntrain = "MiniGrid-LavaGapS5-v0"\nunseen = [{task}]'
    assert get_suite(write(tmp_path, text)).unseen[0].gym_kwargs == {"size": 9}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert get_suite(path).name == "lavagap"
    write(tmp_path, GOOD.replace('"lavagap"', '"other"'))
    os.utime(path, ns=(1, 1))
    assert get_suite(path).name == "other"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "lavagap"', "", "name must be a text; it is missing."),
        ('name = "lavagap"', "name = 3", "name must be a text; it is 3."),
        ("unseen = [", "unsen = [", "unknown key 'unsen'; did you mean 'unseen'?"),
        ("chance = 0.25", "chance = 2", "chance must be a number in [0, 1]; got 2."),
        ("chance = 0.25", "chance = true", "chance must be a number in [0, 1]; got True."),
        ("S5", "S55", "unknown environment 'MiniGrid-LavaGapS55-v0'; did you mean "),
        ("S7-v0", "S8-v0", "unknown environment 'MiniGrid-LavaGapS8-v0'; did you mean "),
        ("GapS6", "GapS5", "two tasks have the id 'MiniGrid-LavaGapS5-v0'; each may stand once."),
        ("LavaGap-7x7", "LavaGapS6", "two tasks have the name 'LavaGapS6'; give one another name."),
        ('name = "LavaGap-7x7"', "nam = 1", "unknown key 'unseen[1].nam'; did you mean 'name'?"),
        ('id = "MiniGrid-LavaGapS7-v0", ', "", "unseen[1] must be an environment id or a table"),
        ('train = "MiniGrid-LavaGapS5-v0"', "train = 1", "train must be an environment id or a"),
        ("[preset]", "preset = 1\n[other]", "unknown key 'other'"),
        ('name = "LavaGap-7x7"', "envpool_kwargs.agent_view_size = 3", "agent_view_size must"),
        ('name = "LavaGap-7x7"', 'success = "yes"', "success must be 'reward' or left out"),
        ('name = "LavaGap-7x7"', "gym_kwargs = 3", "gym_kwargs must be a table; it is 3."),
        ('"lavagap"', '"a/b"', "the name 'a/b' would not do for a folder"),
        ("LavaGap-7x7", "a | b", "the name 'a | b' would not do for a table"),
        ("LavaGap-7x7", "a, b", "the name 'a, b' could not be given to --tasks"),
        ("LavaGap-7x7", " a", "the name ' a' could not be given to --tasks"),
        ("unseen =", "unseen", "cannot be read: "),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match="suite ") as error:
        get_suite(path)
    assert str(error.value).startswith(f"suite {path!r}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_example_of_the_documentation_is_a_suite(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "generalization.md"
    (block,) = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    suite = get_suite(write(tmp_path, block))
    assert suite.name == "gotolocal"
    assert len(suite.tasks) == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_arguments_an_environment_does_not_have_are_refused(backend: BackendName) -> None:
    arguments = {"gym_kwargs": {"sise": 9}, "envpool_kwargs": {"sise": 9}}
    task = Task(id="MiniGrid-LavaGapS5-v0", **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be made with its arguments on") as error:
        require_makeable(task, backend)
    assert "sise" in str(error.value)
    assert "\n" not in str(error.value)
    good = Task(id="MiniGrid-LavaGapS5-v0", envpool_kwargs={"max_episode_steps": 9})
    assert require_makeable(good, backend) == backend


def test_missions_of_a_task_with_a_list_among_its_arguments() -> None:
    task = Task(id="MiniGrid-LavaGapS5-v0", gym_kwargs={"size": 5, "sise": [1]})
    with pytest.raises(TypeError, match="sise"):  # what gymnasium says, not that lists do not hash
        mission_varies(task)


def test_a_missing_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = str(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="cannot be read: No such file") as error:
        get_suite(path)
    assert path in str(error.value)
