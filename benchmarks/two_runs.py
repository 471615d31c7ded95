"""Steps per second of one `rims train`, and of two at once, with one and with two threads each.

python -m benchmarks.two_runs

Prints a table. The second half has OpenMP's threads spin while they wait, as they do by default in
a script of one's own.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = 60_000


def steps_per_second(runs: int, threads: int, policy: str | None) -> float:
    """Of all runs together, from begin to end of each one's training."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {} if policy is None else {"OMP_WAIT_POLICY": policy}
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / str(seed) for seed in range(runs)]
        calls = [
            [
                *(sys.executable, "-m", "cli", "train", "--suite", "doorkey"),
                *("--total-steps", str(STEPS), "--threads", str(threads)),
                *("--seed", folder.name, "--run-dir", str(folder)),
            ]
            for folder in folders
        ]
        quiet = subprocess.DEVNULL
        started = [subprocess.Popen(c, env=env, stdout=quiet, stderr=quiet) for c in calls]
        for process in started:
            if process.wait():
                raise RuntimeError(f"a run ended with {process.returncode}.")
        return sum(_rate(folder) for folder in folders)


def _rate(folder: Path) -> float:
    with (folder / "progress.csv").open() as file:
        *_, last = csv.DictReader(file)
    return float(last["env_steps"]) / float(last["seconds"])


def main() -> None:
    """Measure and print."""
    print("| waiting threads | threads | one run | two runs together | ratio |")
    print("|---|---:|---:|---:|---:|")
    for name, policy in (("sleep (`rims`)", None), ("spin", "active")):
        for threads in (1, 2):
            one, two = (steps_per_second(runs, threads, policy) for runs in (1, 2))
            print(f"| {name} | {threads} | {one:,.0f} | {two:,.0f} | {two / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
