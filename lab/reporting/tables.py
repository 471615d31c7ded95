"""Reports of comparisons: tables and notes as Markdown, everything as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.comparing import Flag, grouped
from lab.disk.output import write_text
from lab.words import plural

if TYPE_CHECKING:  # which imports scipy
    from lab.comparison import Comparison
    from lab.reporting.statistics import Estimate


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = False
) -> str:
    """A table in Markdown; ``right`` aligns all columns but the first to the right."""
    head, *body = (f"| {' | '.join(line)} |" for line in (heads, *rows))
    rule = "|---" + ("|---:" if right else "|---") * (len(heads) - 1) + "|"
    return "\n".join([head, rule, *body])


def estimate_text(
    estimate: Estimate | None, form: str = ".2f", *, scale: float = 1.0, sign: str = ""
) -> str:
    """A mean with its interval, if there is one.

    Example:
        >>> from lab.reporting.statistics import Estimate
        >>> estimate_text(Estimate(0.5, 0.25, 0.75), ".0f", scale=100), estimate_text(None)
        ('50 [25, 75]', '-')
    """
    if estimate is None:
        return "-"
    mean, low, high = (f"{scale * number:{sign}{form}}" for number in estimate)
    return mean if math.isnan(estimate.low) else f"{mean} [{low}, {high}]"


def flags_section(flags: Sequence[Flag]) -> list[str]:
    """The section of flags, if there are any."""
    return ["## Flags", "\n".join(f"- {line}" for line in grouped(flags))] if flags else []


def labels(comparison: Comparison[Any, Any]) -> dict[str, str]:
    """Name of each variant, with the number of its seeds where that differs between variants."""
    if len(comparison.seed_counts) == 1:
        return comparison.names
    counts = {variant: plural(len(own), "seed") for variant, own in comparison.runs.items()}
    return {variant: f"{name} ({counts[variant]})" for variant, name in comparison.names.items()}


def table_of(
    comparison: Comparison[Any, Any],
    corner: str,
    rows: Sequence[tuple[str, Any]],
    text: Callable[[str, Any], str],
) -> str:
    """A table with a column for each variant; ``text`` gets the variant and the row of a cell."""
    return markdown_table(
        [corner, *labels(comparison).values()],
        [[name, *(text(variant, row) for variant in comparison.variants)] for name, row in rows],
    )


def seeds_note(comparison: Comparison[Any, Any], more: str = "", values: str = "values") -> str:
    """How means of ``values`` and their intervals are computed; ``more`` says more on intervals."""
    first, *others = comparison.seed_counts
    if first == 1 and not others:
        return "one seed, so no interval: this says nothing about other seeds"
    seeds = "the seeds there are" if others else plural(first, "seed")
    single = "one seed or " if first == 1 else ""
    return (
        f"mean over {seeds} [95 % Student t interval over seeds{more}; none for {single}{values} "
        "that are all equal]"
    )


def machine_note(comparison: Comparison[Any, Any]) -> str:
    """The conditions of a measured speed: threads, and runs at a time."""
    jobs = comparison.jobs
    shared = "measured while an unknown number of runs shared the machine"
    if jobs is not None:
        up_to = f"up to {plural(jobs, 'run')}"
        shared = f"{plural(jobs, 'job')}: measured while {up_to} shared the machine"
    return f"{plural(' or '.join(map(str, comparison.threads)), 'thread')} per run, {shared}"


def write_texts(folder: Path, name: str, markdown: str, plain: Mapping[str, Any]) -> list[Path]:
    """Write ``name.md`` and ``name.json``; return their paths."""
    paths = [folder / f"{name}.md", folder / f"{name}.json"]
    write_text(paths[0], markdown)
    write_text(paths[1], json.dumps(plain, indent=2) + "\n")
    return paths


def trained_label(what: str, is_trained: bool) -> str:
    """The label of a row, marked if training was like this.

    Example:
        >>> trained_label("50 blanks", True)
        '50 blanks (trained)'
    """
    return f"{what} (trained)" if is_trained else what
