"""``rims bench scaling``: training steps per second with several processes started by torchrun."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from agents.config import PPOConfig
from lab.disk.folder import read_progress
from lab.reporting.tables import markdown_table
from lab.words import plural

#: Updates at the beginning that are not counted: compilation, first episodes.
WARM_UP = 3

_TEXT = """\
# Training with several processes

    {command}

{processor}, {cores} cores, {threads} of torch per process, device cpu; {system},
{versions}; commit {commit}, {date}.

Environment steps per second of training, all processes together, of {core} on {task}:
{rollout_steps_per_env} steps per environment and update, {minibatches} minibatches by {epochs}
epochs, {parameters:,} parameters. Each row is torchrun with so many processes on this machine, in
turn, {rounds} times; a number is the median over rounds of the median over {updates} updates after
the first {warm_up}. Bytes are those of gradients that each process hands to all-reduce in an
update: minibatches by epochs by 4 bytes a parameter."""


class Row(NamedTuple):
    """A number of processes with a total number of environments."""

    processes: int
    num_envs: int


class Measured(NamedTuple):
    """One run of a row: medians over its updates."""

    steps_per_second: float
    seconds_per_update: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The measurement to make.

    Attributes:
        config: settings; ``num_envs`` is of one process alone.
        processes: numbers of them.
        updates: timed per run.
        rounds: how often each row runs.
    """

    config: PPOConfig
    processes: tuple[int, ...]
    updates: int
    rounds: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """Each number of processes, with the environments of one and with as many for each."""
        envs = self.config.num_envs
        return tuple(dict.fromkeys(Row(p, n) for p in self.processes for n in (envs, p * envs)))


class ScalingError(RuntimeError):
    """A row could not be measured."""


Results = dict[Row, list[Measured]]


def measure(plan: Plan, on_run: Callable[[Row, Measured, Results], None]) -> Results:
    """Run every row in turn, ``plan.rounds`` times.

    Args:
        plan: the measurement.
        on_run: called with each row that was run, and all there is so far.

    Raises:
        ScalingError: in one line, if a run fails.
    """
    results: Results = {row: [] for row in plan.rows}
    for _ in range(plan.rounds):
        for row in plan.rows:
            measured = _run(plan, row)
            results[row].append(measured)
            on_run(row, measured, results)
    return results


def _run(plan: Plan, row: Row) -> Measured:
    steps = row.num_envs * plan.config.rollout_steps_per_env
    # Steps that only reset an environment do not count, so that this is an update or two more.
    total = steps * (WARM_UP + plan.updates)
    config = replace(plan.config, num_envs=row.num_envs, total_steps=total)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.toml"
        settings.write_text(tomli_w.dumps(dataclasses.asdict(config)))
        run = Path(folder) / "run"
        arguments = ("train", "--config", str(settings), "--run-dir", str(run))
        done = subprocess.run(
            [sys.executable, *_launcher(row.processes), "-m", "cli", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
            why = errors[0].removeprefix("Error: ") if errors else "its process failed"
            raise ScalingError(f"{row.processes} processes could not be measured: {why}")
        rates = read_progress(run)["env_steps_per_second"][WARM_UP:]
    median = statistics.median(rates)
    return Measured(median, steps / median)


def _launcher(processes: int) -> tuple[str, ...]:
    """Arguments that start several processes; none for one process."""
    if processes == 1:
        return ()
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))


def bytes_per_update(config: PPOConfig, parameters: int) -> int:
    """Bytes of gradients that a process hands to all-reduce in an update."""
    return 4 * parameters * config.minibatches * config.epochs


def to_markdown(plan: Plan, results: Results, machine: dict[str, Any], parameters: int) -> str:
    """The whole report; of rows that have run at least once."""
    done = {row: runs for row, runs in results.items() if runs}
    values = {
        **dataclasses.asdict(plan.config),
        **machine,
        "versions": ", ".join(f"{name} {v}" for name, v in machine["versions"].items()),
        "threads": plural(plan.config.threads, "thread"),
        "task": plan.config.task.id,
        "updates": plan.updates,
        "rounds": plan.rounds,
        "warm_up": WARM_UP,
        "parameters": parameters,
    }
    return "\n\n".join([_TEXT.format(**values), _table(plan, done, parameters)]) + "\n"


def _table(plan: Plan, done: Results, parameters: int) -> str:
    heads = ["processes", "environments", "steps/s", "to one process", "ms per update"]
    lines = []
    alone = _median(done, Row(1, plan.config.num_envs))
    for row in done:
        rate = _median(done, row)
        assert rate is not None
        ratio = "-" if alone is None else f"{rate / alone:.2f}"
        update = 1000 * statistics.median(run.seconds_per_update for run in done[row])
        exchanged = bytes_per_update(plan.config, parameters) / 1e6 if row.processes > 1 else 0.0
        cells = [f"{row.processes}", f"{row.num_envs}", f"{rate:,.0f}", ratio, f"{update:,.0f}"]
        lines.append([*cells, f"{exchanged:.1f}"])
    return markdown_table([*heads, "MB per update"], lines)


def _median(done: Results, row: Row) -> float | None:
    runs: Sequence[Measured] = done.get(row, ())
    return statistics.median(run.steps_per_second for run in runs) if runs else None


def to_json(plan: Plan, results: Results, machine: dict[str, Any], parameters: int) -> str:
    """The report as JSON, with every run."""
    content = {
        "machine": machine,
        "config": dataclasses.asdict(plan.config),
        "updates": plan.updates,
        "parameters": parameters,
        "bytes_per_update": bytes_per_update(plan.config, parameters),
        "rows": [
            {**row._asdict(), "runs": [run._asdict() for run in runs]}
            for row, runs in results.items()
        ],
    }
    return json.dumps(content, indent=1) + "\n"
