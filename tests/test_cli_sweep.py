"""``rims sweep``: a whole one, one that was killed, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("optuna", reason="a sweep needs optuna, which is not installed")

import cli
from agents.learning.checkpoint import load_checkpoint
from agents.sweep import study
from agents.sweep.run import Measured
from command_line import ROOT, Rims, assert_one_line, process, tree, wait_for_rows
from lab.disk.folder import PROGRESS_NAME
from lab.disk.lock import HOLDER_NAME, LOCK_NAME, lock_folder
from lab.running.processes import Outcome

TOML = """\
[sweep]
trials = 2
[settings]
env = "MiniGrid-Empty-Random-5x5-v0"
total_steps = {steps}
num_envs = 2
rollout_steps_per_env = 128
minibatches = 1
epochs = 1
hidden_size = 8
[search]
learning_rate = {{low = 1e-4, high = 1e-2, log = true}}
core = {{choices = ["none"]}}
"""
SWEEP = ("sweep", "--config", "sweep.toml", "--out", "out", "--jobs", "1")


def write(folder: Path, steps: int = 512) -> None:
    (folder / "sweep.toml").write_text(TOML.format(steps=steps))


@pytest.mark.long
def test_killed_sweep_goes_on_and_reports(tmp_path: Path, rims: Rims) -> None:
    here = tmp_path / "here"
    write(here, steps=100_000_000)
    with process(*SWEEP, folder=here) as running:
        wait_for_rows(running, here / "out" / "trial-000-seed0" / PROGRESS_NAME)
        os.killpg(running.pid, signal.SIGKILL)  # the run's process too
        running.communicate(timeout=60)
    write(here)
    assert "total_steps = 100000000, now asked for 512" in assert_one_line(rims(*SWEEP))
    write(here, steps=100_000_000)
    out = here / "out"
    progress = out / "trial-000-seed0" / PROGRESS_NAME
    lines = progress.read_text().splitlines()
    with process(*SWEEP, folder=here) as running:
        wait_for_rows(running, progress, more_than=len(lines) + 1)
        os.killpg(running.pid, signal.SIGINT)  # what Ctrl-C does
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "Interrupted; the same command goes on from what is in out."
    assert not list(out.glob("*.interrupted-*"))
    assert load_checkpoint(out / "trial-000-seed0").updates >= len(lines)


def test_sweep_trains_and_writes(tmp_path: Path, rims: Rims) -> None:
    here = tmp_path / "here"
    write(here)
    result = rims(*SWEEP)
    assert result.code == 0, result.err
    out = here / "out"
    names = {"sweep.md", "sweep.json", "sweep.png", "best.toml", "study.db"}
    folders = {"trial-000-seed0", "trial-001-seed0"}
    assert {path.name for path in out.iterdir()} - {LOCK_NAME, HOLDER_NAME} == names | folders
    assert result.out == (out / "sweep.md").read_text()
    plain = json.loads((out / "sweep.json").read_text())
    for trial in plain["trials"]:
        config = load_checkpoint(out / f"trial-{trial['number']:03d}-seed0").config
        assert config.learning_rate == trial["settings"]["learning_rate"]
        assert 0 <= trial["value"] <= 1
    assert "[2/2] trial 1: " in result.err
    assert "best.toml" in result.err.splitlines()[-1]
    again = rims(*SWEEP)
    assert again.out == result.out
    assert again.err.startswith("2 of 2 trials are in out.\n")
    best = ("--config", "out/best.toml", "--seed", "1", "--total-steps", "1", "--run-dir", "run")
    assert rims("train", *best).code == 0


def test_sweep_whose_trials_all_fail_says_why(
    tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        *_, on_end = arguments
        for place, _ in enumerate(arguments[1]):
            on_end(place, Outcome(error="out of memory."))

    monkeypatch.setattr(study, "run_all", fail)
    write(tmp_path / "here")
    result = rims(*SWEEP)
    assert result.code == 1
    assert result.err.splitlines()[-1] == (
        "Error: every trial failed; the first: trial-000-seed0: out of memory."
    )
    assert "## Failed" in result.out


def test_unseen_tasks_reach_the_runs(
    tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[object, ...]] = []

    def take(*arguments: Any) -> None:
        *_, on_end = arguments
        for place, call in enumerate(arguments[1]):
            taken.append(call[2:])
            on_end(place, Outcome(result=Measured(0.5, 1.0)))

    monkeypatch.setattr(study, "run_all", take)
    text = TOML.format(steps=512).replace('env = "MiniGrid-Empty-Random-5x5-v0"', 'suite = "empty"')
    more = 'trials = 2\nobjective = "unseen_success_rate"\nepisodes = 7'
    Path("sweep.toml").write_text(text.replace("trials = 2", more))
    result = rims(*SWEEP)
    assert result.code == 0
    assert {call[1] for call in taken} == {7}
    assert "Empty-Random-6x6, Empty-8x8, Empty-16x16" in result.out
    assert "Nor are the tasks it was chosen on unseen any more." in result.out


MISTAKES = {
    "no file": (("sweep", "--out", "out"), "--config"),
    "no folder": (("sweep", "--config", "sweep.toml"), "--out"),
    "missing file": (("sweep", "--config", "swep.toml", "--out", "out"), "swep.toml"),
    "wrong file": (("sweep", "--config", "wrong.toml", "--out", "out"), "did you mean 'epochs'?"),
    "device": (("sweep", "--config", "device.toml", "--out", "out"), "cuda:99"),
    "jobs": ((*SWEEP, "--jobs", "0"), "--jobs"),
    "folder of something else": (("sweep", "--config", "sweep.toml", "--out", "."), "no sweep"),
    "folder is a file": (("sweep", "--config", "sweep.toml", "--out", "sweep.toml"), "sweep.toml"),
    "below a file": (("sweep", "--config", "sweep.toml", "--out", "sweep.toml/a"), "be written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_and_nothing_is_written(tmp_path: Path, rims: Rims, name: str) -> None:
    here = tmp_path / "here"
    write(here)
    text = (here / "sweep.toml").read_text()
    (here / "wrong.toml").write_text(text + "epoch = {low = 1, high = 2}\n")
    (here / "device.toml").write_text(text.replace("[search]", 'device = "cuda:99"\n[search]'))
    before = tree(tmp_path)
    arguments, hint = MISTAKES[name]
    assert hint in assert_one_line(rims(*arguments))
    assert tree(tmp_path) == before


def test_folder_in_use_is_refused(tmp_path: Path, rims: Rims) -> None:
    write(tmp_path / "here")
    Path("out").mkdir()
    lock = lock_folder(Path("out"))
    assert "in use by process" in assert_one_line(rims(*SWEEP))
    lock.release()


def test_without_optuna_one_line_says_what_to_install(
    tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "here")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else find(name)
    )
    assert "pip install 'rims-toolkit[sweep]'" in assert_one_line(rims(*SWEEP))
    assert not Path("out").exists()


def test_help_shows_the_example() -> None:
    text = CliRunner().invoke(cli.rims, ["sweep", "--help"], terminal_width=100).output
    example = (ROOT / "examples" / "sweep.toml").read_text().splitlines()[1:]
    shown = [line.strip() for line in text.splitlines()]
    assert [line for line in example if line and line not in shown] == []


@pytest.mark.parametrize("arguments", [["sweep", "--help"], ["sweep", "--config", "no.toml"]])
def test_help_and_mistakes_import_neither_torch_nor_optuna(arguments: list[str]) -> None:
    code = (
        "import atexit, sys;"
        "atexit.register(lambda: print({'torch', 'optuna', 'matplotlib'} & set(sys.modules)));"
        f"sys.argv = ['rims', *{arguments!r}]; import cli; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "set()"
