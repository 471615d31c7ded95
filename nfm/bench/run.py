"""Measuring NFM case after case, with the results on disk after each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

import nfm
from nfm.bench import memory
from nfm.bench.contenders import CASES, NAMES, Case, Settings, contenders
from rims.bench import machine
from rims.bench.memory import can_measure
from rims.bench.report import plural, short
from rims.bench.results import replace_text
from rims.bench.timing import Pair, alternate, summarise

JSON_NAME, MARKDOWN_NAME = "nfm.json", "nfm.md"

Say = Callable[[str], None]


class Figures(NamedTuple):
    """Figures of one contender; the ratio to the first is taken in every round."""

    name: str
    ms: float
    ratio: float
    ratio_low: float  # the quartiles
    ratio_high: float
    memory_mb: float | None


@dataclass(frozen=True)
class Row:
    """Measurements of one case."""

    case: Case
    rounds: Sequence[tuple[float, ...]]  # milliseconds, one per contender
    memory_mb: Sequence[float] | None

    def figures(self) -> list[Figures]:
        """One per contender, the baseline first."""
        found = []
        for place, name in enumerate(NAMES[self.case.subject]):
            summary = summarise([Pair(times[place], times[0]) for times in self.rounds])
            peak = None if self.memory_mb is None else self.memory_mb[place]
            found.append(Figures(name, *summary[:1], *summary[2:], peak))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the figures, and the rounds they come from."""
        return {
            "subject": self.case.subject,
            "pass": self.case.work,
            "contenders": [figures._asdict() for figures in self.figures()],
            "rounds_ms": [list(times) for times in self.rounds],
        }


def bench_nfm(settings: Settings, folder: Path, command: str, *, say: Say) -> str:
    """Measure every case and write ``nfm.json`` and ``nfm.md`` after each.

    Args:
        settings: what to measure.
        folder: an existing folder for the two files.
        command: what was typed, for the report.
        say: takes a line about progress.

    Returns:
        The report as Markdown.
    """
    torch.set_num_threads(settings.threads)
    about = _machine(settings, command)
    rows: list[Row] = []
    report = ""
    for case in CASES:
        rows.append(_measure(case, settings, say))
        report = to_markdown(about, settings, rows)
        plain = {
            "machine": about,
            "settings": settings.to_dict(),
            "rows": [row.to_dict() for row in rows],
        }
        replace_text(folder / JSON_NAME, json.dumps(plain, indent=1) + "\n")
        replace_text(folder / MARKDOWN_NAME, report)
        lines = (f"{f.name} {short(f.ms)} ms ({short(f.ratio)})" for f in rows[-1].figures())
        say(f"{case.subject}, {case.work}: {'; '.join(lines)}")
    return report


def _machine(settings: Settings, command: str) -> dict[str, Any]:
    about = machine.describe(settings.device, settings.threads, command)
    folder = Path(nfm.__file__).parent
    # "dirty" where either package differs from the commit
    about["commit"] = max(about["commit"], machine.commit(folder), key=len)
    about["source"] = {"rims": about["source"], "nfm": machine.source_digest(folder)}
    return about


def _measure(case: Case, settings: Settings, say: Say) -> Row:
    entrants = contenders(case, settings)
    for name, entrant in zip(NAMES[case.subject], entrants, strict=True):
        if not entrant.work().isfinite().all():
            raise FloatingPointError(f"{name}: the result is not finite.")
    times = alternate(entrants, settings.device, settings.rounds, settings.seconds_per_case)
    peaks = None
    if can_measure(settings.device):
        try:
            peaks = memory.measure(case, settings)
        except RuntimeError as error:
            say(f"No memory of {case.subject}, {case.work}: {error}.")
    return Row(case, times, peaks)


_TEXT = """\
# NFM: speed and memory

    {command}

{processor}, {cores} cores, {threads}, device {device}; {system}, torch {torch},
Python {python}, numpy {numpy}; commit {commit}, {date}.

PreActResNet-18 with {planes} planes, {batch} images of 32x32 at a time, without NFM and with it
(2 passes, top 5, 4 heads of 32). The attention alone: a map of 32x32 reads maps of 32, 16, 8, 4
and 32. Training is forward and backward, without the optimizer's step. Contenders run alternately
in one process. Times are medians in milliseconds; the ratio is to the first line, taken in every
round: its median and, in brackets, its quartiles. Memory is the peak of one pass above the level
before it, each figure of a fresh process, in MB of 10^6 bytes."""


def to_markdown(about: dict[str, Any], settings: Settings, rows: Sequence[Row]) -> str:
    """The whole report."""
    given = {**about, "planes": settings.planes, "batch": settings.batch}
    given["threads"] = plural(settings.threads, "thread")
    parts = [_TEXT.format(**given)]
    for row in rows:
        rounds = len(row.rounds)
        lines = [
            f"## {row.case.subject.capitalize()}, {row.case.work}: {rounds} rounds",
            "",
            "| contender | ms | ratio | memory, MB |",
            "| --- | ---: | ---: | ---: |",
        ]
        for f in row.figures():
            ratio = f"{short(f.ratio)} [{short(f.ratio_low)}, {short(f.ratio_high)}]"
            peak = "-" if f.memory_mb is None else short(f.memory_mb)
            lines.append(f"| {f.name} | {short(f.ms)} | {ratio} | {peak} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
