"""``rims compare``: which seeds, reports of partial runs, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from command_line import COMPARE, TOY, Rims, assert_one_line, tree
from compare_cases import CORES, TASKS
from lab.disk.lock import lock_folder
from selection import short

#: What the comparison of the fixture ``root`` was made with.
AS_MADE = (
    *("compare", "--suite", "empty", "--cores", ",".join(CORES), "--run-root", "root"),
    *("--tasks", ",".join(task.name for task in TASKS), "--episodes", "6", "--jobs", "1"),
    *TOY[:-4],
    *("--total-steps", "256", "--hidden-size", "16", "--num-rims", "4", "--k", "2"),
)


@pytest.fixture
def here(root: Path, rims: Rims, tmp_path: Path) -> Path:
    """The finished comparison as ``root`` in the current folder."""
    return Path(shutil.copytree(root, tmp_path / "here" / "root"))


@pytest.mark.parametrize(
    ("typed", "seeds"),
    short([("2", [0, 1]), ("0-1", [0, 1]), ("1,0", [1, 0]), ("1-1", [1])], 0, 2),
)
def test_seeds_are_a_number_or_a_list(here: Path, rims: Rims, typed: str, seeds: list[int]) -> None:
    result = rims(*AS_MADE, "--seeds", typed, "--report-only", "--json")
    assert result.code == 0
    plain = json.loads(result.out)
    assert plain["seeds"] == seeds
    assert plain["cores"]["none"]["seeds"] == seeds
    assert plain["flags"] == []


@pytest.mark.parametrize(
    "seeds", ["0", "3-1", "x", "1,", "-1", "1--2", "2147483648-2147483648", "9999999"]
)
def test_seeds_that_cannot_be_are_refused(rims: Rims, seeds: str) -> None:
    assert "--seeds" in assert_one_line(rims(*COMPARE, "--seeds", seeds))


def test_report_only_trains_nothing_and_says_what_is_missing(here: Path, rims: Rims) -> None:
    shutil.rmtree(here / "none-seed1")
    lock = lock_folder(here)  # another command trains
    result = rims(*AS_MADE, "--seeds", "2", "--report-only")
    lock.release()
    assert result.code == 0
    assert "- none seed 1: there is no such run." in result.out
    assert not (here / "none-seed1").exists()
    assert result.out.strip() == (here / "comparison.md").read_text().strip()


def test_report_only_of_nothing_is_one_line(here: Path, rims: Rims, tmp_path: Path) -> None:
    for folder in here.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    before = tree(here)
    result = rims(*AS_MADE, "--report-only")
    assert (result.code, result.out) == (1, "")
    (line,) = result.err.splitlines()
    assert line.startswith("Error: no run could be compared. rim_gru seed 0, ")
    assert tree(here) == before
    line = assert_one_line(rims(*AS_MADE, "--report-only", "--run-root", "nowhere"))
    assert "--run-root" in line
    assert not (tmp_path / "here" / "nowhere").exists()


def test_failing_run_does_not_lose_the_others(here: Path, rims: Rims) -> None:
    shutil.rmtree(here / "none-seed1")
    (here / "none-seed1").touch()  # a file where a folder should be
    result = rims(*AS_MADE, "--seeds", "2", "--json")
    assert result.code == 1
    plain = json.loads(result.out)
    assert [flag["of"] for flag in plain["flags"]] == ["none seed 1"]
    assert plain["cores"]["none"]["seeds"] == [0]
    assert plain["cores"]["rim_gru"]["seeds"] == [0, 1]
    assert result.err.splitlines()[-1] == "Error: some runs failed; the report's flags say which."


def test_matching_is_refused_where_it_cannot_be(rims: Rims) -> None:
    line = assert_one_line(rims(*COMPARE, "--cores", "none,lstm", "--match-params"))
    assert "no recurrent parameters" in line
