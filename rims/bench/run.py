"""Measuring case after case, with the results on disk after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from rims.bench.cases import Case, Settings
from rims.bench.machine import describe
from rims.bench.memory import Memory, can_measure, measure_memory
from rims.bench.report import progress_line, to_markdown
from rims.bench.results import (
    JSON_NAME,
    MARKDOWN_NAME,
    Earlier,
    Row,
    read_earlier,
    replace_text,
    to_json,
)
from rims.bench.timing import time_case

Say = Callable[[str], None]


def bench_cells(settings: Settings, folder: Path, command: str, *, resume: bool, say: Say) -> str:
    """Measure every case and write ``cells.json`` and ``cells.md`` after each.

    Args:
        settings: what to measure.
        folder: an existing folder for the two files.
        command: what was typed, for the report.
        resume: keep rows of an earlier call that were made in the same circumstances, and skip
            their cases; else, or if they were made otherwise, start anew.
        say: takes a line about progress.

    Returns:
        The report as Markdown.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    machine = describe(settings.device, settings.threads, command)
    earlier = read_earlier(folder / JSON_NAME, machine) if resume else Earlier([], {})
    if earlier.obstacle:
        say(f"Starting anew: {earlier.obstacle}.")
    rows = {row.case: row for row in earlier.rows}
    cases = settings.cases()
    left = [case for case in cases if not (case in rows and rows[case].satisfies(settings))]
    if len(left) < len(cases):
        say(f"{len(cases) - len(left)} of {len(cases)} cases are in {folder / JSON_NAME}.")
    if any(map(settings.wants_memory, left)) and not can_measure(settings.device):
        say("Memory is not measured: this system has no way to read a process's peak.")
    if not left:
        machine = earlier.machine  # nothing is of today
    for case in left:
        row = _measure(case, settings, say)
        if row is not None:
            rows[case] = row
            _write(folder, machine, rows.values())
            say(f"[{cases.index(case) + 1}/{len(cases)}] {progress_line(row)}")
    return _write(folder, machine, rows.values())


def _write(folder: Path, machine: dict[str, Any], rows: Iterable[Row]) -> str:
    ordered = sorted(rows, key=lambda row: row.case.size, reverse=True)  # large sizes first
    report = to_markdown(machine, ordered)
    replace_text(folder / JSON_NAME, to_json(machine, ordered))
    replace_text(folder / MARKDOWN_NAME, report)
    return report


def _measure(case: Case, settings: Settings, say: Say) -> Row | None:
    """The row of a case, None if the machine has too little memory for it."""
    try:
        pairs = time_case(case, settings)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        say(f"Skipped, not enough memory: {case}")
        return None
    return Row(
        case,
        tuple(pairs),
        rounds_asked=settings.rounds,
        seconds_asked=settings.seconds_per_case,
        memory=_memory_of(case, settings, say),
    )


def _memory_of(case: Case, settings: Settings, say: Say) -> Memory | None:
    if not (settings.wants_memory(case) and can_measure(settings.device)):
        return None
    try:
        return measure_memory(case, settings.device, settings.threads)
    except RuntimeError as error:  # hours of other cases are not lost for one figure
        say(f"No memory of {case}: {error}.")
        return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU's allocator raises a plain RuntimeError.
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
