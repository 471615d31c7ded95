"""``rims compare``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agents.commands.parsing import options
from agents.commands.parsing.errors import UserError, checking_input
from agents.commands.parsing.lists import Seeds
from agents.commands.parsing.options import GroupedCommand, make_config
from agents.config import ActionMode
from envs import get_suite
from lab.variants import base_of

if TYPE_CHECKING:
    from agents.judging.comparison import Comparison, Run
    from lab.comparing import Flag
    from lab.slurm.launcher import SlurmLauncher


SEEDS = options.plain_option(
    "--seeds",
    type=Seeds(),
    default="2",
    metavar="N",
    help="Runs per core, with seeds from 0; or a list of seeds such as 3,7 or 0-4.",
)
MATCH_PARAMS = options.plain_option(
    "--match-params",
    is_flag=True,
    help="Choose each core's hidden size so that it has as many parameters as the first core.",
)
REPORT_ONLY = options.plain_option(
    "--report-only",
    is_flag=True,
    help="Train nothing: compare the complete runs there are, and say which are missing.",
)
LAUNCHER = options.plain_option(
    "--launcher",
    type=click.Choice(("local", "slurm")),
    default="local",
    help="Train in processes of this machine, or as jobs of a Slurm cluster.",
)
SLURM = options.plain_option(
    "--slurm",
    "slurm_settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of each Slurm job, such as partition=gpu, time=120 (minutes until it is "
    "stopped and queued again) or mem_gb=4; repeatable.",
)


@click.command(cls=GroupedCommand)
@options.SUITE_TO_COMPARE_ON
@options.CORES
@SEEDS
@options.RUN_ROOT
@MATCH_PARAMS
@REPORT_ONLY
@options.TASKS
@options.EPISODES
@options.MODE
@options.JOBS
@LAUNCHER
@SLURM
@options.JSON
@options.config_options("suite", "env", "core", "seed")
def compare(
    cores: tuple[str, ...],
    seeds: tuple[int, ...],
    run_root: Path,
    match_params: bool,
    report_only: bool,
    tasks: tuple[str, ...] | None,
    episodes: int,
    mode: ActionMode,
    jobs: int | None,
    launcher: str,
    slurm_settings: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Train cores over seeds and compare them.

    Every core is trained on the suite's training task and judged on all its tasks. Runs that are
    complete in RUN_ROOT are not trained again. Tables, JSON and figures are written
    there: comparison.md, comparison.json, and learning_curves and tasks as .png and .svg.

    With --launcher slurm, each missing run is trained as its own job, at most --jobs at a time
    (default: all), while this command waits. Evaluation is done here, on the CPU. RUN_ROOT has to
    be on a file system that the cluster's machines share; RUN_ROOT/slurm receives scripts
    and logs. A job that is preempted or runs into its time limit saves, is queued again and goes
    on. Ctrl-C cancels the jobs; the same command continues their runs.

    If a run fails, the others are compared, the report names it and the exit code is 1.
    """
    from agents.judging import compare as comparing
    from agents.judging.report import to_dict, to_markdown, write_report
    from lab.running.devices import usable_device
    from lab.running.processes import jobs_of

    config = make_config({**given, "core": base_of(cores[0])})
    options.require_effect_of_cores(config, cores, options.typed_of(given))
    launch = _launcher(launcher, slurm_settings, run_root, report_only, config.threads)
    with checking_input():
        if not (launch or report_only):
            usable_device(config.device)
        suite = config.wrapped_suite(get_suite(config.suite))
        chosen = options.choose_tasks(suite, tasks)
        runs = comparing.plan(
            config,
            cores,
            seeds,
            run_root,
            tasks=chosen,
            match_params=match_params,
            as_found=report_only,
        )
    here = jobs_of(None if launch else jobs, config.threads, len(runs))
    jobs = min(jobs or len(runs), len(runs)) if launch else here
    if not (launch or report_only):
        with checking_input():
            comparing.require_memory(runs, jobs)
        options.say_if_crowded(jobs * config.threads)
    judge = partial(comparing.judge, runs, suite, chosen, episodes=episodes, mode=mode, jobs=here)
    with claimed(run_root, report_only):
        flags = [] if report_only else _train(runs, jobs, launch)
        comparison = _judge(partial(judge, on_cpu=launch is not None), runs, flags)
        written = write_report(comparison, run_root)
    text = json.dumps(to_dict(comparison), indent=2) if as_json else to_markdown(comparison)
    show_report(text, written, failed=comparison.failed)


def show_report(text: str, written: Sequence[Path], *, failed: bool) -> None:
    """Print a report and the files it was written to.

    Raises:
        ClickException: in one line, if some runs failed.
    """
    click.echo(text)
    click.echo("Written: " + ", ".join(map(str, written)), err=True)
    if failed:
        raise click.ClickException("some runs failed; the report's flags say which.")


@contextmanager
def claimed(run_root: Path, report_only: bool) -> Iterator[None]:
    """Keep other comparisons out of the folder, unless this one only reports."""
    from lab.disk.folder import claim_folder, require_encodable, require_writable

    if report_only and not run_root.is_dir():
        raise UserError(f"--run-root: folder {str(run_root)!r} does not exist.")
    with checking_input():
        require_encodable(run_root)
        lock = None if report_only else claim_folder(run_root)
        if report_only:
            require_writable(run_root)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _launcher(
    name: str, settings: tuple[str, ...], run_root: Path, report_only: bool, threads: int
) -> SlurmLauncher | None:
    """The launcher of jobs, unless processes of this machine train."""
    from lab.slurm.launcher import SlurmLauncher, read_settings

    if name == "local":
        if settings:
            raise UserError("--slurm is for jobs of a Slurm cluster; give --launcher slurm, too.")
        return None
    if report_only:
        raise UserError("--launcher slurm says where to train, and --report-only trains nothing.")
    with checking_input():
        given = {"cpus_per_task": threads, **read_settings(settings)}
        return SlurmLauncher(run_root / "slurm", given, partial(click.echo, err=True))


def _train(runs: list[Run], jobs: int, launch: SlurmLauncher | None) -> list[Flag]:
    from agents.watching.display import RunsDisplay
    from lab import comparing
    from lab.running.processes import run_all
    from lab.slurm.launcher import SubmissionError

    with RunsDisplay() as display:
        try:
            return comparing.train_missing(runs, jobs, display.update, launch or run_all)
        except SubmissionError as error:
            raise click.ClickException(str(error)) from None


def _judge(judge: Callable[..., Comparison], runs: list[Run], flags: list[Flag]) -> Comparison:
    from lab.comparing import NothingToCompare
    from lab.reporting.display import show_progress

    with show_progress("evaluating", len(runs)) as advance:
        try:
            return judge(on_progress=advance, flags=flags)
        except NothingToCompare as error:
            raise click.ClickException(str(error)) from None
