"""``rims bench cells``: what it measures, writes, keeps and refuses."""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from click.testing import CliRunner

import cli
from agents.commands.parsing import bench_options
from bench_cases import SETTINGS
from command_line import Rims, assert_one_line, process, tree
from rims.bench import machine, run, timing
from rims.bench.cases import Case, Kind, Pass, Settings
from rims.bench.memory import Memory
from rims.bench.results import Row, read_earlier
from rims.bench.timing import Pair, time_case

CELLS = ("bench", "cells")
TINY = (*CELLS, "--size", "6,4,2,1", "--rounds", "3", "--out", "out")
ONE = (*TINY, "--batch", "2", "--steps", "3", "--kind", "gru", "--pass", "inference")


def written(out: Path = Path("out")) -> Any:
    return json.loads((out / "cells.json").read_text())


# The command --------------------------------------------------------------------------------------


def test_writes_rows_and_tables(rims: Rims) -> None:
    result = rims(*TINY, "--batch", "2,3", "--steps", "1,2", "--no-memory", "--threads", "1")
    assert result.code == 0
    plain = written()
    about = plain["machine"]
    assert about["threads"] == 1
    assert about["torch"] == torch.__version__
    assert about["command"].startswith("rims bench cells --size 6,4,2,1 --rounds 3")
    assert {"processor", "cores", "python", "numpy", "device", "commit", "date"} < set(about)
    rows = plain["rows"]
    cases = {(r["kind"], r["pass"], r["batch"], r["steps"]) for r in rows}
    assert len(cases) == len(rows) == 2 * 2 * 2 * 2
    for row in rows:
        pairs = row["rounds_ms"]
        assert row["rounds"] == len(pairs) == 3
        assert min(map(min, pairs)) > 0
        assert row["ours_ms"] == statistics.median(ours for ours, _ in pairs)
        assert row["baseline_ms"] == statistics.median(baseline for _, baseline in pairs)
        assert row["ratio"] == pytest.approx(statistics.median(a / b for a, b in pairs))
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["memory"] is None
    report = Path("out", "cells.md").read_text()
    assert result.out == report
    assert "1 thread, device cpu" in report
    head = "| pass | batch | steps | RIM_LSTM, ms | nn.LSTM, ms | ratio | RIM_GRU, ms "
    assert head in report
    for work in get_args(Pass):
        for batch in (2, 3):
            for steps in (1, 2):
                assert report.count(f"\n| {work} | {batch} | {steps} | ") == 1
    progress = result.err.splitlines()
    assert len(progress) == len(rows)
    assert progress[-1].startswith("[16/16] (6, 4, 2, 1) B=3 T=2 training: RIM_GRU ")


def test_quick_shows_it_in_seconds_and_typed_options_win(
    rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Settings] = []

    def take(settings: Settings, *_: object, **__: object) -> str:
        taken.append(settings)
        return ""

    monkeypatch.setattr(run, "bench_cells", take)
    assert rims(*CELLS, "--quick").code == 0
    assert rims(*CELLS, "--quick", "--steps", "32", "--rounds", "5").code == 0
    assert rims(*CELLS).code == 0
    quick, typed, full = taken
    assert (len(quick.cases()), quick.rounds) == (2 * 4, 3)
    assert not any(map(quick.wants_memory, quick.cases()))
    assert (typed.sizes, typed.steps, typed.rounds) == (quick.sizes, (32,), 5)
    assert len(full.cases()) == 3 * 4 * 4 * 2 * 2
    assert sum(map(full.wants_memory, full.cases())) == 3 * 3 * 2 * 2 * 2
    assert full.threads == torch.get_num_threads()


def test_options_offer_what_can_be_measured() -> None:
    assert get_args(Kind) == bench_options.KINDS
    assert get_args(Pass) == bench_options.PASSES


def test_help_is_there() -> None:
    assert "cells" in CliRunner().invoke(cli.rims, ["bench"]).output
    text = CliRunner().invoke(cli.rims, [*CELLS, "--help"]).output
    for default in ("600,300,6,4", "1,16,64,256", "bench-cells"):
        assert default in "".join(text.split())


MISTAKES = {
    "size too short": (("--size", "600,300,6"), "input_size,hidden_size,num_rims,k"),
    "size no number": (("--size", "600,300,6,x"), "'x'"),
    "mechanisms do not divide": (("--size", "600,300,7,4"), "num_rims must divide hidden_size"),
    "k above the mechanisms": (("--size", "600,300,6,7"), "k must lie in [1, num_rims=6]"),
    "batch": (("--batch", "0"), "--batch"),
    "steps": (("--steps", "1,,2"), "--steps"),
    "kind": (("--kind", "rnn"), "lstm, gru"),
    "pass": (("--pass", "backward"), "inference, training"),
    "rounds": (("--rounds", "2"), "--rounds"),
    "threads": (("--threads", "0"), "--threads"),
    "seconds": (("--seconds-per-case", "nan"), "--seconds-per-case"),
    "device": (("--device", "tpu"), "cpu"),
    "out is a file": (("--out", "../file"), "file"),
    "out below a file": (("--out", "../file/out"), "cannot be written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_and_nothing_is_written(tmp_path: Path, rims: Rims, name: str) -> None:
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    arguments, hint = MISTAKES[name]
    assert hint in assert_one_line(rims(*TINY, *arguments))
    assert tree(tmp_path) == before


def test_no_cuda_is_one_line(tmp_path: Path, rims: Rims, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no CUDA GPU" in assert_one_line(rims(*ONE, "--device", "cuda"))
    assert not Path("out").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_is_measured(rims: Rims) -> None:
    assert rims(*ONE, "--device", "cuda", "--memory").code == 0
    plain = written()
    assert plain["machine"]["device"] == torch.cuda.get_device_name()
    (row,) = plain["rows"]
    assert min(map(min, row["rounds_ms"])) > 0
    assert row["memory"]["ours_mb"] > 0


# Going on -----------------------------------------------------------------------------------------


def test_resume_skips_what_is_there_and_adds_what_is_new(rims: Rims) -> None:
    assert rims(*ONE).code == 0
    first, report = written(), Path("out", "cells.md").read_text()
    again = rims(*ONE)
    assert again.err == "1 of 1 cases are in out/cells.json.\n"
    assert written() == first
    assert again.out == report
    rims(*ONE, "--steps", "3,4")
    assert [row["steps"] for row in written()["rows"]] == [3, 4]
    assert written()["rows"][0] == first["rows"][0]


def test_more_rounds_than_before_or_memory_measure_again(rims: Rims) -> None:
    rims(*ONE)
    rims(*ONE, "--rounds", "4")
    (row,) = written()["rows"]
    assert row["rounds"] == 4
    rims(*ONE)  # fewer are enough
    assert written()["rows"] == [row]
    done = Row.from_dict(row)
    assert done.satisfies(SETTINGS)
    assert not done.satisfies(replace(SETTINGS, memory=True))
    assert replace(done, memory=Memory(1.0, 1.0)).satisfies(replace(SETTINGS, memory=True))


def test_no_resume_starts_anew(rims: Rims) -> None:
    rims(*ONE)
    result = rims(*ONE, "--steps", "4", "--no-resume")
    assert "Starting anew" not in result.err  # as was asked for
    assert [row["steps"] for row in written()["rows"]] == [4]


@pytest.mark.parametrize("name", ["commit", "source", "threads", "torch", "device", "processor"])
def test_rows_of_different_circumstances_are_not_mixed(rims: Rims, name: str) -> None:
    rims(*ONE)
    other = written()
    other["machine"][name] = "another"
    Path("out", "cells.json").write_text(json.dumps(other))
    result = rims(*ONE, "--steps", "4")
    assert f"Starting anew: out/cells.json was made otherwise: {name} was 'another'" in result.err
    assert [row["steps"] for row in written()["rows"]] == [4]
    assert written()["machine"][name] != "another"


def test_threads_of_another_call_start_anew(rims: Rims) -> None:
    rims(*ONE, "--threads", "1")
    result = rims(*ONE, "--threads", "2")
    assert "threads was 1, is 2" in result.err
    assert len(written()["rows"]) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine": {}, "rows": 3}', "\x00"])
def test_another_file_of_that_name_is_no_earlier_result(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cells.json"
    path.write_text(content)
    assert "not of this command" in read_earlier(path, {}).obstacle


def test_interruption_keeps_what_was_measured(rims: Rims, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time_case

    def interrupt(case: Case, settings: Settings) -> list[Pair]:
        if case.steps == 3:
            raise KeyboardInterrupt
        return real(case, settings)

    monkeypatch.setattr(run, "time_case", interrupt)
    arguments = (*TINY, "--batch", "2", "--steps", "1,2,3,4", "--kind", "lstm")
    result = rims(*arguments)
    assert result.code == 130
    assert result.err.splitlines()[-1].startswith("Interrupted; the same command goes on")
    assert len(written()["rows"]) == 4
    assert Path("out", "cells.md").read_text().count("\n| training |") == 2
    monkeypatch.setattr(run, "time_case", real)
    assert "4 of 8 cases are in" in rims(*arguments).err
    assert len(written()["rows"]) == 8


@pytest.mark.long
def test_killed_command_leaves_whole_files(tmp_path: Path) -> None:
    arguments = (*TINY, "--batch", "2", "--steps", "1,2,3,4", "--seconds-per-case", "600")
    with process(*arguments, "--rounds", "50", folder=tmp_path) as running:
        assert running.stderr is not None
        running.stderr.readline()
        running.stderr.readline()
        running.kill()
        running.communicate(timeout=60)
    out = tmp_path / "out"
    assert len(written(out)["rows"]) >= 2
    assert (out / "cells.md").read_text().startswith("# RIM layers")


def test_want_of_memory_leaves_a_case_out(rims: Rims, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: Case, settings: Settings) -> list[Pair]:
        if case.steps == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return [Pair(2.0, 1.0)] * 3

    monkeypatch.setattr(run, "time_case", fail)
    result = rims(*ONE, "--steps", "1,2")
    assert result.code == 0
    assert "Skipped, not enough memory: " in result.err
    assert [row["steps"] for row in written()["rows"]] == [2]


# Memory and failures ------------------------------------------------------------------------------


def test_output_that_is_not_finite_is_refused(rims: Rims, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "run_once", lambda *_: torch.tensor([torch.nan]))
    result = rims(*ONE)
    assert result.code == 1
    assert result.err == "Error: RIM_GRU of size 6,4,2,1: the output is not finite.\n"


def test_memory_is_in_the_row_and_the_report(rims: Rims, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure_memory", lambda *_: Memory(30.0, 12.0))
    result = rims(*ONE, "--memory")
    assert written()["rows"][0]["memory"] == {"ours_mb": 30.0, "baseline_mb": 12.0, "ratio": 2.5}
    assert "RIM_GRU, MB | nn.GRU, MB | ratio |" in result.out
    assert "| inference | 2 | 3 | 30.0 | 12.0 | 2.50 |" in result.out
    assert result.err.endswith("; 30.0 MB, 12.0 MB\n")


def test_a_failing_memory_process_costs_only_its_figure(
    rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_of_tests = machine.describe("cpu", 1, "rims bench cells")

    def killed(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -9, "", "")

    monkeypatch.setattr(run, "describe", lambda *_: machine_of_tests)
    monkeypatch.setattr("rims.bench.memory.subprocess.run", killed)
    result = rims(*ONE, "--memory")
    assert result.code == 0
    assert "ended with -9" in result.err
    assert written()["rows"][0]["memory"] is None


def test_without_a_way_to_memory_one_line_says_so(
    rims: Rims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "can_measure", lambda _: False)
    result = rims(*ONE, "--memory", "--steps", "1,2")
    assert result.err.count("Memory is not measured") == 1
    assert " MB" not in result.out
