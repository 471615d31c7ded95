"""``rims watch``: beside real training, its end, and its mistakes."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from command_line import TOY, TRAIN, Rims, assert_one_line, process, tree, wait_for_rows
from lab.disk.folder import PROGRESS_NAME
from lab.disk.lock import lock_folder
from run_cases import make_run


def test_finished_run_is_told_at_once(tmp_path: Path, rims: Rims) -> None:
    run = make_run(tmp_path / "run")
    before = tree(run)
    result = rims("watch", str(run))
    assert (result.code, result.err) == (0, "")
    line, end = result.out.splitlines()
    assert line.startswith("500/500 steps")
    assert end == "Training has ended after 500 of 500 steps."
    assert tree(run) == before


def test_training_is_watched_to_its_end(tmp_path: Path) -> None:
    arguments = (*TRAIN, *TOY, "--total-steps", "100000000", "--run-dir", "run")
    with process(*arguments, folder=tmp_path) as training:
        wait_for_rows(training, tmp_path / "run" / PROGRESS_NAME)
        with process("watch", "run", "--interval", "0.1", folder=tmp_path) as watching:
            assert watching.stdout is not None
            lines = [watching.stdout.readline() for _ in range(2)]
            training.send_signal(signal.SIGINT)
            rest, err = watching.communicate(timeout=60)
        training.communicate(timeout=60)
    assert (watching.returncode, err, training.returncode) == (0, "", 130)
    first, second = (int(line.split("/")[0].replace(",", "")) for line in lines)
    assert first < second
    assert rest.splitlines()[-1].startswith("Nothing is training here; this run stopped at ")


def test_interruption_is_quiet(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    lock = lock_folder(tmp_path)  # something is to come
    with process("watch", ".", "--interval", "0.1", folder=tmp_path) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("run: 500/500 steps")
        time.sleep(0.3)
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=60)
    lock.release()
    assert (watching.returncode, out, err) == (130, "", "")


MISTAKES = {
    "no run": ((), "RUN"),
    "missing run": (("../nowhere",), "nowhere"),
    "no run in it": (("../none",), "holds no run"),
    "damaged run": (("../damaged",), "not a table of numbers"),
    "two runs": (("../run", "../run"), "../run"),
    "interval": (("../run", "--interval", "0"), "--interval"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_and_nothing_is_written(tmp_path: Path, rims: Rims, name: str) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "none").mkdir()
    damaged = make_run(tmp_path / "damaged")
    (damaged / PROGRESS_NAME).write_text("update\r\nx\r\n")
    before = tree(tmp_path)
    arguments, hint = MISTAKES[name]
    assert hint in assert_one_line(rims("watch", *arguments))
    assert tree(tmp_path) == before
