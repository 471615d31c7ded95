"""What a comparison shows: tables as Markdown, everything as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from agents.judging.comparison import Cell, Comparison
from agents.judging.curves import LEARNED, median_steps
from agents.judging.figures import series_labels, write_figures
from envs import Task, return_range
from lab.comparing import grouped
from lab.disk.folder import write_text
from lab.reporting.statistics import Estimate
from lab.reporting.tables import markdown_table


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``comparison.md``, ``comparison.json`` and the figures; return their paths."""
    markdown, plain = folder / "comparison.md", folder / "comparison.json"
    write_text(markdown, to_markdown(comparison))
    write_text(plain, json.dumps(to_dict(comparison), indent=2) + "\n")
    return [markdown, plain, *write_figures(comparison, folder)]


def improvements(comparison: Comparison) -> dict[tuple[str, str], Estimate]:
    """Probability of improvement of each core over each other one, on the tasks of :func:`pooled`.

    Each pair is drawn once and the other direction is its complement, so that the two agree.
    """
    found = {}
    for core, other in combinations(comparison.cores, 2):
        there = comparison.probability_of_improvement(core, other, pooled(comparison))
        found[core, other] = there
        found[other, core] = Estimate(1 - there.mean, 1 - there.high, 1 - there.low)
    return found


def pooled(comparison: Comparison) -> tuple[Task, ...]:
    """Tasks that aggregates are over: the unseen ones, or where there are none, all."""
    return comparison.unseen or comparison.tasks


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain values for JSON; an interval that cannot be given is null."""
    pairs = improvements(comparison)
    return {
        "suite": comparison.suite.name,
        "trained_on": comparison.suite.train.id,
        "chance": comparison.chance,
        "judged_by": comparison.judged_by,
        "flags": [flag._asdict() for flag in comparison.flags],
        "total_steps": _if_one(comparison.budgets),
        "seeds": list(comparison.seeds),
        "episodes_per_seed": comparison.episodes,
        "mode": comparison.mode,
        "training_backends": list(comparison.training_backends),
        "evaluation_backends": list(comparison.backends),
        "jobs": comparison.jobs,
        "threads": _if_one(comparison.threads),
        "env_steps_per_second_measured": _speed_note(comparison),
        "interval": "95 % Student t over seeds; success rates: at least Wilson over all episodes; "
        "null: one seed, or returns that are equal",
        "bootstrap_interval": "95 % percentile bootstrap over seeds, of each task on its own; "
        "null: one seed, or draws that are all equal; too narrow for few seeds",
        "aggregated_tasks": [task.id for task in pooled(comparison)],
        "learned_at_success_rate": LEARNED,
        "config": comparison.settings,
        "cores": {core: _core_dict(comparison, core) for core in comparison.cores},
        "probability_of_improvement": {
            core: {
                other: _named("probability", pairs[core, other])
                for other in comparison.cores
                if other != core
            }
            for core in comparison.cores
        },
    }


def _if_one(values: Sequence[int]) -> int | None:
    """What all runs share; flags say how they differ."""
    return values[0] if len(values) == 1 else None


def _core_dict(comparison: Comparison, core: str) -> dict[str, Any]:
    steps = comparison.steps_to_learn(core)
    by_success = comparison.by_success
    # Returns of several tasks have no common scale.
    together = comparison.interquartile_mean(core, pooled(comparison)) if by_success else None
    name = "success_iqm" if by_success else "return_iqm"
    return {
        "seeds": list(comparison.seeds_of(core)),
        **comparison.costs[core]._asdict(),
        "env_steps_per_second": comparison.env_steps_per_second[core],
        "aggregated_success_iqm": together and _named("iqm", together),
        "env_steps_to_learn": {
            "median": median_steps(steps),
            "reached": sum(s is not None for s in steps),
            "per_seed": steps,
        }
        if comparison.trained_by_success
        else None,
        "tasks": {
            task.id: {
                **_cell_dict(comparison.cells[core, task.id]),
                name: _named("iqm", comparison.interquartile_mean(core, [task])),
            }
            for task in comparison.tasks
        },
    }


def _cell_dict(cell: Cell) -> dict[str, Any]:
    return {
        "success_rate": cell.success_rate and cell.success_rate.to_dict(),
        "mean_return": cell.mean_return.to_dict(),
        "mean_length": cell.mean_length,
        "per_seed_success": cell.per_seed_success,
        "per_seed_return": cell.per_seed_return,
    }


def _named(name: str, estimate: Estimate) -> dict[str, float | None]:
    plain = estimate.to_dict()
    return {name: plain.pop("mean"), **plain}


def to_markdown(comparison: Comparison) -> str:
    """The tables, with what is needed to read them."""
    blocks = [
        *_head(comparison),
        *_flags(comparison),
        *_success(comparison),
        *_aggregates(comparison),
        *_improvements(comparison),
        f"## Return{_reward_note(comparison)}",
        _by_task(comparison, lambda cell: _text(cell.mean_return)),
        "## Steps per episode",
        _by_task(comparison, lambda cell: f"{cell.mean_length:.0f}"),
        *_efficiency(comparison),
        *_cores(comparison),
    ]
    return "\n\n".join(blocks) + "\n"


def _success(comparison: Comparison) -> list[str]:
    note = f"Here and under Return: {_interval_note(comparison)}."
    if all(cell.success_rate is None for cell in comparison.cells.values()):
        return [f"## Judged by return\n\n{_NO_SUCCESS} {note}"]
    return [
        "## Success rate",
        note if comparison.by_success else f"{_NO_SUCCESS} {note}",
        _by_task(comparison, lambda cell: _text(cell.success_rate) if cell.success_rate else "-"),
    ]


_NO_SUCCESS = (
    "Neither the environment of every task nor a rule of the suite says what success is, so runs "
    "are judged by their returns."
)


def _reward_note(comparison: Comparison) -> str:
    """How MiniGrid's own tasks reward; nothing is known of others."""
    usual = all(return_range(task.id) == (0.0, 1.0) for task in comparison.tasks)
    return " (1 - 0.9 steps / step limit on success, else 0)" if usual else ""


def _head(comparison: Comparison) -> list[str]:
    suite = comparison.suite
    chance = comparison.chance
    lines = [
        f"- Trained on {suite.train.id}, the training task of suite {suite.name}."
        + ("" if chance is None else f" Chance there: success rate {chance:.2f}."),
        f"- Budget: {' or '.join(f'{steps:,}' for steps in comparison.budgets)} environment steps "
        f"per run. Seeds: {', '.join(map(str, comparison.seeds))}.",
        f"- Evaluated on {comparison.episodes} episodes per seed and task, one level each, actions "
        f"by '{comparison.mode}'.",
        f"- Environments by {' and '.join(comparison.training_backends)} in training, by "
        f"{' and '.join(comparison.backends)} in evaluation.",
    ]
    return [f"# {suite.name}: {', '.join(_names(comparison))}", "\n".join(lines)]


def _names(comparison: Comparison) -> list[str]:
    return list(series_labels(comparison).values())


def _flags(comparison: Comparison) -> list[str]:
    if not comparison.flags:
        return []
    return ["## Flags", "\n".join(f"- {line}" for line in grouped(comparison.flags))]


def _interval_note(comparison: Comparison) -> str:
    counts = sorted({len(comparison.seeds_of(core)) for core in comparison.cores})
    if counts == [1]:
        return "one seed, so no interval: this says nothing about other seeds"
    seeds = f"{counts[0]} seeds" if len(counts) == 1 else "the seeds there are"
    return (
        f"mean over {seeds} [95 % Student t interval over seeds; for success rates at least as "
        f"wide as the Wilson interval of all episodes; none for {'one seed or ' * (counts[0] == 1)}"
        "returns that are all equal]"
    )


def _aggregates(comparison: Comparison) -> list[str]:
    which = _pooled_name(comparison)
    rows: list[tuple[str, Sequence[Task]]] = [
        (_task_name(comparison, task), (task,)) for task in comparison.tasks
    ]
    together = ""
    if comparison.by_success:  # returns of several tasks have no common scale
        rows.append((f"**{which}**", pooled(comparison)))
        together = f"; last row: of those on {which} together"
    return [
        f"## Interquartile mean of the {comparison.judged_by}",
        f"Mean of the middle half of the seeds' {comparison.judged_by}s{together} "
        "[95 % bootstrap interval, seeds drawn anew for each task; none for one seed or "
        "seeds that are all equal]. Over few seeds a bootstrap interval is too narrow; Student's, "
        "above, is the careful one.",
        markdown_table(
            ["task", *_names(comparison)],
            [
                [name, *(_text(comparison.interquartile_mean(c, own)) for c in comparison.cores)]
                for name, own in rows
            ],
        ),
    ]


def _improvements(comparison: Comparison) -> list[str]:
    if len(comparison.cores) < 2:
        return []
    pairs = improvements(comparison)
    rows = [
        [name, *("-" if c == core else _text(pairs[core, c]) for c in comparison.cores)]
        for core, name in series_labels(comparison).items()
    ]
    return [
        "## Probability of improvement",
        f"Probability that a run of the core in the row has a higher {comparison.judged_by} than "
        f"one of the core in the column, mean over {_pooled_name(comparison)}; ties count half, so "
        "0.50 is no difference [bootstrap interval as above; none where all draws give the same].",
        markdown_table(["core", *_names(comparison)], rows),
    ]


def _pooled_name(comparison: Comparison) -> str:
    return "unseen tasks" if comparison.unseen else "all tasks"


def _efficiency(comparison: Comparison) -> list[str]:
    if not comparison.trained_by_success:
        return []
    rows = []
    for core, name in series_labels(comparison).items():
        steps = comparison.steps_to_learn(core)
        median = median_steps(steps)
        reached = sum(s is not None for s in steps)
        shown = "-" if median is None else f"{median:,.0f}"
        rows.append([name, shown, f"{reached} of {len(steps)}"])
    return [
        "## Sample efficiency",
        "Environment steps until the success rate in training, over a window of the latest "
        f"episodes, is first {LEARNED} or more. A seed that never gets there counts as later than "
        "any in the median.",
        markdown_table(
            ["core", f"steps to {LEARNED}, median over seeds", "seeds that reached it"], rows
        ),
    ]


def _cores(comparison: Comparison) -> list[str]:
    rows = []
    for core in comparison.cores:
        rate = comparison.env_steps_per_second[core]
        rows.append([core, *map(_count, comparison.costs[core]), f"{rate:,.0f}"])
    heads = (
        "core",
        "hidden size",
        "parameters of the core",
        "of the agent",
        "multiply-adds per step of the core",
        "of the agent",
        "training steps/s",
    )
    return [
        "## Cores",
        f"Training speed: median over updates and seeds, {_speed_note(comparison)}.",
        markdown_table(heads, rows),
    ]


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _speed_note(comparison: Comparison) -> str:
    """What a speed depends on besides the core."""
    jobs, threads = comparison.jobs, comparison.threads
    shared = (
        "measured while an unknown number of runs shared the machine"
        if jobs is None
        else f"{jobs} job{'s' * (jobs > 1)}: measured while up to {jobs} "
        f"run{'s' * (jobs > 1)} shared the machine"
    )
    used = " or ".join(map(str, threads))
    return f"{used} thread{'s' * (threads != (1,))} per run, {shared}"


def _by_task(comparison: Comparison, show: Callable[[Cell], str]) -> str:
    return markdown_table(
        ["task", *_names(comparison)],
        [
            [
                _task_name(comparison, task),
                *(show(comparison.cells[core, task.id]) for core in comparison.cores),
            ]
            for task in comparison.tasks
        ],
    )


def _task_name(comparison: Comparison, task: Task) -> str:
    return task.name + (" (trained)" if task == comparison.suite.train else "")


def _text(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.mean:.2f}"
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
