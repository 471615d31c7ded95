"""Calls as Slurm jobs: settings, jobs that stop and go on, ``rims compare``. Slurm is a fake."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("submitit", reason="jobs of Slurm need submitit, which is not installed")

import fake_slurm
from agents.judging.compare import plan
from agents.judging.comparison import Run
from agents.learning.checkpoint import load_checkpoint
from agents.learning.train import Trainer
from command_line import COMPARE, ROOT, TOY, Rims, assert_one_line, process, tree, wait_for_rows
from compare_cases import TASKS, change_checkpoint, ignore, make_config
from lab.comparing import train_missing
from lab.disk.folder import PROGRESS_NAME, read_progress
from lab.running.processes import Outcome
from lab.running.signals import StopRequest
from lab.slurm import job as slurm_job
from lab.slurm import launcher as slurm
from lab.slurm.job import ResumableCall
from lab.slurm.launcher import SlurmLauncher, SubmissionError, read_settings


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_slurm.State]:
    """Slurm's commands on PATH, and what they know."""
    commands = fake_slurm.install(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.2)
    state = fake_slurm.State(tmp_path / "fake" / "state")
    yield state
    state.end()


def launcher(folder: Path, *settings: str) -> SlurmLauncher:
    return SlurmLauncher(folder, read_settings(settings), ignore)


# Settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partition", "is not KEY=VALUE"),
        ("=gpu", "is not KEY=VALUE"),
        ("partition=", "is not KEY=VALUE"),
        ("partitoin=gpu", "--slurm partitoin: submitit has no such setting"),
        ("time=1-00:00:00", "--slurm time must be a whole number, in minutes"),
        ("cpus_per_task=1.5", "--slurm cpus_per_task must be a whole number; got"),
        ("mem_gb=nan", "--slurm mem_gb must be a number"),
        ("array_parallelism=3", "give --jobs"),
        ("nodes=2", "one process"),
        ("use_srun=false", "cannot be set"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    tmp_path: Path, state: fake_slurm.State, text: str, said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        launcher(tmp_path / "slurm", text)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "slurm").exists()


def test_settings_are_in_the_script(tmp_path: Path, state: fake_slurm.State) -> None:
    launch = launcher(
        tmp_path / "slurm",
        *("partition=gpu", "time=90", "mem_gb=4", "gres=gpu:1", "exclusive=true"),
        *("setup=module load a", "setup=module load b"),
    )
    assert launch(max, [(1, 2), (5, 3), (4, 4)], 2) == [Outcome(2), Outcome(5), Outcome(4)]
    (script,) = (tmp_path / "slurm").glob("*_submission.sh")
    lines = script.read_text().splitlines()
    for name, value in (("partition", "gpu"), ("time", "90"), ("mem", "4GB"), ("gres", "gpu:1")):
        assert f"#SBATCH --{name}={value}" in lines
    for line in ("exclusive", "requeue", "array=0-2%2", "job-name=rims", "signal=USR2@90"):
        assert f"#SBATCH --{line}" in lines
    assert lines.index("module load a") == lines.index("module load b") - 1


def test_no_call_is_no_job(tmp_path: Path, state: fake_slurm.State) -> None:
    assert launcher(tmp_path / "slurm")(max, [], 1) == []
    assert not (tmp_path / "slurm").exists()
    assert list(state.folder.iterdir()) == []


def test_importing_needs_neither_torch_nor_submitit() -> None:
    code = "import sys, cli, lab.slurm.launcher; print({'torch', 'submitit'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "set()\n"


def test_without_submitit_or_slurm_one_line_says_so(
    tmp_path: Path, state: fake_slurm.State, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake" / "bin" / "sbatch").unlink()
    with pytest.raises(ValueError, match="there is no 'sbatch' on this machine"):
        launcher(tmp_path / "slurm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=re.escape("pip install 'rims-toolkit[slurm]'")):
        launcher(tmp_path / "slurm")


# Jobs -------------------------------------------------------------------------------------------


def test_failing_jobs_are_told_and_the_others_finish(
    tmp_path: Path,
    state: fake_slurm.State,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(slurm, "ANSWER_SECONDS", 0)
    ended: list[int] = []
    outcomes = launcher(tmp_path / "slurm")(
        fake_slurm.fail, [("error",), ("kill",), ("not",)], 3, ended.append
    )
    assert outcomes[0] == Outcome(error="KeyError: 'some\\nthing'")
    assert outcomes[2] == Outcome()
    error = outcomes[1].error or ""
    log = tmp_path / "slurm" / "100_1_0_log.err"
    assert error == f"its Slurm job 100_1 ended (FAILED); {str(log)!r} may say why."
    assert log.is_file()
    assert sum(ended) == 3
    assert "KeyError" in (tmp_path / "slurm" / "100_0_0_log.err").read_text()
    assert capfd.readouterr() == ("", "")


def test_what_slurm_refuses_is_one_line(
    tmp_path: Path, state: fake_slurm.State, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SubmissionError, match="invalid partition specified: nowhere") as caught:
        launcher(tmp_path / "slurm", "partition=nowhere")(max, [(1, 2)], 1)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
def test_a_job_stopped_by_slurm_is_queued_again_and_goes_on_exactly(
    tmp_path: Path, state: fake_slurm.State
) -> None:
    """As at preemption: SIGTERM, another one, and then the signal to be queued again."""
    config = make_config(total_steps=4096, checkpoint_every=1000)
    (run,) = plan(config, ["none"], [0], tmp_path / "jobs")
    sent: list[int] = []

    def stop(runs: list[Run]) -> None:
        if runs[0].row.get("env_steps") and not sent:
            sent.append(int(state.get("100", "pid")))
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2):
                os.kill(sent[0], number)
                time.sleep(0.05)

    assert train_missing([run], 1, stop, launcher(tmp_path / "slurm", "time=5")) == []
    assert sent
    assert state.get("100", "times") == "2"
    whole = Trainer(run.config, tmp_path / "whole").run()
    stopped = load_checkpoint(run.folder)
    assert stopped.updates == whole.updates
    for name, value in whole.policy.items():
        assert torch.equal(stopped.policy[name], value), name


# Signals in a job -------------------------------------------------------------------------------


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The signals that reached what stands for submitit's handler of SIGUSR2."""
    monkeypatch.setattr(slurm_job, "LINGER_SECONDS", 0.3)
    monkeypatch.setattr(slurm_job, "RETRY_SECONDS", 0.1)
    reached: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: reached.append(number))
    yield reached
    signal.signal(signal.SIGUSR2, before)


def stop_while_training(*numbers: int) -> None:
    """Send signals to itself, and end as a run does."""
    with StopRequest() as stop:
        for number in numbers:
            signal.raise_signal(number)
        while not stop.wanted:
            time.sleep(0.01)
        time.sleep(0.3)  # it saves, and nothing may keep it from that
    stop.obey()


def stop_before_training(*numbers: int) -> None:
    for number in numbers:
        signal.raise_signal(number)
    stop_while_training()


@pytest.mark.parametrize("function", [stop_while_training, stop_before_training])
@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM)])
def test_sigterm_saves_and_ends(
    handler: list[int], function: type, numbers: tuple[signal.Signals, ...]
) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR2)]
    with pytest.raises(SystemExit) as caught:
        ResumableCall(function)(*numbers)
    assert caught.value.code == 143
    assert handler == []
    after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR2)]
    assert after == before


@pytest.mark.parametrize("function", [stop_while_training, stop_before_training])
@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGUSR2,), (signal.SIGTERM, signal.SIGUSR2), (signal.SIGUSR2, signal.SIGTERM)],
)
def test_the_user_signal_saves_and_queues_again(
    handler: list[int], function: type, numbers: tuple[signal.Signals, ...]
) -> None:
    assert ResumableCall(function)(*numbers) == Outcome()
    assert handler == [signal.SIGUSR2]


def test_a_job_that_may_not_be_queued_again_says_why(handler: list[int]) -> None:
    def refuse(_number: int, _frame: object) -> None:
        raise RuntimeError("timed-out too many times")

    signal.signal(signal.SIGUSR2, refuse)
    outcome = ResumableCall(stop_while_training)(signal.SIGUSR2)
    assert outcome == Outcome(error="timed-out too many times")


# rims compare -----------------------------------------------------------------------------------

#: As the comparison of the fixture ``root``, but for the cores.
SLURM = (
    *(*COMPARE, "--cores", "none", "--launcher", "slurm", "--slurm", "time=20"),
    *("--tasks", ",".join(task.name for task in TASKS), "--episodes", "6"),
    *(*TOY[:-4], "--hidden-size", "16"),
)


@pytest.mark.long
def test_compare_on_slurm_gives_what_it_gives_here(
    root: Path, tmp_path: Path, state: fake_slurm.State, rims: Rims
) -> None:
    (tmp_path / "here" / "root").mkdir()
    (tmp_path / "here" / "root" / "none-seed7").touch()  # a file where a folder should be
    result = rims(*SLURM, "--total-steps", "256", "--seeds", "0,7,1", "--jobs", "2", "--json")
    assert result.code == 1
    assert "Submitted as Slurm job 100; logs are in root/slurm.\n" in result.err
    assert re.search(r"none seed [01]: [1-9]\d*/256 steps, success", result.err)
    plain, here = json.loads(result.out), json.loads((root / "comparison.json").read_text())
    (flag,) = plain["flags"]
    assert (flag["kind"], flag["of"]) == ("failed", "none seed 7")
    assert "cannot be written" in flag["what"]
    assert plain["jobs"] is None
    assert plain["cores"]["none"]["seeds"] == [0, 1]
    assert plain["cores"]["none"]["tasks"] == here["cores"]["none"]["tasks"]
    assert "#SBATCH --array=0-2%2" in (state.folder / "100.sh").read_text()

    # Nothing to train; judged on the CPU, as there may be no other device here.
    for seed in (0, 1):
        folder = tmp_path / "here" / "root" / f"none-seed{seed}"
        change_checkpoint(folder, config=replace(load_checkpoint(folder).config, device="meta"))
    more = ("--total-steps", "256", "--seeds", "2", "--episodes", "3", "--device", "meta")
    again = rims(*SLURM, *more)
    assert (again.code, "Submitted" in again.err) == (0, False)
    assert not (state.folder / "101.sh").exists()


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_the_command_cancels_its_jobs_which_save(
    tmp_path: Path, state: fake_slurm.State, number: signal.Signals, code: int
) -> None:
    arguments = (*SLURM, "--seeds", "2", "--jobs", "1", "--total-steps", "99999999")
    with process(*arguments, folder=tmp_path) as running:
        wait_for_rows(running, tmp_path / "root" / "none-seed0" / PROGRESS_NAME)
        running.send_signal(number)
        _, err = running.communicate(timeout=60)
    assert running.returncode == code
    *_, cancelled, last = [line for line in err.splitlines() if line]
    assert cancelled.startswith("Cancelled Slurm job 100: runs under way save; the same command")
    assert last.startswith("Interrupted")
    folder = tmp_path / "root" / "none-seed0"
    deadline = time.monotonic() + 30
    while state.get("100_0", "pid") and _is_alive(int(state.get("100_0", "pid"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert load_checkpoint(folder).updates == len(read_progress(folder)["update"])
    assert state.get("100_1") == "CANCELLED"
    assert not state.get("100_1", "pid")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--launcher", "local"), "--slurm is for jobs of a Slurm cluster; give --launcher slurm"),
        (("--report-only",), "--report-only trains nothing"),
        (("--slurm", "nonsense=1"), "--slurm nonsense: submitit has no such setting"),
        (("--launcher", "pbs"), "--launcher"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    tmp_path: Path, state: fake_slurm.State, rims: Rims, arguments: tuple[str, ...], said: str
) -> None:
    before = tree(tmp_path)
    assert said in assert_one_line(rims(*SLURM, *arguments))
    assert tree(tmp_path) == before


def test_where_there_is_no_slurm_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rims: Rims
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no 'sbatch' on this machine" in assert_one_line(rims(*SLURM))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install 'rims-toolkit[slurm]'" in assert_one_line(rims(*SLURM))
    assert list((tmp_path / "here").iterdir()) == []


def test_what_slurm_refuses_ends_the_command_in_one_line(
    state: fake_slurm.State, rims: Rims
) -> None:
    result = rims(*SLURM, "--slurm", "partition=nowhere")
    assert (result.code, result.out) == (1, "")
    (line,) = result.err.splitlines()
    assert line.startswith("Error: Slurm does not take the jobs: sbatch: error: invalid partition")
