"""A command that is refused has changed nothing: no name, no byte, no time of any file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.learning.checkpoint import agent_store
from command_line import TOY, TRAIN, Rims, assert_one_line, snapshot
from experiment_cases import line
from experiments.fit import fit
from lab.disk.folder import CONFIG_NAME
from lab.disk.lock import lock_folder
from test_cli_mistakes import MISTAKES

MORE = ("--total-steps", "600")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_changes_nothing(tmp_path: Path, rims: Rims, name: str) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("my notes")
    before = snapshot(tmp_path)
    assert_one_line(rims(*MISTAKES[name][0]))
    assert snapshot(tmp_path) == before


@pytest.fixture
def run(toy_run: Path, tmp_path: Path, rims: Rims) -> Path:
    """A complete run that was copied from elsewhere, so that nobody has locked it here yet."""
    folder = Path(shutil.copytree(toy_run, tmp_path / "here" / "run"))
    for name in (".lock", ".lock-holder"):
        (folder / name).unlink(missing_ok=True)
    return folder


def damage(run: Path) -> None:
    agent_store(run).load().path.write_bytes(b"x")


def cut_manifest(run: Path) -> None:
    agent_store(run).manifest(agent_store(run).numbers()[-1]).write_bytes(b"{")


def break_config(run: Path) -> None:
    (run / CONFIG_NAME).write_text("= nonsense")


def remove_config_and_checkpoints(run: Path) -> None:
    (run / CONFIG_NAME).unlink()
    shutil.rmtree(run / "checkpoints")


def rename_for_comparison(run: Path) -> None:
    run.rename(run.with_name("rim_lstm-seed0"))


def leave_alone(_: Path) -> None:
    pass


#: What is done to the run, and what is refused then.
REFUSALS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "resume on no device": (leave_alone, ("resume", "run", *MORE, "--device", "cuda:99")),
    "resume on a device that computes nothing": (
        leave_alone,
        ("resume", "run", *MORE, "--device", "meta"),
    ),
    "resume a damaged run": (damage, ("resume", "run", *MORE)),
    "resume a run with half a manifest": (cut_manifest, ("resume", "run", *MORE)),
    "resume a run without settings": (break_config, ("resume", "run", *MORE)),
    "resume no run": (remove_config_and_checkpoints, ("resume", "run", *MORE)),
    "train where a run is": (leave_alone, (*TRAIN, *TOY, "--run-dir", "run")),
    "train from a damaged run": (
        damage,
        (*TRAIN, *TOY, "--init-from", "run", "--run-dir", "new"),
    ),
    "evaluate a damaged run": (damage, ("evaluate", "run")),
    "evaluate another checkpoint": (leave_alone, ("evaluate", "run", "--checkpoint", "77")),
    "record a damaged run": (damage, ("record", "run", "--out", "x.gif")),
    "record into no folder": (leave_alone, ("record", "run", "--out", "no/x.gif")),
    "plot no column": (leave_alone, ("plot", "run", "--out", "x.png", "--metrics", "no")),
    "plot in no format": (leave_alone, ("plot", "run", "--out", "x.bmp")),
    "compare other settings": (
        rename_for_comparison,
        ("compare", "--suite", "empty", *TOY, "--run-root", ".", "--cores", "rim_lstm"),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_with_a_run_changes_nothing(
    run: Path, rims: Rims, tmp_path: Path, name: str
) -> None:
    change, arguments = REFUSALS[name]
    change(run)
    before = snapshot(tmp_path)
    result = rims(*arguments)
    assert_one_line(result, code=result.code)
    assert result.code in (1, 2)
    assert snapshot(tmp_path) == before


def test_refusal_is_seen_where_something_is_written(run: Path, rims: Rims, tmp_path: Path) -> None:
    """The control of the tests above."""
    before = snapshot(tmp_path)
    (run / CONFIG_NAME).touch()
    assert snapshot(tmp_path) != before
    before = snapshot(tmp_path)
    assert rims("resume", "run", *MORE).code == 0
    assert snapshot(tmp_path) != before


@pytest.mark.parametrize(
    "arguments",
    [
        ("resume", "run", *MORE),
        (*TRAIN, *TOY, "--run-dir", "run"),
        ("compare", "--suite", "empty", *TOY, "--run-root", "run"),
        ("experiment", "copying", "--run-root", "run"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_refusal_of_a_second_writer_changes_nothing(
    run: Path, rims: Rims, arguments: tuple[str, ...]
) -> None:
    lock = lock_folder(run)
    before = snapshot(run)
    assert f"in use by process {os.getpid()}" in assert_one_line(rims(*arguments))
    assert snapshot(run) == before
    lock.release()


def test_disk_without_room_leaves_no_folder(
    tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    before = sorted(tmp_path.rglob("*"))
    assert "has room for 0 MB" in assert_one_line(rims(*TRAIN, *TOY, "--run-dir", "run"), code=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_experiment_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    fit(line(), tmp_path / "run")
    before = snapshot(tmp_path)
    for settings in ({"learning_rate": 0.1}, {"seed": 3}, {"model": "mlp"}):
        with pytest.raises(ValueError, match="now asked for"):
            fit(line(**settings), tmp_path / "run")
    assert snapshot(tmp_path) == before
