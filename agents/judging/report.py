"""The report of a comparison: tables as Markdown, everything as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

from agents.judging.comparison import Comparison, Measure, Row
from agents.judging.curves import LEARNED, median_steps
from agents.judging.figures import write_figures
from envs import Task
from lab.reporting.statistics import Estimate
from lab.reporting.tables import (
    estimate_text,
    flags_section,
    labels,
    machine_note,
    markdown_table,
    seeds_note,
    table_of,
    trained_label,
    write_texts,
)

#: How MiniGrid's own tasks reward.
_USUAL_REWARD = " (1 - 0.9 steps / step limit on success, else 0)"


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``comparison.md``, ``comparison.json`` and the figures; return their paths."""
    texts = write_texts(folder, "comparison", to_markdown(comparison), to_dict(comparison))
    return [*texts, *write_figures(comparison, folder)]


def improvements(comparison: Comparison) -> dict[tuple[str, str], Estimate]:
    """Probability of improvement of each core over each other one, on the pooled tasks.

    Each pair is drawn once and the other direction is its complement, so that the two agree.
    """
    found = {}
    for core, other in combinations(comparison.variants, 2):
        there = comparison.probability_of_improvement(core, other, comparison.pooled)
        found[core, other] = there
        found[other, core] = Estimate(1 - there.mean, 1 - there.high, 1 - there.low)
    return found


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain values for JSON; an interval that cannot be given is null."""
    pairs = improvements(comparison)
    return {
        "suite": comparison.suite.name,
        "trained_on": comparison.suite.train.id,
        "chance": comparison.suite.chance,
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
        "env_steps_per_second_measured": machine_note(comparison),
        "interval": "95 % Student t over seeds; success rates: at least Wilson over all episodes; "
        "null: one seed, or returns that are equal",
        "bootstrap_interval": "95 % percentile bootstrap over seeds, of each task on its own; "
        "null: one seed, or draws that are all equal; too narrow for few seeds",
        "aggregated_tasks": [task.id for task in comparison.pooled],
        "learned_at_success_rate": LEARNED,
        "config": comparison.settings,
        "cores": {core: _core_dict(comparison, core) for core in comparison.variants},
        "probability_of_improvement": {
            core: {
                other: _named("probability", pairs[core, other])
                for other in comparison.variants
                if other != core
            }
            for core in comparison.variants
        },
    }


def _if_one(values: Sequence[int]) -> int | None:
    """The value that all runs share; flags say how they differ."""
    return values[0] if len(values) == 1 else None


def _core_dict(comparison: Comparison, core: str) -> dict[str, Any]:
    steps = comparison.steps_to_learn(core)
    by_success = comparison.by_success
    # Returns of several tasks have no common scale.
    together = comparison.interquartile_mean(core, comparison.pooled) if by_success else None
    name = "success_iqm" if by_success else "return_iqm"
    return {
        "seeds": list(comparison.seeds_of(core)),
        **comparison.cost(core)._asdict(),
        "env_steps_per_second": comparison.env_steps_per_second(core),
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
                **_task_dict(comparison, core, task),
                name: _named("iqm", comparison.interquartile_mean(core, [task])),
            }
            for task in comparison.tasks
        },
    }


def _task_dict(comparison: Comparison, core: str, task: Task) -> dict[str, Any]:
    rows = {key: Row(task, key) for key in get_args(Measure)}
    found = {key: comparison.estimate(core, row) for key, row in rows.items()}
    plain: dict[str, Any] = {
        key: estimate and estimate.to_dict() for key, estimate in found.items()
    }
    return {
        **plain,
        "mean_length": plain["mean_length"]["mean"],
        "per_seed_success": comparison.values(core, rows["success_rate"]),
        "per_seed_return": comparison.values(core, rows["mean_return"]),
    }


def _named(name: str, estimate: Estimate) -> dict[str, float | None]:
    plain = estimate.to_dict()
    return {name: plain.pop("mean"), **plain}


def to_markdown(comparison: Comparison) -> str:
    """The tables, with what is needed to read them."""
    blocks = [
        *_head(comparison),
        *flags_section(comparison.flags),
        *_success(comparison),
        *_aggregates(comparison),
        *_improvements(comparison),
        f"## Return{_USUAL_REWARD if comparison.usual_returns(comparison.tasks) else ''}",
        _by_task(comparison, "mean_return"),
        "## Steps per episode",
        _by_task(comparison, "mean_length"),
        *_efficiency(comparison),
        *_cores(comparison),
    ]
    return "\n\n".join(blocks) + "\n"


def _head(comparison: Comparison) -> list[str]:
    suite = comparison.suite
    chance = "" if suite.chance is None else f" Chance there: success rate {suite.chance:.2f}."
    lines = [
        f"- Trained on {suite.train.id}, the training task of suite {suite.name}.{chance}",
        f"- Budget: {' or '.join(f'{steps:,}' for steps in comparison.budgets)} environment steps "
        f"per run. Seeds: {', '.join(map(str, comparison.seeds))}.",
        f"- Evaluated on {comparison.episodes} episodes per seed and task, one level each, actions "
        f"by '{comparison.mode}'.",
        f"- Environments by {' and '.join(comparison.training_backends)} in training, by "
        f"{' and '.join(comparison.backends)} in evaluation.",
    ]
    return [f"# {suite.name}: {', '.join(labels(comparison).values())}", "\n".join(lines)]


def _success(comparison: Comparison) -> list[str]:
    wilson = "; for success rates at least as wide as the Wilson interval of all episodes"
    note = f"Here and under Return: {seeds_note(comparison, wilson, 'returns')}."
    if not comparison.by_success:
        note = (
            "Neither the environment of every task nor a rule of the suite says what success is, "
            f"so runs are judged by their returns. {note}"
        )
    if not any(map(comparison.has_success, comparison.tasks)):
        return ["## Judged by return", note]
    return ["## Success rate", note, _by_task(comparison, "success_rate")]


def _aggregates(comparison: Comparison) -> list[str]:
    which = _pooled_name(comparison)
    rows: list[tuple[str, Sequence[Task]]] = [
        (_task_name(comparison, task), (task,)) for task in comparison.tasks
    ]
    together = ""
    if comparison.by_success:  # returns of several tasks have no common scale
        rows.append((f"**{which}**", comparison.pooled))
        together = f"; last row: of those on {which} together"
    return [
        f"## Interquartile mean of the {comparison.judged_by}",
        f"Mean of the middle half of the seeds' {comparison.judged_by}s{together} "
        "[95 % bootstrap interval, seeds drawn anew for each task; none for one seed or "
        "seeds that are all equal]. Over few seeds a bootstrap interval is too narrow; Student's, "
        "above, is the careful one.",
        table_of(
            comparison,
            "task",
            rows,
            lambda core, tasks: estimate_text(comparison.interquartile_mean(core, tasks)),
        ),
    ]


def _improvements(comparison: Comparison) -> list[str]:
    if len(comparison.variants) < 2:
        return []
    pairs = improvements(comparison)
    rows = [(name, core) for core, name in labels(comparison).items()]
    return [
        "## Probability of improvement",
        f"Probability that a run of the core in the row has a higher {comparison.judged_by} than "
        f"one of the core in the column, mean over {_pooled_name(comparison)}; ties count half, so "
        "0.50 is no difference [bootstrap interval as above; none where all draws give the same].",
        table_of(comparison, "core", rows, lambda c, core: estimate_text(pairs.get((core, c)))),
    ]


def _pooled_name(comparison: Comparison) -> str:
    return "unseen tasks" if comparison.unseen else "all tasks"


def _efficiency(comparison: Comparison) -> list[str]:
    if not comparison.trained_by_success:
        return []
    rows = []
    for core, name in labels(comparison).items():
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
    for core in comparison.variants:
        counts = ["unknown" if n is None else f"{n:,}" for n in comparison.cost(core)]
        rows.append([core, *counts, f"{comparison.env_steps_per_second(core):,.0f}"])
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
        f"Training speed: median over updates and seeds, {machine_note(comparison)}.",
        markdown_table(heads, rows),
    ]


def _by_task(comparison: Comparison, key: Measure) -> str:
    def text(core: str, row: Row) -> str:
        estimate = comparison.estimate(core, row)
        if estimate is not None and key == "mean_length":
            return f"{estimate.mean:.0f}"
        return estimate_text(estimate)

    rows = [(_task_name(comparison, task), Row(task, key)) for task in comparison.tasks]
    return table_of(comparison, "task", rows, text)


def _task_name(comparison: Comparison, task: Task) -> str:
    return trained_label(task.name, task == comparison.suite.train)
