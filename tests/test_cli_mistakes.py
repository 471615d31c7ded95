"""The command line: one line, exit code 2 and nothing written for every mistake."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agents.judging import compare as comparing
from agents.learning.checkpoint import agent_store
from agents.learning.train import Trainer
from command_line import COMPARE, ENV, TOY, TRAIN, Result, Rims, assert_one_line, process, tree
from lab.comparing import NothingToCompare
from lab.disk.lock import lock_folder
from lab.disk.store import FOLDER_NAME
from lab.running.guards import TrainingError

# Mistakes ---------------------------------------------------------------------------------------


MISTAKES = {
    "command": (("trian",), "train"),
    "option": ((*TRAIN, "--lerning-rate", "1"), "--learning-rate"),
    "argument too many": ((*TRAIN, "surplus"), "surplus"),
    "environment": (("train", "--env", "MiniGrid-Emtpy-5x5-v0"), ENV),
    "environment of another kind": (("train", "--env", "Blackjack-v1"), "Blackjack-v1"),
    "suite": (("train", "--suite", "dorkey"), "doorkey"),
    "suite and environment": ((*TRAIN, "--suite", "empty"), "--suite"),
    "neither": (("train",), "give exactly one of --suite NAME and --env ID; 'rims suites' lists"),
    "core": ((*TRAIN, "--core", "transformer"), "--core"),
    "k above the mechanisms": ((*TRAIN, "--num-rims", "4", "--k", "5"), "--k"),
    "hidden size": ((*TRAIN, "--hidden-size", "30"), "--hidden-size"),
    "minibatches": ((*TRAIN, "--num-envs", "10", "--minibatches", "4"), "--minibatches"),
    "actions": ((*TRAIN, "--actions", "left,jump"), "--actions"),
    "actions the task has not": (
        ("train", "--env", "MiniGrid-Dynamic-Obstacles-5x5-v0", "--actions", "toggle"),
        "actions must be of those that MiniGrid-Dynamic-Obstacles-5x5-v0 has, left, right,",
    ),
    "seed too large": ((*TRAIN, "--seed", str(2**31)), "--seed"),
    "seed negative": ((*TRAIN, "--seed", "-1"), "--seed"),
    "number": ((*TRAIN, "--gamma", "high"), "--gamma"),
    "not a number": ((*TRAIN, "--gamma", "nan"), "--gamma"),
    "infinite": ((*TRAIN, "--learning-rate", "inf"), "--learning-rate"),
    "no steps": ((*TRAIN, "--total-steps", "0"), "--total-steps"),
    "device": ((*TRAIN, "--device", "cuda:99"), "cuda:99"),
    "run folder is a file": ((*TRAIN, "--run-dir", "../file"), "file"),
    "run folder below a file": ((*TRAIN, "--run-dir", "../file/run"), "cannot be written"),
    "run folder in use": ((*TRAIN, "--run-dir", "../used"), "not empty"),
    "no config file": ((*TRAIN, "--config", "nowhere.toml"), "nowhere.toml"),
    "config file of something else": ((*TRAIN, "--config", "../used/notes.txt"), "notes.txt"),
    "evaluate no run": (("evaluate",), "RUN"),
    "evaluate missing run": (("evaluate", "nowhere"), "nowhere"),
    "evaluate no run folder": (("evaluate", "../used"), FOLDER_NAME),
    "evaluate suite": (("evaluate", "nowhere", "--suite", "dorkey"), "doorkey"),
    "evaluate environment": (("evaluate", "nowhere", "--env", "MiniGrid-Nope-v0"), "Nope"),
    "evaluate episodes": (("evaluate", "nowhere", "--episodes", "0"), "--episodes"),
    "evaluate seed": (("evaluate", "nowhere", "--seed", str(2**31)), "--seed"),
    "evaluate mode": (("evaluate", "nowhere", "--mode", "best"), "--mode"),
    "compare no suite": (("compare", "--run-root", "root"), "--suite"),
    "compare no root": (("compare", "--suite", "empty"), "--run-root"),
    "compare suite": (("compare", "--suite", "emtpy", "--run-root", "root"), "empty"),
    "compare core": ((*COMPARE, "--cores", "lstm,transformer"), "transformer"),
    "compare no core": ((*COMPARE, "--cores", ","), "--cores"),
    "compare task": ((*COMPARE, "--tasks", "Empty-7x7"), "--tasks"),
    "compare no task": ((*COMPARE, "--tasks", ","), "--tasks"),
    "compare seeds": ((*COMPARE, "--seeds", "0"), "--seeds"),
    "compare k": ((*COMPARE, "--k", "9"), "--k"),
    "compare root below a file": (
        ("compare", "--suite", "empty", "--run-root", "../file/root"),
        "cannot be written",
    ),
    "record no output": (("record", "nowhere"), "--out"),
    "record missing run": (("record", "nowhere", "--out", "a.gif"), "nowhere"),
    "record another format": (("record", "nowhere", "--out", "a.avi"), "--out"),
    "record folder": (("record", "nowhere", "--out", "nowhere/a.gif"), "--out"),
    "record into a file": (("record", "nowhere", "--out", "../file/a.gif"), "--out"),
    "record speed": (("record", "nowhere", "--out", "a.gif", "--fps", "0"), "--fps"),
    "suites option": (("suites", "--jsn"), "--json"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_and_nothing_is_written(tmp_path: Path, rims: Rims, name: str) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("my notes")
    before = tree(tmp_path)
    arguments, hint = MISTAKES[name]
    assert hint in assert_one_line(rims(*arguments))
    assert tree(tmp_path) == before


def test_mistakes_with_a_trained_agent(tmp_path: Path, rims: Rims, toy_run: Path) -> None:
    before = tree(tmp_path), tree(toy_run)
    other = "MiniGrid-Dynamic-Obstacles-5x5-v0"  # 3 actions
    line = assert_one_line(rims("evaluate", str(toy_run), "--env", other))
    assert "has 3 actions" in line
    assert other in line
    line = assert_one_line(rims("record", str(toy_run), "--out", "a.gif", "--env", other))
    assert other in line
    assert "not empty" in assert_one_line(rims(*TRAIN, "--run-dir", str(toy_run)))
    assert (tree(tmp_path), tree(toy_run)) == before


def test_damaged_checkpoint_is_one_line(tmp_path: Path, rims: Rims, toy_run: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(toy_run, folder)
    path = agent_store(folder).load().path
    path.write_bytes(path.read_bytes()[:-100])
    for arguments in (
        ("evaluate", str(folder)),
        ("record", str(folder), "--out", "a.gif"),
        ("resume", str(folder)),
    ):
        assert str(path) in assert_one_line(rims(*arguments), code=1)  # no mistake of the user


def test_mistake_in_a_real_process_is_one_line(tmp_path: Path) -> None:
    with process("train", "--env", "MiniGrid-Nope-v0", folder=tmp_path) as running:
        result = Result(0, *running.communicate(timeout=60))._replace(code=running.returncode)
    assert "MiniGrid-Nope-v0" in assert_one_line(result)
    assert tree(tmp_path) == {}


def test_no_command_prints_the_help(rims: Rims) -> None:
    result = rims()
    text = result.out + result.err
    assert "Usage:" in text
    assert "Error: Usage" not in text


def test_compare_checks_mechanisms_only_for_cores_that_have_them(
    tmp_path: Path, rims: Rims
) -> None:
    (tmp_path / "file").touch()
    arguments = ("--suite", "empty", "--cores", "lstm,gru", "--hidden-size", "30")
    line = assert_one_line(rims("compare", *arguments, "--run-root", "../file/root"))
    assert "--hidden-size" not in line
    assert "cannot be written" in line


def test_compare_names_its_own_option_for_a_wrong_core(rims: Rims) -> None:
    assert "--cores" in assert_one_line(rims(*COMPARE, "--cores", "transformer"))


@pytest.mark.parametrize("arguments", [("--device", "meta"), ("--threads", str(2**40))])
def test_machine_settings_torch_refuses_are_one_line(rims: Rims, arguments: tuple[str]) -> None:
    assert_one_line(rims(*TRAIN, *TOY, *arguments))


# Failures ---------------------------------------------------------------------------------------


def test_training_that_breaks_down_is_one_line(rims: Rims, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TrainingError("value_loss", 3)

    monkeypatch.setattr(Trainer, "run", fail)
    result = rims(*TRAIN, *TOY)
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith("Error: training stopped in update 3: value_loss")
    assert line.endswith("No checkpoint was saved.")


def test_second_writer_is_refused(tmp_path: Path, rims: Rims) -> None:
    for folder, arguments in (
        ("run", (*TRAIN, *TOY, "--run-dir", "run")),
        ("root", (*COMPARE, *TOY)),
    ):
        (tmp_path / "here" / folder).mkdir()
        lock = lock_folder(tmp_path / "here" / folder)
        line = assert_one_line(rims(*arguments))
        assert "in use by process" in line
        assert f"'{folder}'" in line
        lock.release()


def test_comparison_that_cannot_be_judged_is_one_line(
    rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NothingToCompare("some runs could not be evaluated. lstm seed 0 (x): y")

    monkeypatch.setattr("lab.comparing.train_missing", lambda *_: [])
    monkeypatch.setattr(comparing, "judge", fail)
    result = rims(*COMPARE, *TOY)
    assert result.code == 1
    assert result.err == "Error: some runs could not be evaluated. lstm seed 0 (x): y\n"
