"""How many runs at a time, and when a user is told that they share processors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from command_line import ROOT
from lab.running import processes
from lab.running.processes import crowding, jobs_of


@pytest.fixture(autouse=True)
def four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "usable_processors", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


@pytest.mark.parametrize(
    ("jobs", "threads", "runs", "expected"),
    [
        *((None, 1, 9, 4), (None, 2, 9, 2), (None, 3, 9, 1), (None, 9, 9, 1), (None, 1, 3, 3)),
        *((6, 2, 9, 6), (6, 2, 5, 5)),
    ],
)
def test_runs_at_a_time(jobs: int | None, threads: int, runs: int, expected: int) -> None:
    assert jobs_of(jobs, threads, runs) == expected


@pytest.mark.parametrize(
    ("threads", "load", "told"),
    [
        (4, 0.0, None),
        (4, 4.7, None),
        (4, 4.8, "other work keeps 4.8 of 8 processors busy, beside the 4 threads"),
        (1, 30.0, "other work keeps 8.0 of 8 processors busy, beside the 1 thread of"),
        (5, 0.0, "5 threads share 4 usable processors"),
    ],
)
def test_who_shares_processors_is_told(
    threads: int, load: float, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    found = crowding(threads)
    assert (found is None) if told is None else (found is not None and found.startswith(told))


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "9"}, "None")],
)
def test_threads_that_wait_sleep_unless_a_user_says_otherwise(
    given: dict[str, str], expected: str
) -> None:
    code = "import os; from lab.running.surroundings import prepare; prepare(); "
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    env = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", code + "print(os.environ.get('OMP_WAIT_POLICY'))"],
        env={**env, **given},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == expected
