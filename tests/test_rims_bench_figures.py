"""The figures of ``rims bench cells``: time, memory, where they come from, how they are kept."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench_cases import CASE, SETTINGS
from rims.bench import machine, memory, timing
from rims.bench.cases import Case, Pass, Size
from rims.bench.memory import Memory, measure_memory
from rims.bench.report import short, to_markdown
from rims.bench.results import Row, to_json
from rims.bench.timing import Pair, Summary, summarise, time_case

# Time ---------------------------------------------------------------------------------------------


def test_summarise_known_numbers() -> None:
    pairs = [Pair(10, 1), Pair(4, 2), Pair(9, 3), Pair(20, 5), Pair(60, 10)]  # 10, 2, 3, 4, 6
    assert summarise(pairs) == Summary(10, 3, 4, ratio_low=3, ratio_high=6)
    # not the ratio of the medians, 10 / 3


def test_layers_run_alternately_over_one_input(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, torch.Tensor, bool, bool]] = []
    real = timing.run_once

    def spy(layer: torch.nn.Module, input: torch.Tensor, work: Pass) -> torch.Tensor:
        no_gradient = all(p.grad is None for p in layer.parameters())
        calls.append((type(layer).__name__, input, layer.training, no_gradient))
        return real(layer, input, work)

    monkeypatch.setattr(timing, "run_once", spy)
    assert len(time_case(CASE, SETTINGS)) == 3
    assert [name for name, *_ in calls] == ["RIM_LSTM", "LSTM"] * 5  # checked, warmed up, timed
    assert len({id(input) for _, input, *_ in calls}) == 1
    assert all(training and no_gradient for *_, training, no_gradient in calls)
    calls.clear()
    time_case(CASE._replace(work="inference"), SETTINGS)
    assert not any(training for *_, training, _ in calls)


def test_inference_makes_no_graph_and_training_makes_gradients() -> None:
    layer, _ = timing.make_layers(CASE, "cpu")
    input = torch.randn(3, 2, 6)
    assert not timing.run_once(layer, input, "inference").requires_grad
    timing.run_once(layer, input, "training")
    assert all(p.grad is not None for p in layer.parameters())
    assert input.grad is None


def test_a_slow_case_gets_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock(_: object) -> float:
        nonlocal now
        now += 0.25  # seconds, so half a second a round
        return 250.0

    monkeypatch.setattr(timing, "_cpu_ms", clock)
    monkeypatch.setattr("rims.bench.timing.time.perf_counter", lambda: now)
    many = replace(SETTINGS, rounds=100)
    for seconds, rounds in ((0, 3), (1.0, 3), (5.0, 10), (3600, 100)):
        assert len(time_case(CASE, replace(many, seconds_per_case=seconds))) == rounds


# Memory and what a GPU says -----------------------------------------------------------------------


@pytest.mark.skipif(not memory.can_measure("cpu"), reason="there is no way to measure it here")
@pytest.mark.long
def test_memory_of_a_training_step_is_plausible() -> None:
    case = Case(Size(64, 64, 4, 3), "lstm", "training", batch=64, steps=200)
    output_mb = 64 * 200 * 64 * 4 / 1e6
    measured = measure_memory(case, "cpu", threads=1)
    # backward of nn.LSTM keeps four gates and two states; a RIM layer keeps that and attentions
    assert 4 * output_mb < measured.baseline_mb < 100 * output_mb
    assert 4 * output_mb < measured.ours_mb < 200 * output_mb
    assert measured.ratio == measured.ours_mb / measured.baseline_mb


def test_a_gpu_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            happened.append("event")

        def elapsed_time(self, end: Event) -> float:
            assert end is not self
            return 12.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("synchronise"))

    def work() -> torch.Tensor:
        happened.append("work")
        return torch.zeros(1)

    assert timing._cuda_ms(work) == 12.5
    assert happened == ["synchronise", "event", "work", "event", "synchronise"]


def test_memory_of_a_gpu_is_the_peak_above_the_level_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1_000_000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 6_000_000)
    layer, _ = timing.make_layers(CASE, "cpu")
    assert memory._cuda_peak(layer, CASE) == 5_000_000


def test_ratio_to_next_to_nothing_is_left_out() -> None:
    assert Memory(3.0, 0.02).ratio is None
    row = Row(CASE, (Pair(1.0, 1.0),) * 3, 3, 1.0, Memory(3.0, 0.02))
    report = to_markdown(machine.describe("cpu", 1, "rims bench cells"), [row])
    assert "| training | 2 | 3 | 3.00 | 0.0200 | - |" in report


# Where it comes from ------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_commit_is_of_the_package(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    assert machine.commit(package) == "unknown"
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "nothing")
    assert machine.commit(package) == "unknown"  # installed below the checkout of something else
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "package")
    clean = machine.commit(package)
    assert len(clean) >= 7
    (tmp_path / "cells.json").write_text("{}")  # a result does not change what is measured
    assert machine.commit(package) == clean
    (package / "__init__.py").write_text("x = 2\n")
    assert machine.commit(package) == f"{clean}-dirty"


def test_source_digest_tells_changes_of_source_apart(tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(Path(machine.__file__).parent, package)
    first = machine.source_digest(package)
    (package / "made.so").write_bytes(b"compiled when first used")
    assert machine.source_digest(package) == first
    (package / "cases.py").write_text("")
    assert machine.source_digest(package) != first


# On disk ------------------------------------------------------------------------------------------


def test_rows_come_back_from_json() -> None:
    row = Row(CASE, (Pair(1.5, 1.0), Pair(2.0, 1.0), Pair(3.0, 1.0)), 11, 6.0, Memory(3.0, 1.5))
    other = replace(row, case=CASE._replace(kind="gru"), memory=None)
    plain = json.loads(to_json({"commit": "x"}, [row, other]))
    assert plain["machine"] == {"commit": "x"}
    assert [Row.from_dict(p) for p in plain["rows"]] == [row, other]
    assert json.loads(to_json({}, []))["rows"] == []


def test_a_case_that_is_missing_is_a_dash() -> None:
    pairs = (Pair(1.5, 1.0),) * 3
    gru = CASE._replace(kind="gru", batch=9)
    rows = [Row(CASE, pairs, 3, 1.0), Row(gru, pairs, 3, 1.0)]
    report = to_markdown(machine.describe("cpu", 2, "rims bench cells"), rows)
    figures = "1.50 | 1.00 | 1.50 [1.50, 1.50]"
    assert f"| training | 2 | 3 | {figures} | - | - | - |" in report
    assert f"| training | 9 | 3 | - | - | - | {figures} |" in report


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.5, "0.500"), (99.96, "100.0"), (1e4, "10000")]
)
def test_short(value: float, text: str) -> None:
    assert short(value) == text
