"""``rims plot``: what it writes and prints, and its mistakes."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from command_line import Rims, assert_one_line, tree
from lab.disk.folder import PROGRESS_NAME
from run_cases import columns, make_run


def test_runs_become_a_file(tmp_path: Path, rims: Rims) -> None:
    for core in ("lstm", "gru"):
        for seed in (0, 1):
            make_run(tmp_path / "root" / f"{core}-seed{seed}", core=core, seed=seed)
    make_run(tmp_path / "root" / "lstm-seed0.interrupted-1", core="lstm")
    make_run(tmp_path / "root" / "none-seed0", {}, core="none")  # has just begun
    before = tree(tmp_path / "root")
    result = rims("plot", "../root", "--out", "curves.svg", "--metrics", "entropy", "--x", "update")
    assert (result.code, result.err) == (0, "")
    assert result.out == "4 runs, 2 lines per panel: curves.svg\n"
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["curves.svg"]
    assert tree(tmp_path / "root") == before


def test_run_being_written_is_drawn_as_far_as_it_is(tmp_path: Path, rims: Rims) -> None:
    run = make_run(tmp_path / "run", columns(3))
    with (run / PROGRESS_NAME).open("a") as file:
        file.write("4,400,8")
    result = rims("plot", str(run), "--out", "curves.png")
    assert (result.code, result.out) == (0, "1 run, 1 line per panel: curves.png\n")


def test_full_disk_is_one_line(tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    make_run(tmp_path / "run")
    monkeypatch.setattr("os.fsync", fail)
    result = rims("plot", "../run", "--out", "curves.png")
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        "Error: 'curves.png': No space left on device; make room, or give another place.\n"
    )


MISTAKES = {
    "no run": (("--out", "a.png"), "RUN"),
    "no output": (("../run",), "--out"),
    "missing run": (("../run", "../nowhere", "--out", "a.png"), "nowhere"),
    "no run in it": (("..", "../none", "--out", "a.png"), "none"),
    "a file": (("../run/progress.csv", "--out", "a.png"), "progress.csv"),
    "empty run": (("../begun", "--out", "a.png"), "begun"),
    "format": (("../run", "--out", "a.jpg"), ".png, .svg or .pdf"),
    "folder": (("../run", "--out", "nowhere/a.png"), "--out"),
    "metric": (("../run", "--out", "a.png", "--metrics", "entorpy"), "did you mean 'entropy'"),
    "no metric": (("../run", "--out", "a.png", "--metrics", ","), "--metrics"),
    "x": (("../run", "--out", "a.png", "--x", "steps"), "env_steps"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_and_nothing_is_written(tmp_path: Path, rims: Rims, name: str) -> None:
    make_run(tmp_path / "run")
    make_run(tmp_path / "begun", {})
    (tmp_path / "none").mkdir()
    before = tree(tmp_path)
    arguments, hint = MISTAKES[name]
    assert hint in assert_one_line(rims("plot", *arguments))
    assert tree(tmp_path) == before
