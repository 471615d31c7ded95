"""Results as Markdown tables, one per layer size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

from rims.bench.cases import Case, Kind, Pass, Size
from rims.bench.results import Row

_TEXT = """\
# RIM layers against nn.LSTM and nn.GRU

    {command}

{processor}, {cores} cores, {threads}, device {device}; {system}, torch {torch},
Python {python}, numpy {numpy}; commit {commit}, {date}.

Times are medians of single calls in milliseconds. The two layers of a row have the same input
size and hidden size, get the same input and run alternately in one process, round by round. The
ratio is ours over the baseline's, taken in every round: its median and, in brackets, its quartiles.
A row has {rounds} rounds. Inference is a forward pass under no_grad; training is forward and
backward of the output's sum, with gradients of the weights."""

_MEMORY_TEXT = {
    "cpu": """\
Peak resident memory of one pass above the level just before it, each figure from a fresh process;
in MB of 10^6 bytes, coarse below a few MB.""",
    "cuda": """\
Peak memory allocated on the GPU during one pass above the level just before it, in MB of 10^6
bytes.""",
}

_MISSING = "-"


def to_markdown(machine: dict[str, Any], rows: Sequence[Row]) -> str:
    """The whole report."""
    counts = sorted({len(row.pairs) for row in rows})
    rounds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "no"
    threads = plural(machine["threads"], "thread")
    parts = [_TEXT.format(**machine | {"threads": threads}, rounds=rounds)]
    for size in dict.fromkeys(row.case.size for row in rows):
        of_size = [row for row in rows if row.case.size == size]
        parts += [f"## {_title(size)}", _time_table(of_size)]
        measured = [row for row in of_size if row.memory is not None]
        if measured:
            text = _MEMORY_TEXT["cpu" if machine["device"] == "cpu" else "cuda"]
            parts += [f"### Peak memory of {tuple(size)}", text, _memory_table(measured)]
    return "\n\n".join(parts) + "\n"


def progress_line(row: Row) -> str:
    """One case in one line."""
    case, figures = row.case, row.summary
    line = (
        f"{tuple(case.size)} B={case.batch} T={case.steps} {case.work}: "
        f"{case.ours} {short(figures.ours_ms)} ms, "
        f"{case.baseline} {short(figures.baseline_ms)} ms, ratio {_ratio(row)}"
    )
    if row.memory is not None:
        ours, baseline = map(short, row.memory)
        line += f"; {ours} MB, {baseline} MB"
    return line


def plural(count: int, noun: str) -> str:
    """Count and noun: ``1 thread``, ``2 threads``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def short(value: float) -> str:
    """Three significant digits, never an exponent.

    >>> short(1234.5), short(12.345), short(0.012345)
    ('1234', '12.3', '0.0123')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _title(size: Size) -> str:
    return (
        f"{tuple(size)}: input_size {size.input_size}, hidden_size {size.hidden_size}, "
        f"{size.k} of {size.num_rims} mechanisms active"
    )


def _time_table(rows: Sequence[Row]) -> str:
    def cells(row: Row) -> tuple[str, ...]:
        return (short(row.summary.ours_ms), short(row.summary.baseline_ms), _ratio(row))

    return _table(rows, ("{ours}, ms", "{baseline}, ms", "ratio"), cells)


def _memory_table(rows: Sequence[Row]) -> str:
    def cells(row: Row) -> tuple[str, ...]:
        assert row.memory is not None
        ratio = row.memory.ratio
        return (*map(short, row.memory), _MISSING if ratio is None else short(ratio))

    return _table(rows, ("{ours}, MB", "{baseline}, MB", "ratio"), cells)


def _table(
    rows: Sequence[Row], columns: tuple[str, ...], cells: Callable[[Row], tuple[str, ...]]
) -> str:
    """One line per pass and shape, with ``columns`` for every kind of layer there is."""
    by_case = {row.case: cells(row) for row in rows}
    kinds = [kind for kind in get_args(Kind) if any(case.kind == kind for case in by_case)]
    head = ["pass", "batch", "steps"]
    for kind in kinds:
        example = next(case for case in by_case if case.kind == kind)
        head += [name.format(ours=example.ours, baseline=example.baseline) for name in columns]
    lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    order = sorted(
        {(get_args(Pass).index(case.work), case.batch, case.steps, case.size) for case in by_case}
    )
    for place, batch, steps, size in order:
        work = get_args(Pass)[place]
        line = [work, str(batch), str(steps)]
        for kind in kinds:
            line += by_case.get(Case(size, kind, work, batch, steps), (_MISSING,) * len(columns))
        lines.append(_line(line))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ratio(row: Row) -> str:
    middle, low, high = row.summary[2:]
    return f"{short(middle)} [{short(low)}, {short(high)}]"
