"""``rims experiment``: runs over models and seeds, tables, exit codes, help."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import cli
from command_line import ROOT, Rims, assert_one_line, tree
from experiment_cases import LINE, line
from experiments.commands.experiment import experiment, task_command
from experiments.experiment import Row
from experiments.fit import fit
from experiments.judging import comparison as comparing
from experiments.registry import TASKS
from experiments.results import RESULTS_NAME, read_results
from lab.disk.folder import PROGRESS_NAME
from lab.disk.lock import lock_folder
from lab.disk.store import has_checkpoint

CALL = ("experiment", "line", "--model", "linear,mlp", "--seeds", "2", "--run-root", "root")


@pytest.fixture(autouse=True)
def _with_line() -> Iterator[None]:
    """The tiny task is a command, too."""
    experiment.add_command(task_command(LINE))
    yield
    del experiment.commands["line"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished runs of CALL. Only to be copied."""
    root = tmp_path_factory.mktemp("compare") / "root"
    configs = {model: line(model=model).config for model in ("linear", "mlp")}
    for run in comparing.plan(LINE, configs, (0, 1), root):
        run.train()
    return root


@pytest.fixture
def here(made: Path, rims: Rims, tmp_path: Path) -> Path:
    """The finished runs as ``root`` in the current folder."""
    return Path(shutil.copytree(made, tmp_path / "here" / "root"))


# What it does -----------------------------------------------------------------------------------


def test_command_trains_what_is_missing_and_compares(here: Path, rims: Rims) -> None:
    shutil.rmtree(here / "mlp-seed1")
    kept = {
        name: (here / name / RESULTS_NAME).stat().st_mtime_ns
        for name in ("linear-seed0", "linear-seed1", "mlp-seed0")
    }
    result = rims(*CALL, "--jobs", "1")
    assert (result.code, (here / "mlp-seed1" / RESULTS_NAME).is_file()) == (0, True)
    for name, written in kept.items():
        assert (here / name / RESULTS_NAME).stat().st_mtime_ns == written
    assert result.out.strip() == (here / "results.md").read_text().strip()
    assert "# line: linear, mlp" in result.out
    assert "| near the line, % | " in result.out
    assert "90.0 ± 1.5" in result.out
    assert "other, published" in result.out
    assert "Made by `rims experiment line --model linear,mlp" in result.out
    for name in ("learning_curves", "results"):
        assert (here / f"{name}.svg").read_text().startswith("<?xml")
        with Image.open(here / f"{name}.png") as image:
            assert min(image.size) > 300


def test_json_holds_every_seed(here: Path, rims: Rims) -> None:
    result = rims(*CALL, "--report-only", "--json")
    assert result.code == 0
    plain = json.loads(result.out)
    assert plain == json.loads((here / "results.json").read_text())
    assert plain["flags"] == []
    assert plain["settings"]["epochs"] == 4
    for model, own in plain["models"].items():
        assert own["seeds"] == [0, 1]
        assert own["parameters"] == {"linear": 3, "mlp": 31}[model]
        error = own["results"]["error"]
        assert error["mean"] == pytest.approx(sum(error["per_seed"]) / 2)
        assert error["low"] < error["mean"] < error["high"]
    found = json.loads((here / "mlp-seed1" / RESULTS_NAME).read_text())["metrics"]["error"]
    assert plain["models"]["mlp"]["results"]["error"]["per_seed"][1] == found


def test_differences_are_taken_seed_by_seed(here: Path, rims: Rims) -> None:
    shutil.rmtree(here / "linear-seed0")
    fit(line(seed=2), here / "linear-seed2")
    fit(line(seed=2, model="mlp"), here / "mlp-seed2")
    result = rims(*CALL, "--seeds", "3", "--report-only")
    own = json.loads((here / "results.json").read_text())["differences"]
    assert (own["baseline"], list(own["models"])) == ("linear", ["mlp"])
    found = own["models"]["mlp"]["error"]

    def error(name: str) -> float:
        read = read_results(here / name)
        assert read is not None
        return read.metrics["error"]

    first, second = (error(f"mlp-seed{n}") - error(f"linear-seed{n}") for n in (1, 2))
    assert (found["seeds"], found["per_seed"]) == ([1, 2], [first, second])
    mean, half = (first + second) / 2, 12.7062 * abs(first - second) / 2  # t of one degree
    assert [found[name] for name in ("mean", "low", "high")] == pytest.approx(
        [mean, mean - half, mean + half], rel=1e-4
    )
    section = result.out.partition("## Differences")[2].partition("##")[0]
    assert "Each model minus linear, seed by seed" in section
    assert f"| error (lower is better) | {mean:+.4g} [{mean - half:+.4g}, " in section
    assert "## Differences" not in rims(*CALL, "--model", "mlp", "--report-only").out
    one = rims(*CALL, "--seeds", "2", "--report-only").out
    assert f"| {first:+.4g}, no interval |" in one


def test_runs_on_other_data_are_flagged(here: Path, rims: Rims) -> None:
    paths = [here / f"{name}" / RESULTS_NAME for name in ("mlp-seed0", "mlp-seed1")]
    other, early = (json.loads(path.read_text()) for path in paths)
    other["data"] = "5 samples"
    del early["data"]
    for path, content in zip(paths, (other, early), strict=True):
        path.write_text(json.dumps(content))
    result = rims(*CALL, "--report-only")
    assert result.code == 0
    assert "- mlp seed 0: made with other data (5 samples) than the first run ()" in result.out
    assert "- mlp seed 1: made by an earlier version, which did not note" in result.out
    assert "linear seed" not in result.out


def test_shares_are_kept_between_0_and_1(here: Path) -> None:
    runs = comparing.plan(LINE, {"linear": line().config}, (0, 1), here)
    found = comparing.assemble(LINE, runs)
    estimate = found.estimate("linear", Row("share", ""))
    assert estimate is not None
    assert 0 <= estimate.low < estimate.mean < estimate.high <= 1


def test_failing_run_does_not_lose_the_others(here: Path, rims: Rims) -> None:
    arguments = [word.replace("linear,mlp", "linear,broken") for word in CALL]
    result = rims(*arguments, "--seeds", "1", "--json", "--jobs", "2")
    assert result.code == 1
    plain = json.loads(result.out)
    empty, flag = plain["flags"]
    assert (empty["kind"], empty["of"]) == ("missing", "broken")
    assert (flag["kind"], flag["of"]) == ("failed", "broken seed 0")
    assert "loss is no longer finite" in flag["what"]
    assert list(plain["models"]) == ["linear"]
    assert result.err.splitlines()[-1] == "Error: some runs failed; the report's flags say which."
    again = rims(*arguments, "--seeds", "1", "--report-only")
    assert again.code == 0
    assert "- broken seed 0: not complete, 0 of 4 epochs: training stopped" in again.out


def test_report_only_says_what_is_missing_and_different(here: Path, rims: Rims) -> None:
    shutil.rmtree(here / "mlp-seed1")
    shutil.rmtree(here / "mlp-seed0")
    fit(line(model="mlp", batch_size=8), here / "mlp-seed0")
    lock = lock_folder(here)  # another command trains
    result = rims(*CALL, "--report-only")
    lock.release()
    assert result.code == 0
    assert "- mlp seed 1: there is no such run." in result.out
    assert "- mlp seed 0: left out: 'root/mlp-seed0' was made with batch_size=8" in result.out
    assert "# line: linear\n" in result.out
    assert not (here / "mlp-seed1").exists()


def test_report_only_of_nothing_is_one_line(rims: Rims, tmp_path: Path) -> None:
    (tmp_path / "here" / "root").mkdir()
    result = rims(*CALL, "--report-only")
    assert (result.code, result.out) == (1, "")
    (text,) = result.err.splitlines()
    assert text.startswith("Error: no run could be compared. linear seed 0, ")
    assert tree(tmp_path / "here" / "root") == {}


def test_config_file_gives_settings_and_options_win(here: Path, rims: Rims) -> None:
    fit(line(batch_size=8, epochs=2), Path("other") / "linear-seed0")
    arguments = ("experiment", "line", "--model", "linear", "--run-root", "other", "--report-only")
    config = ("--config", "other/linear-seed0/config.toml")
    assert rims(*arguments, *config).code == 0
    assert rims(*arguments).code == 1
    assert rims(*arguments, *config, "--epochs", "3").code == 1


def _process(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "tests" / "experiment_cases.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.long
def test_ctrl_c_saves_all_runs_and_the_same_command_goes_on(tmp_path: Path) -> None:
    arguments = ("experiment", "line", "--model", "linear", "--seeds", "1", "--run-root", "root",
                 "--samples", "64", "--checkpoint-every", "1000")  # fmt: skip
    running = _process(tmp_path, *arguments)
    folder = tmp_path / "root" / "linear-seed0"
    deadline = time.monotonic() + 60
    while not ((folder / PROGRESS_NAME).is_file() and (folder / PROGRESS_NAME).stat().st_size):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err.splitlines()[-1]) == (130, "Interrupted.")
    assert "Traceback" not in err
    assert has_checkpoint(folder)
    assert not (folder / RESULTS_NAME).exists()
    fit(line(samples=64, checkpoint_every=1000), folder)
    fit(line(samples=64), tmp_path / "whole")
    assert _rows(folder) == _rows(tmp_path / "whole")


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, signal.SIGINT, signal.SIGTERM],
)
@pytest.mark.long
def test_signal_to_the_command_alone_saves_its_runs(tmp_path: Path, number: signal.Signals) -> None:
    arguments = ("experiment", "line", "--model", "linear", "--seeds", "1", "--run-root", "root",
                 "--samples", "64", "--epochs", "40", "--checkpoint-every", "1000")  # fmt: skip
    running = _process(tmp_path, *arguments)
    folder = tmp_path / "root" / "linear-seed0"
    deadline = time.monotonic() + 90
    while not ((folder / PROGRESS_NAME).is_file() and (folder / PROGRESS_NAME).stat().st_size):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(number)
    running.communicate(timeout=60)  # the run has its outputs, too: both have ended
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    assert running.returncode == codes[number]
    lock_folder(folder).release()
    assert has_checkpoint(folder)
    assert not (folder / RESULTS_NAME).exists()


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / PROGRESS_NAME).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "liner"), "'liner' is not one of linear, mlp, broken."),
        (("--epochs", "0"), "--epochs must be at least 1; got 0."),
        (("--epochs", "x"), "--epochs"),
        (("--learning-rate", "-1"), "--learning-rate must be above 0"),
        (("--optimizer", "adm"), "--optimizer"),
        (("--seeds", "0"), "--seeds"),
        (("--jobs", "0"), "--jobs"),
        (("--device", "nonsense"), "device 'nonsense' cannot be used here"),
        (("--samples", "13"), "samples 13 bring bad luck; give another number."),
        (("--epoks", "3"), "--epoks"),
        (("--config", "missing.toml"), "'missing.toml' cannot be read"),
        (("--run-root", ""), "--run-root"),
        (("--momentum", "0.5"), "--momentum is used by sgd alone; the optimizer is adam."),
    ],
)
def test_mistake_is_one_line_before_any_work(
    rims: Rims, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    assert said in assert_one_line(rims(*CALL, *arguments))
    assert tree(tmp_path / "here") == {}


@pytest.mark.parametrize("models", ["cnn", "cnn,rn"])
def test_options_of_nfm_without_nfm_are_refused(rims: Rims, tmp_path: Path, models: str) -> None:
    call = ("experiment", "sort-of-clevr", "--run-root", "root", "--model", models)
    text = assert_one_line(rims(*call, "--top-k", "5", "--report-only"))
    named = models.replace(",", ", ")
    assert text.endswith(f"--top-k needs a model with NFM; --model names none, but {named}.")
    assert tree(tmp_path / "here") == {}
    with_nfm = rims(*call, "--model", "cnn,nfm", "--top-k", "5", "--report-only")
    assert "does not exist" in with_nfm.err  # the next thing to be wrong


def test_other_settings_are_refused_before_any_work(here: Path, rims: Rims) -> None:
    before = tree(here)
    text = assert_one_line(rims(*CALL, "--epochs", "5"))
    assert "was made with epochs=4, now asked for 5" in text
    assert tree(here) == before


def test_unknown_task_is_one_line(rims: Rims) -> None:
    assert "sort-of-clever" in assert_one_line(rims("experiment", "sort-of-clever"))


# Help -------------------------------------------------------------------------------------------


def _help(*arguments: str) -> str:
    result = CliRunner().invoke(cli.rims, [*arguments, "--help"], terminal_width=100)
    assert result.exit_code == 0
    return re.sub(r"\s+", "", result.output)


def test_help_lists_the_tasks() -> None:
    text = _help("experiment")
    for task in TASKS.values():
        assert task.name in text
        assert re.sub(r"\s+", "", task.summary) in text


@pytest.mark.parametrize("name", TASKS)
def test_help_lists_every_setting_with_help_and_default(name: str) -> None:
    text = _help("experiment", name)
    for field in dataclasses.fields(TASKS[name].config):
        if field.name in ("model", "seed"):
            continue
        option, default = field.name.replace("_", "-"), field.default
        shown = f"[default:{default}]" if default != "" else ""
        if isinstance(default, bool):
            shown = f"[default:{option if default else f'no-{option}'}]"
        assert f"--{option}" in text
        assert re.sub(r"\s+", "", field.metadata["help"]) + shown in text, field.name


@pytest.mark.parametrize(
    "arguments", [["experiment", "--help"], ["experiment", "sort-of-clevr", "--model", "x"]]
)
def test_quick_answers_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules));"
        f"sys.argv = ['rims', *{arguments!r}]; import cli; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "False"
