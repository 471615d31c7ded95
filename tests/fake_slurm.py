"""As much of Slurm as is needed to run jobs of one process on this machine: its commands.

Called as ``python fake_slurm.py COMMAND ARGUMENTS``; FAKE_SLURM is the folder of what it knows.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

#: Seconds between SIGTERM and SIGKILL of a job that is cancelled.
KILL_WAIT = 5

COMMANDS = ("sbatch", "srun", "sacct", "scancel", "scontrol")


def install(folder: Path) -> Path:
    """Make the commands; a folder for PATH."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    (folder / "state").mkdir()
    for name in COMMANDS:
        path = commands / name
        path.write_text(
            f"#!/bin/sh\nexport FAKE_SLURM='{folder / 'state'}'\n"
            f"exec '{sys.executable}' '{Path(__file__).resolve()}' {name} \"$@\"\n"
        )
        path.chmod(0o755)
    return commands


class State:
    """What is known of jobs: a file for each fact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, task: str, what: str = "state") -> str:
        path = self.folder / f"{task}.{what}"
        return path.read_text() if path.is_file() else ""

    def set(self, task: str, value: str, what: str = "state") -> None:
        temporary = self.folder / f".{task}.{what}.{os.getpid()}.{threading.get_ident()}"
        temporary.write_text(value)
        temporary.replace(self.folder / f"{task}.{what}")

    def end(self) -> None:
        """Kill what runs, and start nothing more."""
        for path in self.folder.glob("*.state"):
            was = path.read_text()
            self.set(path.stem, "CANCELLED")
            if was == "RUNNING" and self.get(path.stem, "pid"):
                send(self.get(path.stem, "pid"), signal.SIGKILL)

    def tasks(self, number: str) -> list[str]:
        """Tasks of a job, or the one that is named."""
        paths = self.folder.glob("*.state")
        return sorted(p.stem for p in paths if p.stem == number or p.stem.split("_")[0] == number)


def detached(*arguments: str) -> None:
    subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def sbatch(state: State, script: str) -> None:
    text = Path(script).read_text()
    if "--partition=nowhere" in text:
        print("sbatch: error: invalid partition specified: nowhere", file=sys.stderr)
        sys.exit(1)
    number = str(100 + len(list(state.folder.glob("*.sh"))))
    (state.folder / f"{number}.sh").write_text(text)
    array = re.search(r"^#SBATCH --array=0-(\d+)%(\d+)$", text, re.MULTILINE)
    tasks = [f"{number}_{i}" for i in range(int(array[1]) + 1)] if array else [number]
    for task in tasks:
        state.set(task, "PENDING")
    detached("serve", number, array[2] if array else "1")
    print(f"Submitted batch job {number}")


def serve(state: State, number: str, at_once: str) -> None:
    """Run the tasks of a job."""
    with ThreadPoolExecutor(int(at_once)) as pool:
        list(pool.map(lambda task: run(state, number, task), state.tasks(number)))


def run(state: State, number: str, task: str) -> None:
    times = 0
    while state.get(task) in ("PENDING", "REQUEUED"):
        times += 1
        state.set(task, str(times), "times")
        state.set(task, "RUNNING")
        array = {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task.partition("_")[2]}
        environment = {**os.environ, "SLURM_JOB_ID": number, "FAKE_TASK": task}
        environment.update(array if "_" in task else {})
        done = subprocess.run(
            ["bash", str(state.folder / f"{number}.sh")], env=environment, check=False
        )
        if state.get(task) == "RUNNING":
            state.set(task, "FAILED" if done.returncode else "COMPLETED")


def srun(state: State, *arguments: str) -> None:
    assert arguments[0] == "--unbuffered"
    task, rest = os.environ["FAKE_TASK"], list(arguments[1:])
    number, _, index = task.partition("_")
    for name, stream in (("--output", 1), ("--error", 2)):
        assert rest.pop(0) == name
        path = rest.pop(0).replace("%A", number).replace("%a", index)
        path = path.replace("%j", task).replace("%t", "0")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    state.set(task, str(os.getpid()), "pid")
    os.execvp(rest[0], rest)


def sacct(state: State, *arguments: str) -> None:
    print("JobID|State|NodeList")
    for number in (after for before, after in itertools.pairwise(arguments) if before == "-j"):
        for task in state.tasks(number):
            print(f"{task}|{state.get(task)}|here")


def scancel(state: State, number: str) -> None:
    for task in state.tasks(number):
        was = state.get(task)
        if was in ("PENDING", "RUNNING", "REQUEUED"):
            state.set(task, "CANCELLED")
        if was == "RUNNING" and state.get(task, "pid"):
            send(state.get(task, "pid"), signal.SIGTERM)
            detached("kill_later", state.get(task, "pid"))


def kill_later(_: State, pid: str) -> None:
    time.sleep(KILL_WAIT)
    send(pid, signal.SIGKILL)


def scontrol(state: State, action: str, task: str) -> None:
    assert action == "requeue"
    state.set(task, "REQUEUED")


def send(pid: str, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), number)


def fail(how: str) -> None:
    """What a job can be of; here, because the job imports nothing else then."""
    if how == "error":
        raise KeyError("some\nthing")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    globals()[sys.argv[1]](State(Path(os.environ["FAKE_SLURM"])), *sys.argv[2:])
