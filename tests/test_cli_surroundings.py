"""What is around a command: streams, variables, folders and limits."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents.commands.parsing.errors import os_trouble
from command_line import ENV, ROOT, TOY, Result, Rims, assert_one_line, tree
from lab.disk.folder import PROGRESS_NAME, require_writable
from lab.disk.output import check_output, is_unfinished, whole_file
from lab.running import ranks
from run_cases import make_run

NO_ROOM = "No space left on device; make room, or give another place."


def shell(script: str, folder: Path, **variables: str) -> Result:
    """What a shell makes of a line, in which ``rims`` is the command."""
    rims = f'rims() {{ "{sys.executable}" -m cli "$@"; }}; '
    done = subprocess.run(
        ["bash", "-c", rims + script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


# Variables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_variables_that_figures_have_no_use_for_change_nothing(
    tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    make_run(tmp_path / "run")
    assert rims("plot", "../run", "--out", f"a.{ending}").code == 0
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "x")
    assert rims("plot", "../run", "--out", f"b.{ending}").code == 0
    here = tmp_path / "here"
    assert (here / f"a.{ending}").read_bytes() == (here / f"b.{ending}").read_bytes()


def test_backend_that_is_nonsense_is_seen_by_no_library(tmp_path: Path) -> None:
    make_run(tmp_path / "run")  # in a process that has not imported matplotlib
    result = shell("rims plot run --out a.png", tmp_path, MPLBACKEND="nonsense")
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK": "5", "WORLD_SIZE": "2"}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "0"}, (0, 1)),
        ({"RANK": "x", "WORLD_SIZE": "2"}, (0, 1)),
    ],
)
def test_processes_are_what_the_variables_say_if_they_can_be(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: tuple[int, int]
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "x")
    assert ranks.launched() == expected
    assert ranks.processes_here(8) == 1


# Streams and folders ------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    result = shell("rims suites > /dev/full", tmp_path)
    assert assert_one_line(result, code=1) == f"Error: 'standard output': {NO_ROOM}"


@pytest.mark.long
def test_closed_streams_are_no_traceback_and_no_file_gets_their_number(
    tmp_path: Path, toy_run: Path
) -> None:
    result = shell(f"rims evaluate '{toy_run}' --episodes 1 >&- 2>err <&-; echo $?", tmp_path)
    assert result.out == "0\n"
    assert "Traceback" not in (tmp_path / "err").read_text()


def test_removed_working_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    train = f"rims train --env {ENV} --core none --total-steps 8 --run-dir '{tmp_path}/run'"
    result = shell(f"cd gone; rmdir ../gone; {train}", tmp_path)
    assert "the working directory cannot be used" in assert_one_line(result)
    assert tree(tmp_path) == {}


def test_folder_may_be_as_deep_as_the_system_has_it(tmp_path: Path, rims: Rims) -> None:
    deep = Path(*["d"] * 1500)  # more than Python calls itself
    require_writable(tmp_path / deep)
    assert (tmp_path / deep).is_dir()
    for _ in range(1500):  # pytest would call itself for each
        deep, parent = deep.parent, tmp_path / deep
        parent.rmdir()
    too_deep = "/".join(["d" * 100] * 50)
    line = assert_one_line(rims("train", "--env", ENV, "--run-dir", too_deep))
    assert "File name too long" in line
    assert tree(tmp_path / "here") == {}


@pytest.mark.parametrize(
    "call",
    [
        ("train", "--env", ENV, *TOY, "--core", "none", "--run-dir"),
        ("compare", "--suite", "empty", *TOY, "--cores", "none", "--run-root"),
        ("experiment", "adding", "--run-root"),
    ],
)
def test_name_that_tensorboard_cannot_write_is_refused(
    tmp_path: Path, rims: Rims, call: tuple[str, ...]
) -> None:
    line = assert_one_line(rims(*call, os.fsdecode(b"caf\xe9")))
    assert "a name in UTF-8" in line
    assert tree(tmp_path / "here") == {}


def test_link_that_leads_to_itself_is_one_line(tmp_path: Path, rims: Rims) -> None:
    for name in ("loop", "loop.toml"):
        (tmp_path / "here" / name).symlink_to(name)
    before = sorted((tmp_path / "here").iterdir())
    for option in (("--env", ENV, "--init-from", "loop"), ("--suite", "loop.toml")):
        assert "loop" in assert_one_line(rims("train", *option))
    assert sorted((tmp_path / "here").iterdir()) == before


# Files that are to be written -------------------------------------------------------------------


def test_name_is_as_long_as_it_may_be_and_no_longer(tmp_path: Path, rims: Rims) -> None:
    make_run(tmp_path / "run")
    longest, too_long = "é" * 125 + "a.png", "é" * 125 + "ab.png"
    assert len(os.fsencode(longest)) == 255
    assert rims("plot", "../run", "--out", longest).code == 0
    line = assert_one_line(rims("plot", "../run", "--out", too_long))
    assert "File name too long" in line
    assert [path.name for path in (tmp_path / "here").iterdir()] == [longest]


@pytest.mark.parametrize("length", [1, 100, 245, 250, 251])
def test_a_file_is_written_whatever_the_length_of_its_name(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("a" * length + ".png")
    check_output(path, (".png",))
    with whole_file(path) as unfinished:
        assert is_unfinished(unfinished)
        unfinished.write_bytes(b"whole")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    with pytest.raises(ValueError, match=r"--out: '.*x\.png' is not a file and would be lost"):
        check_output(path, (".png",))
    assert not path.is_file()
    path.unlink()
    path.write_text("old")
    check_output(path, (".png",))
    assert tree(tmp_path) == {"x.png": b"old"}


def test_write_that_fails_tells_the_name(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as caught, whole_file(tmp_path / "a"):
        fail()
    assert os_trouble(caught.value) == f"'{tmp_path / 'a'}': {NO_ROOM}"
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EACCES, "permissions"),
        (errno.ENAMETOOLONG, "give another"),
    ],
)
def test_what_the_system_refuses_has_a_name_and_a_cure(number: int, cure: str) -> None:
    told = os_trouble(OSError(number, os.strerror(number), "x"))
    assert told.startswith(f"'x': {os.strerror(number)}; ")
    assert cure in told
    assert "another" not in os_trouble(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))


# Limits -----------------------------------------------------------------------------------------


def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    train = f"rims train --env {ENV} --core lstm --hidden-size 1024 --total-steps 8 --run-dir run"
    result = shell(f"ulimit -v 500000; {train}", tmp_path)
    assert result.code in (1, 2)
    assert "memory" in assert_one_line(result, code=result.code)
    assert tree(tmp_path) == {}


def test_too_small_files_are_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    result = shell("ulimit -f 4; rims plot run --out a.png", tmp_path)
    line = assert_one_line(result, code=1)
    assert line.endswith(
        "a.png': File too large; raise the limit on the size of files ('ulimit -f')."
    )
    assert sorted(tree(tmp_path)) == ["run", "run/config.toml", f"run/{PROGRESS_NAME}"]
