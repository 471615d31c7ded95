"""The report of a comparison: tables as Markdown, everything as JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from experiments.experiment import Published, Row
from experiments.judging.comparison import Comparison
from experiments.judging.figures import write_figures
from lab.reporting.statistics import Estimate
from lab.reporting.tables import (
    estimate_text,
    flags_section,
    labels,
    machine_note,
    markdown_table,
    seeds_note,
    write_texts,
)


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``results.md``, ``results.json`` and the figures; return their paths."""
    texts = write_texts(folder, "results", to_markdown(comparison), to_dict(comparison))
    return [*texts, *write_figures(comparison, folder)]


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain values for JSON; an interval that cannot be given is null. Shares lie in [0, 1]."""
    return {
        "task": comparison.task.name,
        "command": comparison.command,
        "flags": [flag._asdict() for flag in comparison.flags],
        "seeds": list(comparison.seeds),
        "jobs": comparison.jobs,
        "interval": "95 % Student t over seeds; null: one seed, or seeds that are equal",
        "settings": comparison.settings,
        "notes": list(comparison.experiment.notes),
        "rows": [
            {"key": row.key, "label": row.label, "unit": row.unit, "better": row.better}
            for row in comparison.rows
        ],
        "models": {model: _model_dict(comparison, model) for model in comparison.variants},
        "differences": _differences_dict(comparison),
        "published": {
            model: {key: number._asdict() for key, number in numbers.items()}
            for model, numbers in comparison.published.items()
        },
    }


def _model_dict(comparison: Comparison, model: str) -> dict[str, Any]:
    runs = comparison.runs[model]
    results = {}
    for row in comparison.rows:
        estimate = comparison.estimate(model, row)
        if estimate is not None:
            values = comparison.values(model, row)
            results[row.key] = {**estimate.to_dict(), "per_seed": values}
    return {
        "seeds": list(comparison.seeds_of(model)),
        "parameters": runs[0].results.parameters,
        "sizes": comparison.sizes(model),
        "training_seconds": [run.results.seconds for run in runs],
        "training_steps": [run.results.steps for run in runs],
        "judged_epochs": [run.results.judged_epoch for run in runs],
        "data": [run.results.data for run in runs],
        "results": results,
    }


def _differences_dict(comparison: Comparison) -> dict[str, Any]:
    """Paired differences; shares lie in [-1, 1]."""
    base, *others = comparison.variants
    models: dict[str, dict[str, Any]] = {model: {} for model in others}
    for model, own in models.items():
        for row in comparison.main_rows:
            found = comparison.differences(model, row)
            if found is not None:
                own[row.key] = {
                    **found.estimate.to_dict(),
                    "seeds": list(found.seeds),
                    "per_seed": list(found.values),
                }
    return {
        "baseline": base,
        "interval": "95 % Student t of the differences of the seeds that both models have",
        "models": models,
    }


def to_markdown(comparison: Comparison) -> str:
    """The tables, with what is needed to read them."""
    notes = [*comparison.experiment.notes, f"Results: {seeds_note(comparison)}."]
    blocks = [
        f"# {comparison.task.name}: {', '.join(comparison.variants)}",
        comparison.task.summary,
        "\n".join(f"- {note}" for note in notes),
        *flags_section(comparison.flags),
        "## Results",
        _results(comparison),
        *_differences(comparison),
        f"## {comparison.task.compared.many.capitalize()}",
        "Time of training steps, without making or reading data and without evaluation, mean over "
        f"seeds, {machine_note(comparison)}.",
        _models(comparison),
        "## Settings",
        _settings(comparison),
    ]
    if comparison.command:
        blocks += [f"Made by `{comparison.command}`."]
    return "\n\n".join(blocks) + "\n"


def _results(comparison: Comparison) -> str:
    names, published = labels(comparison), comparison.published
    heads = [""]
    lines = [[row.label + (", %" if row.unit == "%" else "")] for row in comparison.rows]
    for model in dict.fromkeys((*names, *published)):
        if model in names:
            heads.append(names[model])
            for line, row in zip(lines, comparison.rows, strict=True):
                line.append(_text(comparison.estimate(model, row), row))
        if model in published:
            heads.append("published" if model in names else f"{model}, published")
            for line, row in zip(lines, comparison.rows, strict=True):
                line.append(_published(published[model].get(row.key), row))
    return markdown_table(heads, lines)


def _differences(comparison: Comparison) -> list[str]:
    """The section of paired differences, if there are two models."""
    base, *others = comparison.variants
    if not others:
        return []
    what = (
        f"Each {comparison.task.compared.one} minus {base}, seed by seed: both have the same data "
        "there, so that these add no spread. Mean over the seeds that both have [95 % Student t "
        "interval of the differences]; shares in percentage points."
    )
    lines = []
    for row in comparison.main_rows:
        cells = [_difference(comparison, model, row) for model in others]
        lines.append([f"{row.label} ({row.better} is better)", *cells])
    heads = ["", *(f"{model} - {base}" for model in others)]
    return ["## Differences", what, markdown_table(heads, lines)]


def _difference(comparison: Comparison, model: str, row: Row) -> str:
    found = comparison.differences(model, row)
    if found is None:
        return "-"
    text = _text(found.estimate, row, sign="+")
    return f"{text}, no interval" if math.isnan(found.estimate.low) else text


def _text(estimate: Estimate | None, row: Row, sign: str = "") -> str:
    if row.unit == "%":
        return estimate_text(estimate, ".1f", scale=100.0, sign=sign)
    return estimate_text(estimate, ".4g", sign=sign)


def _published(number: Published | None, row: Row) -> str:
    if number is None:
        return "-"
    form = ".1f" if row.unit == "%" else ".4g"
    deviation = "" if number.deviation is None else f" ± {number.deviation:{form}}"
    return f"{number.mean:{form}}{deviation}"


def _models(comparison: Comparison) -> str:
    lines = []
    for model, runs in comparison.runs.items():
        seconds = sum(run.results.seconds for run in runs)
        per_step = 1000 * seconds / max(sum(run.results.steps for run in runs), 1)
        judged = ", ".join(str(run.results.judged_epoch) for run in runs)
        sizes = comparison.sizes(model)
        counts = [f"{count:,}" for count in (*sizes.values(), runs[0].results.parameters)]
        times = [f"{seconds / len(runs):,.0f}", f"{per_step:,.1f}"]
        lines.append([model, *counts, *times, judged])
    heads = [comparison.task.compared.one, *sizes, "parameters", "training seconds", "ms per step"]
    heads += ["epoch judged, per seed"]
    return markdown_table(heads, lines)


def _settings(comparison: Comparison) -> str:
    settings = comparison.settings.items()
    return ", ".join(f"{name} {_plain(value)}" for name, value in settings) + "."


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else f"`{value}`"
