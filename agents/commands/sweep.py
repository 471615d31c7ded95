"""``rims sweep``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agents.commands.parsing import options
from agents.commands.parsing.errors import UserError, checking_input
from agents.commands.parsing.options import plain_option
from lab.running.signals import exit_code

if TYPE_CHECKING:
    from agents.sweep.definition import Sweep
    from agents.sweep.study import Study

_CONFIG = plain_option(
    "--config",
    "file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="NAME",
    help="TOML file of the sweep, as above.",
)
_OUT = plain_option(
    "--out",
    required=True,
    type=options.FOLDER,
    metavar="NAME",
    help="Folder of the sweep; a sweep that it already holds is continued.",
)


@click.command()
@_CONFIG
@_OUT
@options.JOBS
def sweep(file: Path, out: Path, jobs: int | None) -> None:
    """Search over hyperparameters with Optuna.

    Every trial is trained as by 'rims train', in its own folders. The file defines the search:

    \b
    [sweep]
    trials = 20
    sampler = "tpe"             # or "random", or "grid": every combination
    seeds = 2                   # runs per trial; its value is their mean
    objective = "success_rate"  # of training, over its last fifth; or "return", "unseen_..."
    \b
    [settings]                  # fixed: any setting of rims train
    suite = "doorkey"
    total_steps = 200_000
    \b
    [search]
    learning_rate = {low = 1e-4, high = 3e-3, log = true}
    epochs = {low = 2, high = 8}
    hidden_size = {choices = [64, 128]}
    core = {choices = ["rim_lstm", "lstm"]}

    With "unseen_success_rate" or "unseen_return" agents are evaluated on the suite's unseen tasks,
    with "episodes" (default 100) on each. "sampler_seed" (default 0) decides which settings are
    tried; with more than one job, so does the order in which trials end.

    The folder receives sweep.md, sweep.json, sweep.png and best.toml, from which 'rims train
    --config' trains the best settings. The command can be stopped; the same command continues, and
    one with more trials adds them. A failed trial is named and does not stop the others.
    """
    from agents.sweep.definition import read_sweep

    with checking_input():
        asked = read_sweep(file)
    if importlib.util.find_spec("optuna") is None:
        raise UserError("a sweep needs Optuna: pip install 'rims-toolkit[sweep]'")
    from agents.sweep.study import Study
    from lab.disk.folder import claim_folder, require_encodable
    from lab.running.processes import jobs_of

    with checking_input():
        Study.check(asked, out)
        require_encodable(out)
        lock = claim_folder(out)
    try:
        with checking_input():
            study = Study(asked, out)
        threads = asked.config(asked.first, seed=0).threads
        jobs = jobs_of(jobs, threads, asked.trials)
        options.say_if_crowded(jobs * threads)
        _run(asked, study, out, jobs)
    finally:
        lock.release()


def _run(asked: Sweep, study: Study, out: Path, jobs: int) -> None:
    from agents.sweep.display import SweepDisplay
    from agents.sweep.report import to_markdown, write_figure, write_tables
    from agents.sweep.study import Trial

    before = study.trials()
    if before:
        click.echo(f"{len(before)} of {asked.trials} trials are in {out}.", err=True)
    try:
        with SweepDisplay(asked, before) as display:

            def ended(trial: Trial) -> None:
                display.ended(trial)
                write_tables(asked, study.trials(), out)

            study.run(jobs, ended, display.update)
    except KeyboardInterrupt as interruption:
        click.echo(f"Interrupted; the same command goes on from what is in {out}.", err=True)
        sys.exit(exit_code(interruption))
    trials = study.trials()
    written = [*write_tables(asked, trials, out), write_figure(asked, trials, out)]
    click.echo(to_markdown(asked, trials, out), nl=False)
    click.echo("Written: " + ", ".join(str(path) for path in written), err=True)
    if trials[0].state == "failed":
        raise click.ClickException(f"every trial failed; the first: {trials[0].error}")
