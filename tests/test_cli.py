"""The command line: what it writes, prints and leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import cli
from agents.commands.parsing import options
from agents.config import PPOConfig
from agents.learning import session
from agents.learning.checkpoint import load_checkpoint
from command_line import (
    COMPARE,
    ENV,
    ROOT,
    TOY,
    TRAIN,
    Rims,
    assert_one_line,
    process,
    tree,
    wait_for_rows,
)
from envs import SUITES, Suite, get_suite
from forked import Forked
from lab.disk.folder import CONFIG_NAME, PROGRESS_NAME
from lab.disk.store import FOLDER_NAME

# Help -------------------------------------------------------------------------------------------


def squeeze(text: str) -> str:
    """Without white space, so that line breaks do not matter."""
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_lists_every_setting_with_help_and_default(command: str) -> None:
    result = CliRunner().invoke(cli.rims, [command, "--help"], terminal_width=100)
    assert result.exit_code == 0
    left_out = ("suite", "env", "core", "seed") if command == "compare" else ()
    text = squeeze(result.output)
    for field in dataclasses.fields(PPOConfig):
        if field.name in left_out:
            continue
        name = field.name.replace("_", "-")
        default = field.default
        shown = f"[default:{default}]"
        if isinstance(default, bool):
            assert f"--{name}/--no-{name}" in text
            shown = f"[default:{name if default else f'no-{name}'}]"
        elif default == "":
            shown = ""
        wanted = squeeze(field.metadata["help"]) + shown
        assert f"--{name}" in text
        assert wanted in text, field.name


def test_help_lists_the_commands() -> None:
    result = CliRunner().invoke(cli.rims, ["--help"])
    assert result.exit_code == 0
    for command in ("train", "evaluate", "compare", "record", "suites"):
        assert re.search(rf"^  {command}\s+\S", result.output, re.MULTILINE)
        assert CliRunner().invoke(cli.rims, [command, "-h"]).exit_code == 0


def test_version_is_printed(rims: Rims) -> None:
    result = rims("--version")
    assert result.code == 0
    assert re.search(r"\d+\.\d+", result.out)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["suites"], ["train", "--env", "MiniGrid-X-v0"]]
)
def test_quick_answers_do_not_import_torch(tmp_path: Path, arguments: list[str]) -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules));"
        f"sys.argv = ['rims', *{arguments!r}]; import cli; cli.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout.splitlines()[-1] == "False"


# What works -------------------------------------------------------------------------------------


def test_train_evaluate_record(tmp_path: Path, rims: Rims) -> None:
    result = rims("train", "--env", ENV, "--core", "rim_gru", "--seed", "3", *TOY, "--k", "2")
    folder = tmp_path / "here" / "runs" / "Empty-5x5-rim_gru-3"
    assert result.code == 0
    assert "runs/Empty-5x5-rim_gru-3" in result.out
    names = {path.name for path in folder.iterdir()}
    assert {CONFIG_NAME, PROGRESS_NAME, FOLDER_NAME} < names
    assert any(name.startswith("events.out.tfevents") for name in names)
    config = load_checkpoint(folder).config
    assert (config.core, config.seed, config.total_steps, config.k) == ("rim_gru", 3, 128, 2)

    result = rims("evaluate", str(folder), "--episodes", "5")
    assert result.code == 0
    assert re.search(r"Empty-5x5\s.*\b5\b", result.out)
    assert "sample" in result.out

    result = rims("record", str(folder), "--out", "a.gif", "--max-steps", "6")
    assert result.code == 0
    with Image.open(tmp_path / "here" / "a.gif") as image:
        assert f"{getattr(image, 'n_frames', 1)} frames: a.gif" in result.out
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"runs", "a.gif"}


def test_agent_of_few_actions_is_trained_resumed_judged_and_recorded(
    tmp_path: Path, rims: Rims
) -> None:
    call = ("train", "--env", ENV, "--core", "lstm", "--run-dir", "few", *TOY)
    assert rims(*call, "--actions", "forward, right").code == 0
    folder = tmp_path / "here" / "few"
    assert 'actions = "right,forward"' in (folder / CONFIG_NAME).read_text()
    assert rims("resume", "few", "--total-steps", "256").code == 0
    checkpoint = load_checkpoint(folder)
    assert checkpoint.env_steps >= 256
    assert checkpoint.make_policy().actor.out_features == 2
    shown = rims("evaluate", "few", "--episodes", "2")
    assert "actions by 'sample' from right, forward, seed 0" in squeeze_spaces(shown.out)
    written = rims("evaluate", "few", "--episodes", "2", "--json")
    assert json.loads(written.out)["actions"] == "right,forward"
    assert rims("record", "few", "--out", "few.gif", "--max-steps", "2").code == 0


def test_evaluate_shows_the_backend_and_the_task_trained_on(rims: Rims, toy_run: Path) -> None:
    arguments = ("--env", ENV, "--env", "MiniGrid-Empty-Random-5x5-v0", "--episodes", "2")
    result = rims("evaluate", str(toy_run), *arguments, "--backend", "gymnasium")
    assert "by 'sample', seed 0, environments by gymnasium" in squeeze_spaces(result.out)
    assert re.search(r"Empty-5x5 \(trained\) ", result.out)
    assert "Random-5x5 (trained)" not in result.out
    assert "nan" not in result.out


def squeeze_spaces(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_evaluate_json_is_one_document_and_repeats(rims: Rims, toy_run: Path) -> None:
    ids = ["MiniGrid-Empty-Random-5x5-v0", ENV]
    arguments = (*("--env", ids[0], "--env", ids[1]), "--episodes", "3")
    first, second = (rims("evaluate", str(toy_run), *arguments, "--json") for _ in range(2))
    assert first.code == 0
    assert first == second
    plain = json.loads(first.out)
    assert plain["core"] == "rim_lstm"
    assert [task["task"] for task in plain["tasks"]] == ids
    assert {task["episodes"] for task in plain["tasks"]} == {3}
    other = rims("evaluate", str(toy_run), *arguments, "--json", "--seed", "1")
    assert other.out != first.out


def test_evaluate_suite_is_every_task_of_it(rims: Rims, toy_run: Path) -> None:
    arguments = ("--suite", "multiroom", "--env", ENV, "--episodes", "1", "--json")
    plain = json.loads(rims("evaluate", str(toy_run), *arguments).out)
    ids = [*(task.id for task in SUITES["multiroom"].tasks), ENV]
    assert [task["task"] for task in plain["tasks"]] == ids


def test_evaluate_json_is_one_document_for_babyai(rims: Rims, toy_run: Path) -> None:
    """BabyAI prints when it rejects a level."""
    arguments = ("--env", "BabyAI-GoToObj-v0", "--episodes", "2", "--json")
    result = rims("evaluate", str(toy_run), *arguments)
    assert json.loads(result.out)["tasks"][0]["task"] == "BabyAI-GoToObj-v0"


def test_compare_writes_its_report_and_prints_json(tmp_path: Path, rims: Rims) -> None:
    arguments = (
        *("compare", "--suite", "empty", "--cores", "rim_lstm, gru", "--seeds", "1"),
        *("--tasks", "Empty-Random-5x5,MiniGrid-Empty-Random-6x6-v0", "--episodes", "3"),
        *("--run-root", "root", "--jobs", "1", *TOY),
    )
    first = rims(*arguments, "--json")
    assert first.code == 0
    plain = json.loads(first.out)
    assert list(plain["cores"]) == ["rim_lstm", "gru"]
    tasks = ["MiniGrid-Empty-Random-5x5-v0", "MiniGrid-Empty-Random-6x6-v0"]
    assert list(plain["cores"]["gru"]["tasks"]) == tasks
    root = tmp_path / "here" / "root"
    assert json.loads((root / "comparison.json").read_text()) == plain
    for name in ("comparison.md", "learning_curves.png", "tasks.png"):
        assert (root / name).stat().st_size > 0
        assert name in first.err
    again = rims(*arguments)
    assert again.out.strip() == (root / "comparison.md").read_text().strip()
    assert json.loads((root / "comparison.json").read_text()) == plain

    assert "total_steps" in assert_one_line(rims(*arguments, "--total-steps", "256"))


def test_compare_reports_a_failing_run(tmp_path: Path, rims: Rims) -> None:
    (tmp_path / "here" / "root").mkdir()
    (tmp_path / "here" / "root" / "none-seed0").touch()  # a file where a folder should be
    arguments = ("--cores", "none", "--seeds", "1", "--jobs", "1", *TOY)
    result = rims(*COMPARE, *arguments)
    assert result.code == 1
    assert result.out == ""
    (line,) = result.err.splitlines()[-1:]
    assert line.startswith("Error: ")
    assert "none seed 0" in line
    assert "Traceback" not in result.err


def test_suites_lists_every_task(rims: Rims) -> None:
    result = rims("suites")
    plain = json.loads(rims("suites", "--json").out)
    assert list(plain) == list(SUITES)
    for name, suite in SUITES.items():
        assert plain[name]["train"] == suite.train.id
        assert plain[name]["unseen"] == [task.id for task in suite.unseen]
        assert plain[name]["preset"] == dict(suite.preset)
        assert all(task.id in result.out for task in suite.tasks)


# Where settings come from -----------------------------------------------------------------------


def trained_settings(rims: Rims, *arguments: str) -> dict[str, object]:
    assert rims("train", *arguments, "--run-dir", "run").code == 0
    return PPOConfig.read_some(Path("run") / CONFIG_NAME)


def test_config_file_is_used_and_typed_options_win(rims: Rims, toy_run: Path) -> None:
    file = str(toy_run / CONFIG_NAME)
    expected = {**PPOConfig.read_some(toy_run / CONFIG_NAME), "total_steps": 128, "gamma": 0.5}
    arguments = ("--config", file, "--total-steps", "128", "--gamma", "0.5")
    assert trained_settings(rims, *arguments) == expected


def test_typed_task_replaces_that_of_the_file(rims: Rims, toy_run: Path) -> None:
    arguments = ("--config", str(toy_run / CONFIG_NAME), "--suite", "empty", "--total-steps", "128")
    settings = trained_settings(rims, *arguments)
    assert (settings["suite"], settings["env"]) == ("empty", "")


def test_preset_of_a_suite_beats_defaults_but_not_typed_options(
    rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = {"gamma": 0.5, "learning_rate": 0.25}

    def with_preset(name: str) -> Suite:
        return dataclasses.replace(get_suite(name), preset=preset)

    monkeypatch.setattr(options, "get_suite", with_preset)
    settings = trained_settings(rims, "--suite", "empty", *TOY, "--learning-rate", "0.001")
    assert settings["gamma"] == 0.5
    assert settings["learning_rate"] == 0.001  # typed, although it is the default


def test_interruption_before_there_is_an_agent_says_so(
    tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "make_vector_env", interrupt)
    result = rims(*TRAIN, *TOY, "--run-dir", "run")
    assert result.code == 130
    assert result.err == "Interrupted; there was nothing to save.\n"
    assert tree(tmp_path / "here") == {}


# Stopping ---------------------------------------------------------------------------------------


def test_interrupted_training_saves_the_agent(tmp_path: Path) -> None:
    arguments = ("train", "--env", ENV, *TOY, "--total-steps", "100000000", "--run-dir", "run")
    progress = tmp_path / "run" / PROGRESS_NAME
    with process(*arguments, folder=tmp_path) as running:
        wait_for_rows(running, progress)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert "run" in err.splitlines()[-1]
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.updates >= 2
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.fixture
def endless_compare(tmp_path: Path) -> Iterator[Forked]:
    """One run at a time of two that would take for ever; the first is under way."""
    arguments = (
        "--cores",
        "none",
        "--seeds",
        "2",
        "--jobs",
        "1",
        *TOY,
        "--total-steps",
        "99999999",
    )
    with process(*COMPARE, *arguments, folder=tmp_path) as running:
        wait_for_rows(running, tmp_path / "root" / "none-seed0" / PROGRESS_NAME)
        yield running
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


@pytest.mark.long
def test_interrupted_comparison_stops(tmp_path: Path, endless_compare: Forked) -> None:
    os.killpg(endless_compare.pid, signal.SIGINT)  # what Ctrl-C does
    _, err = endless_compare.communicate(timeout=60)
    assert endless_compare.returncode == 130
    assert "Traceback" not in err
    assert load_checkpoint(tmp_path / "root" / "none-seed0").updates >= 2


def test_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "cli", "suites"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert "Traceback" not in result.stderr
