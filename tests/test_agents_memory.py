"""Memory is asked for before it is filled."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from agents.config import PPOConfig
from agents.judging.compare import plan, require_memory
from agents.learning.train import Trainer
from agents.model import footprint
from command_line import ENV, Rims, assert_one_line, tree
from lab.running import memory
from lab.running.memory import available_memory, is_out_of_memory

GB = 10**9


def write_system(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, free: int, swap: int = 0, groups: str = ""
) -> Path:
    """A machine with so many kilobytes, whose process is in these control groups."""
    proc, mounted = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {free} kB\nSwapFree: {swap} kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    monkeypatch.setattr(memory, "_PROC", proc)
    monkeypatch.setattr(memory, "_GROUPS", mounted)
    monkeypatch.setattr(memory, "left_to_process", lambda: math.inf)
    return mounted


def write_group(folder: Path, limit: tuple[str, str], used: tuple[str, str], files: str) -> None:
    folder.mkdir(parents=True)
    for name, content in (limit, used, ("memory.stat", files)):
        (folder / name).write_text(content)


def test_available_is_what_the_machine_has_left_with_its_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_system(tmp_path, monkeypatch, free=4000, swap=1000)
    assert available_memory() == 5000 * 1024


@pytest.mark.parametrize("inside", [False, True])  # a container, whose own group is the root
def test_limit_of_a_container_counts_but_not_its_pages_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    mounted = write_system(tmp_path, monkeypatch, free=10**9, groups="0::/a/b\n")
    files = "anon 5\ninactive_file 1000\nactive_file 200\n"
    group = mounted if inside else mounted / "a"
    write_group(group, ("memory.max", "9000"), ("memory.current", "5000"), files)
    assert available_memory() == 9000 - (5000 - 1200)
    (group / "memory.max").write_text("max")
    assert available_memory() == 10**9 * 1024


def test_limit_of_an_older_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = write_system(tmp_path, monkeypatch, free=10**9, groups="4:memory:/a\n0::/x\n")
    limit, used = ("memory.limit_in_bytes", "9000"), ("memory.usage_in_bytes", "5000")
    files = "inactive_file 1\ntotal_inactive_file 1000\ntotal_active_file 200\n"
    write_group(mounted / "memory" / "a", limit, used, files)
    assert available_memory() == 9000 - (5000 - 1200)


def test_lack_of_memory_is_known_by_its_signs() -> None:
    torchs = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    linkers = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    threads = RuntimeError("can't start new thread")
    systems = OSError(12, "Cannot allocate memory")
    assert all(map(is_out_of_memory, (MemoryError(), torchs, linkers, threads, systems)))
    assert not any(map(is_out_of_memory, (RuntimeError("shape"), ImportError("no module"))))


# What is trained ---------------------------------------------------------------------------------


def test_estimate_is_less_than_what_a_run_holds() -> None:
    # of tensors that surely are there at once; an estimate above them could refuse what works
    config = PPOConfig(env=ENV, core="lstm", hidden_size=32, encoder_size=16, num_envs=8)
    core, read = 4 * 32 * (16 + 32) + 2 * 4 * 32, 7 * 7 * 21 * 16
    assert footprint.bytes_of_weights(config) == 4 * 4 * (core + read)
    observations, outputs = 2 * 8 * 32 * (7 * 7 * 3 + 8), 32 * 2 * 32 * 4
    assert footprint.bytes_of_rollout(config) == observations + outputs


@pytest.mark.parametrize(
    "options",
    [
        ("--num-envs", "65536", "--rollout-steps-per-env", "65536"),
        ("--hidden-size", str(10**6)),
        ("--hidden-size", str(2**40)),
        ("--core", "none", "--encoder-size", str(10**10), "--hidden-size", "1"),
    ],
)
def test_run_that_no_memory_holds_is_refused_before_its_folder_is_made(
    rims: Rims, tmp_path: Path, options: tuple[str, ...]
) -> None:
    line = assert_one_line(rims("train", "--env", ENV, *options, "--run-dir", "run"))
    assert "of memory, and " in line
    assert options[-2] in line or "--encoder-size" in line
    root = ("--suite", "empty", "--cores", "lstm", *(o for o in options if o != "none"))
    if "none" not in options:
        assert "of memory, and " in assert_one_line(rims("compare", *root, "--run-root", "root"))
    assert tree(tmp_path / "here") == {}


def test_runs_at_a_time_have_to_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1.0 * GB)
    runs = plan(PPOConfig(suite="empty"), ["lstm"], range(9), tmp_path)
    require_memory(runs, jobs=3)
    with pytest.raises(
        ValueError, match=r"training 9 runs at a time needs at least 1\.4 GB.*--jobs"
    ):
        require_memory(runs, jobs=9)
    require_memory(runs[:2], jobs=9)


def test_process_that_trains_a_part_needs_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PPOConfig(env=ENV, core="none", num_envs=65536, rollout_steps_per_env=1024)
    whole = footprint.bytes_of_rollout(config)
    monkeypatch.setattr(memory, "available_memory", lambda: whole / 2)
    with pytest.raises(ValueError, match="needs at least"):
        footprint.require_fits(config)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    footprint.require_fits(config, processes=8)  # two of the eight are here
    with pytest.raises(ValueError, match="needs at least"):
        footprint.require_fits(config, processes=2)


def test_default_run_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 20e6)
    Trainer(PPOConfig(env=ENV), tmp_path / "run")._lock.release()  # type: ignore[union-attr]


EXPERIMENTS = {
    "copying": ("--test-blanks", "1000000"),
    "adding": ("--test-sequences", str(2**40)),
    "bouncing-balls": ("--train-videos", str(10**9)),
    "sort-of-clevr": ("--train-images", str(10**9)),
}


@pytest.mark.parametrize("task", EXPERIMENTS)
def test_experiment_that_no_memory_holds_is_refused(rims: Rims, tmp_path: Path, task: str) -> None:
    line = assert_one_line(rims("experiment", task, *EXPERIMENTS[task], "--run-root", "root"))
    assert f"{task} with these settings needs at least" in line
    assert tree(tmp_path / "here") == {}


def test_experiments_at_a_time_have_to_fit_together(
    rims: Rims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1.0 * GB)
    call = ("experiment", "adding", "--cores", "gru", "--seeds", "9", "--jobs", "9")
    line = assert_one_line(rims(*call, "--hidden-size", "8", "--run-root", "root"))
    assert "training 9 runs at a time needs at least 1.5 GB of memory, and 1.0 GB are free" in line
    assert tree(tmp_path / "here") == {}


BENCHES = {
    "cells": ("--batch", "1000000", "--steps", "1000000"),
    "nfm": ("--batch", "1000000", "--planes", "1000"),
    "agents": ("--num-envs", "65536", "--rollout-steps-per-env", "65536"),
    "scaling": ("--num-envs", "65536", "--rollout-steps-per-env", "65536"),
}


@pytest.mark.parametrize("bench", BENCHES)
def test_bench_that_no_memory_holds_is_refused(rims: Rims, tmp_path: Path, bench: str) -> None:
    line = assert_one_line(rims("bench", bench, *BENCHES[bench], "--out", "out"))
    assert "of memory, and " in line
    assert tree(tmp_path / "here") == {}
