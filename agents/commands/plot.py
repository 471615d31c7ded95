"""``rims plot``."""

from __future__ import annotations

from pathlib import Path

import click

from agents.commands.parsing.errors import checking_input
from agents.commands.parsing.lists import CommaSeparated
from agents.commands.parsing.options import FOLDER, plain_option

X_CHOICES = ("env_steps", "seconds", "update")


@click.command()
@click.argument("runs", type=FOLDER, nargs=-1, required=True, metavar="RUN...")
@plain_option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="NAME",
    help="The .png, .svg or .pdf to write.",
)
@plain_option(
    "--metrics",
    type=CommaSeparated(),
    metavar="NAMES",
    help="Columns of progress.csv, separated by commas; one panel each.  [default: success_rate, "
    "where it is known, and episode_return_mean]",
)
@plain_option("--x", type=click.Choice(X_CHOICES), default="env_steps", help="The x axis.")
def plot(runs: tuple[Path, ...], out: Path, metrics: tuple[str, ...] | None, x: str) -> None:
    """Plot learning curves of runs.

    RUN is a run folder, or a folder with run folders below it, such as that of a comparison.
    Training may still be under way. Runs that differ only in their seed become one line, their
    mean, with its 95 % bootstrap band.
    """
    from agents.watching.run_list import find_runs, read_run, with_progress
    from lab.disk.output import check_output
    from lab.words import plural

    with checking_input():
        found = with_progress([read_run(folder) for folder in find_runs(runs)], runs)
    from agents.watching.plots import (  # matplotlib takes a second
        ENDINGS,
        check_metrics,
        save_curves,
        shown_by_default,
    )

    with checking_input():
        check_output(out, ENDINGS)
        metrics = metrics or shown_by_default(found)
        check_metrics(found, metrics)
    groups = save_curves(found, metrics, x, out)
    click.echo(f"{plural(len(found), 'run')}, {plural(len(groups), 'line')} per panel: {out}")
