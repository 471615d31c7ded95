"""Files that are written whole: what a killed process leaves, and whose it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import ROOT
from lab.disk.folder import claim_folder
from lab.disk.output import is_unfinished, remove_abandoned, whole_file, write_text

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from lab.disk.output import whole_file
with whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_next_write_removes_what_killed_ones_left(tmp_path: Path) -> None:
    for _ in range(2):
        killed_while_writing(tmp_path / "o.gif")
    assert len(names(tmp_path)) == 1  # the second one removed what the first one left
    with whole_file(tmp_path / "other.png") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == ["other.png"]


def test_a_command_that_claims_a_folder_clears_it(tmp_path: Path) -> None:
    killed_while_writing(tmp_path / "comparison.json")
    claim_folder(tmp_path).release()
    assert names(tmp_path) == [".lock", ".lock-holder"]


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as first:
        first.write_text("a")
        with whole_file(tmp_path / "b") as second:
            second.write_text("b")
            remove_abandoned(tmp_path)
            assert sorted(map(is_unfinished, (first, second))) == [True, True]
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["a", "b"]


def test_files_of_others_stay(tmp_path: Path) -> None:
    """Only regular files of our own form are removed; the control is what is."""
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / ".rims-1-0123abcd.tmp").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".rims-2-0123abcd.tmp").mkdir()
    os.mkfifo(tmp_path / ".rims-3-0123abcd.tmp")
    for name in ("notes.tmp", "notes.12.tmp", ".rims-x.tmp", "o.gif.1.tmp.bak"):
        (tmp_path / name).write_text("mine")
    before = names(tmp_path)
    for name in (".rims-4-0123abcd.tmp", "o.gif.5.tmp"):
        (tmp_path / name).write_text("ours")
    remove_abandoned(tmp_path, "o.gif")
    assert names(tmp_path) == before
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "failure.txt").symlink_to(tmp_path / "elsewhere")
    write_text(tmp_path / "failure.txt", "ours")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert (tmp_path / "failure.txt").read_text() == "ours"


def test_name_of_any_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 251}.gif"
    with whole_file(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), whole_file(tmp_path / "a"):
        raise error
    assert names(tmp_path) == []
