"""docs/claims.md says what its reports say, and its commands are commands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks import claims
from benchmarks.claims import Claim, answer, page, read_claims, report_of, tables
from command_line import ROOT, Rims

BASE = Claim("x", "says", "source", "results", "row", "rim_lstm", ["lstm"], seeds=3)


@pytest.fixture(autouse=True)
def no_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs of this checkout are not committed, and the page is of what is."""
    monkeypatch.setattr(claims, "RUNS", tmp_path / "runs")


def report(**values: list[float]) -> dict[str, Any]:
    return {
        "command": "rims experiment",
        "models": {
            name: {"seeds": list(range(len(own))), "results": {"row": {"per_seed": own}}}
            for name, own in values.items()
        },
    }


@pytest.mark.parametrize(
    ("changes", "ours", "others", "verdict"),
    [
        ({}, [0.9, 0.8, 0.85], [0.5, 0.42, 0.44], "reproduced"),
        ({}, [0.5, 0.42, 0.44], [0.9, 0.8, 0.85], "refuted"),
        ({}, [0.5, 0.9, 0.44], [0.5, 0.7, 0.85], "not decided: an interval includes zero"),
        ({}, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], "not decided: an interval includes zero"),
        ({}, [0.9, 0.8], [0.5, 0.42, 0.44], "not decided: 2 of 3 seeds"),
        ({"brief": True}, [0.9, 0.8, 0.85], [0.5, 0.42, 0.44], "not decided: trained too little"),
        ({"lower": True}, [0.5, 0.42, 0.44], [0.9, 0.8, 0.85], "reproduced"),
        ({"lower": True, "log": True}, [1e-4, 3e-4, 2e-4], [0.1, 0.4, 0.2], "reproduced"),
        ({"lower": True, "log": True}, [1e-4, 3e-1, 2e-4], [1e-3, 4e-3, 2e-3], "not decided: an i"),
    ],
)
def test_verdicts(
    changes: dict[str, Any], ours: list[float], others: list[float], verdict: str
) -> None:
    found = answer(BASE._replace(**changes), report(rim_lstm=ours, lstm=others))
    assert found.verdict.startswith(verdict)


def test_every_other_variant_has_to_be_behind() -> None:
    claim = BASE._replace(than=["lstm", "gru"])
    own = {"rim_lstm": [0.9, 0.8, 0.85], "lstm": [0.5, 0.42, 0.44]}
    assert answer(claim, report(**own)).verdict == "not decided: runs are missing"
    assert answer(claim, report(**own, gru=[0.89, 0.82, 0.84])).verdict.startswith("not decided")
    assert answer(claim, report(**own, gru=[0.99, 0.9, 0.95])).verdict == "refuted"
    assert answer(claim, report(**own, gru=[0.7, 0.61, 0.63])).verdict == "reproduced"


def test_agents_are_judged_by_their_success() -> None:
    tasks = {"row": {"per_seed_success": [1.0, 0.9]}}
    cores = {name: {"seeds": [7, 8], "tasks": tasks} for name in ("rim_lstm", "lstm")}
    found = answer(BASE, {"cores": cores})
    assert (found.seeds, found.verdict) == (2, "not decided: 2 of 3 seeds")
    assert found.numbers.startswith("rim_lstm 95.0 [")


def test_runs_come_before_what_is_committed(tmp_path: Path) -> None:
    newest = tmp_path / "runs" / "doorkey" / "results.json"
    assert report_of("doorkey") != {}
    newest.parent.mkdir(parents=True)
    newest.write_text(json.dumps({}))
    assert report_of("doorkey") == {}
    assert report_of("nothing") is None


def test_the_page_is_made_of_the_committed_reports() -> None:
    assert (ROOT / "docs" / "claims.md").read_text() == page(read_claims())


def test_tables_that_decide_are_made_by_a_command_or_there() -> None:
    made = tables(read_claims())
    for claim in read_claims():
        assert claim.results in made or report_of(claim.results) is not None
        if claim.results in made:
            assert made[claim.results].command.endswith(f"--run-root runs/{claim.results}")


@pytest.mark.parametrize("name", tables(read_claims()))
def test_commands_are_understood(name: str, rims: Rims, tmp_path: Path) -> None:
    words = shlex.split(tables(read_claims())[name].command)[1:]
    root = str(tmp_path / "none")
    words[words.index("--run-root") + 1] = root
    result = rims(*(word for word in words if word != "--match-params"), "--report-only")
    assert result.err == f"Error: --run-root: folder '{root}' does not exist.\n"
