"""Published claims: what decides each, by the reports in docs/results and the runs in runs/.

python -m benchmarks.claims            lists every claim, its answer and what is missing
python -m benchmarks.claims --write    writes docs/claims.md
python -m benchmarks.claims --run      trains what is missing, table after table, and goes on where
                                       it was; --run NAME: that table alone

Reports of runs/ are read before those of docs/results: what is finished is copied there by hand,
without its runs.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from lab.reporting.statistics import Estimate, mean_over_seeds
from lab.words import did_you_mean, plural

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = ROOT / "benchmarks" / "claims.toml"
PAGE = ROOT / "docs" / "claims.md"
COMMITTED, RUNS = ROOT / "docs" / "results", ROOT / "runs"

_HEAD = """# Published claims, and what came out here

Made by `make claims` from `benchmarks/claims.toml`, in which settings stand before the first run,
and the reports in [docs/results](results). A claim is decided by the difference of two variants
seed by seed, with its 95 % Student t interval, on one number that was named beforehand:

- **reproduced**: all its intervals are on the side that the claim says;
- **refuted**: one of them is on the other side;
- **not decided**: an interval includes zero, or runs are missing or too short. Hours that would
  decide it stand beside it, where they are known.

Numbers are of this code, at sizes that two processors can train; the papers' sizes are larger.
"""


class Claim(NamedTuple):
    """A claim, as in claims.toml."""

    name: str
    says: str
    source: str
    results: str
    row: str
    better: str
    than: list[str]
    seeds: int
    published: str = ""
    lower: bool = False
    log: bool = False
    brief: bool = False
    hours: float = 0.0
    command: str = ""
    why: str = ""


class Answer(NamedTuple):
    """What the runs that there are say about a claim."""

    verdict: str
    numbers: str = ""  # ours, with intervals
    differences: str = ""
    seeds: int = 0
    command: str = ""


def read_claims() -> list[Claim]:
    """All claims, in order."""
    return [Claim(**table) for table in tomllib.loads(CLAIMS.read_text())["claim"]]


def report_of(results: str) -> dict[str, Any] | None:
    """The newest report of a table; ``None`` if there is none."""
    for folder in (RUNS / results, COMMITTED / results):
        for name in ("results.json", "comparison.json"):
            if (folder / name).exists():
                found: dict[str, Any] = json.loads((folder / name).read_text())
                return found
    return None


def values_of(report: Mapping[str, Any], row: str) -> dict[str, dict[int, float]]:
    """The number of every seed, by variant."""
    found = {}
    for variant, about in (report.get("models") or report["cores"]).items():
        if "tasks" in about:
            values = about["tasks"].get(row, {}).get("per_seed_success")
        else:
            values = about["results"].get(row, {}).get("per_seed")
        if values:
            found[variant] = dict(zip(about["seeds"], values, strict=True))
    return found


def answer(claim: Claim, report: Mapping[str, Any] | None) -> Answer:
    """Judge a claim by a report."""
    if report is None:
        return Answer("not decided: no run yet")
    values = values_of(report, claim.row)
    if claim.log:
        values = {
            variant: {seed: math.log10(value) for seed, value in own.items()}
            for variant, own in values.items()
        }
    wanted = [claim.better, *claim.than]
    is_share = not (claim.lower or claim.log)
    bounds = (0.0, 1.0) if is_share else (-math.inf, math.inf)
    means = {
        name: mean_over_seeds(list(own.values()), bounds=bounds) for name, own in values.items()
    }
    told = (f"{name} {_text(means[name], is_share)}" for name in wanted if name in means)
    numbers = "; ".join(told)
    command = str(report.get("command", ""))
    if not all(variant in values for variant in wanted):
        return Answer("not decided: runs are missing", numbers, command=command)
    differences, shared = [], []
    for other in claim.than:
        common = sorted(values[claim.better].keys() & values[other].keys())
        sign = -1 if claim.lower else 1
        pairs = [values[claim.better][seed] - values[other][seed] for seed in common]
        shared.append(len(common))
        if pairs:
            differences.append((other, sign, mean_over_seeds(pairs)))
    told = (f"minus {other} {_text(found, is_share)}" for other, _, found in differences)
    verdict = _verdict(claim, differences, min(shared))
    return Answer(verdict, numbers, "; ".join(told), min(shared), command)


def _verdict(claim: Claim, differences: list[tuple[str, int, Estimate]], seeds: int) -> str:
    if seeds < claim.seeds:
        return f"not decided: {seeds} of {plural(claim.seeds, 'seed')}"
    if claim.brief:
        return "not decided: trained too little"
    ends = [sorted((sign * d.low, sign * d.high)) for _, sign, d in differences]
    if all(low > 0 for low, _ in ends):
        return "reproduced"
    if any(high < 0 for _, high in ends):
        return "refuted"
    return "not decided: an interval includes zero"


def _text(estimate: Estimate, is_share: bool) -> str:
    scale, digits = (100, 1) if is_share else (1, 3)
    mean, low, high = (round(scale * x, digits) for x in estimate)
    interval = "" if math.isnan(low) else f" [{low}, {high}]"
    return f"{mean}{interval}"


def page(claims: list[Claim]) -> str:
    """docs/claims.md."""
    answers = {claim.name: answer(claim, report_of(claim.results)) for claim in claims}
    lines = [_HEAD, "| claim | answer | seeds |", "|---|---|---:|"]
    for claim in claims:
        found = answers[claim.name]
        lines.append(f"| [{claim.says}](#{claim.name}) | {found.verdict} | {found.seeds} |")
    for claim in claims:
        lines += ["", f"## {claim.name}", "", f"{claim.says} ({claim.source}).", ""]
        lines += _facts(claim, answers[claim.name])
    return "\n".join(lines) + "\n"


def _facts(claim: Claim, found: Answer) -> list[str]:
    unit = f"`{claim.row}`"
    unit += ", log10" if claim.log else "" if claim.lower else ", per cent"
    facts = {
        "Published": claim.published,
        f"Ours ({unit})": found.numbers,
        "Seed by seed": f"{claim.better} {found.differences}" if found.differences else "",
        "Answer": f"**{found.verdict}**",
        "Why": claim.why,
        "Hours of two processors": f"{claim.hours:g}" if claim.hours else "",
        "Report": _link(claim.results),
        "Command": f"`{claim.command or found.command}`" if claim.command or found.command else "",
    }
    return [f"- {name}: {text}" for name, text in facts.items() if text]


def _link(results: str) -> str:
    for name in ("results.md", "comparison.md"):
        if (COMMITTED / results / name).exists():
            return f"[results/{results}](results/{results}/{name})"
    return ""


def tables(claims: list[Claim]) -> dict[str, Claim]:
    """The claims that say how their table is made, by the table."""
    return {claim.results: claim for claim in claims if claim.command}


@click.command()
@click.option("--write", is_flag=True, help="Write docs/claims.md.")
@click.option("--run", is_flag=True, help="Train what is missing.")
@click.argument("names", nargs=-1)
def main(write: bool, run: bool, names: tuple[str, ...]) -> None:
    """List claims, write their page, or train what decides them; NAMES: of these tables."""
    claims = read_claims()
    known = tables(claims)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, list(known))
            raise click.UsageError(f"there is no table {name!r}; tables: {', '.join(known)}{hint}")
    if run:
        for name, claim in known.items():
            if not names or name in names:
                words = shlex.split(claim.command)[1:]
                subprocess.run([sys.executable, "-m", "cli", *words], cwd=ROOT, check=True)
    if write:
        PAGE.write_text(page(claims))
    for claim in claims:
        found = answer(claim, report_of(claim.results))
        hours = f", {claim.hours:g} h" if claim.hours else ""
        click.echo(f"{claim.name}: {found.verdict} ({claim.results}{hours})")


if __name__ == "__main__":
    main()
