"""``rims compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agents.commands import options
from agents.commands.options import GroupedCommand, checking_input, make_config
from agents.config import ActionMode
from envs import Suite, Task, get_suite

if TYPE_CHECKING:
    from agents.compare import Comparison, Run


@click.command(cls=GroupedCommand)
@options.SUITE_TO_COMPARE_ON
@options.CORES
@options.SEEDS
@options.RUN_ROOT
@options.TASKS
@options.EPISODES
@options.MODE
@options.JOBS
@options.JSON
@options.config_options("suite", "env", "core", "seed")
def compare(
    cores: tuple[str, ...],
    seeds: int,
    run_root: Path,
    tasks: tuple[str, ...] | None,
    episodes: int,
    mode: ActionMode,
    jobs: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Train cores over seeds and compare them.

    Every core is trained on the suite's training task and judged on all its tasks. Runs that are
    complete in RUN_ROOT are not trained again. Tables, JSON and figures are written
    there: comparison.md, comparison.json, learning_curves.png, tasks.png.
    """
    from agents import compare as comparing
    from agents.processes import usable_processors
    from agents.report import to_dict, to_markdown, write_report
    from agents.run_folder import lock_folder, require_writable

    config = make_config({**given, "core": cores[0]})
    with checking_input():
        suite = get_suite(config.suite)
        chosen = options.choose_tasks(suite, tasks)
        runs = comparing.plan(config, cores, range(seeds), run_root)
        require_writable(run_root)
        lock = lock_folder(run_root)
    jobs = min(jobs or usable_processors(), len(runs))
    try:
        comparison = _train_and_judge(runs, suite, chosen, episodes, mode, jobs)
    finally:
        lock.release()
    written = write_report(comparison, run_root)
    if as_json:
        click.echo(json.dumps(to_dict(comparison), indent=2))
    else:
        click.echo(to_markdown(comparison))
    click.echo("Written: " + ", ".join(str(path) for path in written), err=True)


def _train_and_judge(
    runs: list[Run], suite: Suite, tasks: list[Task], episodes: int, mode: ActionMode, jobs: int
) -> Comparison:
    from agents import compare as comparing
    from agents.display import RunsDisplay, show_progress

    with RunsDisplay() as display:
        failures = comparing.train_missing(runs, jobs, display.update)
    if failures:
        raise click.ClickException("some runs failed. " + " ".join(failures))
    with show_progress("evaluating", len(runs)) as advance:
        try:
            return comparing.judge(
                runs, suite, tasks, episodes=episodes, mode=mode, jobs=jobs, on_progress=advance
            )
        except comparing.JudgingError as error:
            raise click.ClickException(str(error)) from None
