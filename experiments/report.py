"""What a comparison shows: tables as Markdown, everything as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from experiments.comparison import Comparison, Differences
from experiments.experiment import Published, Row
from experiments.figures import write_figures
from lab.comparing import grouped
from lab.disk.folder import write_text
from lab.reporting.statistics import Estimate, mean_over_seeds
from lab.reporting.tables import markdown_table


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``results.md``, ``results.json`` and the figures; return their paths."""
    markdown, plain = folder / "results.md", folder / "results.json"
    write_text(markdown, to_markdown(comparison))
    write_text(plain, json.dumps(to_dict(comparison), indent=2) + "\n")
    return [markdown, plain, *write_figures(comparison, folder)]


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
        "models": {model: _model_dict(comparison, model) for model in comparison.models},
        "differences": _differences_dict(comparison),
        "published": {
            model: {key: number._asdict() for key, number in numbers.items()}
            for model, numbers in comparison.experiment.published.items()
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
    models: dict[str, dict[str, Any]] = {model: {} for model in comparison.models[1:]}
    for model, own in models.items():
        for row in _main_rows(comparison):
            found = comparison.differences(model, row)
            if found is not None:
                own[row.key] = {
                    **found.estimate.to_dict(),
                    "seeds": list(found.seeds),
                    "per_seed": list(found.values),
                }
    return {
        "baseline": comparison.baseline,
        "interval": "95 % Student t of the differences of the seeds that both models have",
        "models": models,
    }


def _main_rows(comparison: Comparison) -> list[Row]:
    """Those that are also drawn."""
    return [row for row in comparison.rows if row.drawn]


def to_markdown(comparison: Comparison) -> str:
    """The tables, with what is needed to read them."""
    blocks = [
        f"# {comparison.task.name}: {', '.join(comparison.models)}",
        comparison.task.summary,
        "\n".join(f"- {note}" for note in (*comparison.experiment.notes, _seeds_note(comparison))),
        *_flags(comparison),
        "## Results",
        _results(comparison),
        *_differences(comparison),
        f"## {comparison.task.compared.many.capitalize()}",
        "Time of training steps, without making or reading data and without evaluation, mean over "
        f"seeds{_machine_note(comparison)}.",
        _models(comparison),
        "## Settings",
        _settings(comparison),
    ]
    if comparison.command:
        blocks += [f"Made by `{comparison.command}`."]
    return "\n\n".join(blocks) + "\n"


def _seeds_note(comparison: Comparison) -> str:
    counts = sorted({len(own) for own in comparison.runs.values()})
    if counts == [1]:
        return "One seed, so no interval: this says nothing about other seeds."
    seeds = f"{counts[0]} seeds" if len(counts) == 1 else "the seeds there are"
    return f"Mean over {seeds} [95 % Student t interval over seeds; none where all are equal]."


def _flags(comparison: Comparison) -> list[str]:
    if not comparison.flags:
        return []
    return ["## Flags", "\n".join(f"- {line}" for line in grouped(comparison.flags))]


def _results(comparison: Comparison) -> str:
    published = comparison.experiment.published
    heads = [""]
    for model in comparison.models:
        seeds = len(comparison.runs[model])
        known = model in published
        heads += [f"{model} ({seeds} seed{'s' * (seeds > 1)})", *["published"] * known]
    heads += [f"{model}, published" for model in published if model not in comparison.models]
    lines = []
    for row in comparison.rows:
        line = [row.label + (", %" if row.unit == "%" else "")]
        for model in comparison.models:
            line.append(_text(comparison.estimate(model, row), row))
            if model in published:
                line.append(_published(published[model].get(row.key), row))
        for model in published:
            if model not in comparison.models:
                line.append(_published(published[model].get(row.key), row))
        lines.append(line)
    return markdown_table(heads, lines)


def _differences(comparison: Comparison) -> list[str]:
    """The section of paired differences, if there are two models."""
    base, others = comparison.baseline, comparison.models[1:]
    if not others:
        return []
    what = (
        f"Each {comparison.task.compared.one} minus {base}, seed by seed: both have the same data "
        "there, so that these add no spread. Mean over the seeds that both have [95 % Student t "
        "interval of the differences]; shares in percentage points."
    )
    lines = []
    for row in _main_rows(comparison):
        cells = [_difference(comparison.differences(model, row), row) for model in others]
        lines.append([f"{row.label} ({row.better} is better)", *cells])
    heads = ["", *(f"{model} - {base}" for model in others)]
    return ["## Differences", what, markdown_table(heads, lines)]


def _difference(found: Differences | None, row: Row) -> str:
    if found is None:
        return "-"
    text = _text(found.estimate, row, sign="+")
    return f"{text}, no interval" if math.isnan(found.estimate.low) else text


def _text(estimate: Estimate | None, row: Row, sign: str = "") -> str:
    if estimate is None:
        return "-"
    scale, form = (100.0, ".1f") if row.unit == "%" else (1.0, ".4g")
    mean, low, high = (f"{scale * number:{sign}{form}}" for number in estimate)
    return mean if math.isnan(estimate.low) else f"{mean} [{low}, {high}]"


def _published(number: Published | None, row: Row) -> str:
    if number is None:
        return "-"
    form = ".1f" if row.unit == "%" else ".4g"
    deviation = "" if number.deviation is None else f" ± {number.deviation:{form}}"
    return f"{number.mean:{form}}{deviation}"


def _machine_note(comparison: Comparison) -> str:
    jobs, threads = comparison.jobs, comparison.settings.get("threads")
    used = "" if threads is None else f", {threads} thread{'s' * (threads > 1)} per run"
    if jobs is None:
        return f"{used}; how many runs shared the machine is unknown"
    return f"{used}; up to {jobs} run{'s' * (jobs > 1)} shared the machine"


def _models(comparison: Comparison) -> str:
    lines = []
    for model, runs in comparison.runs.items():
        seconds = mean_over_seeds([run.results.seconds for run in runs]).mean
        steps = sum(run.results.steps for run in runs)
        per_step = 1000 * sum(run.results.seconds for run in runs) / max(steps, 1)
        judged = ", ".join(str(run.results.judged_epoch) for run in runs)
        parameters = f"{runs[0].results.parameters:,}"
        sizes = comparison.sizes(model)
        own = [f"{size:,}" for size in sizes.values()]
        lines.append([model, *own, parameters, f"{seconds:,.0f}", f"{per_step:,.1f}", judged])
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
