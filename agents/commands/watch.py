"""``rims watch``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from agents.commands.parsing import options
from agents.commands.parsing.errors import checking_input
from agents.commands.parsing.options import plain_option
from lab.running.signals import exit_code


@click.command()
@options.RUN
@plain_option(
    "--interval",
    type=options.FiniteRange(0.1, 3600),
    metavar="X",
    default=1.0,
    help="Seconds between two updates of the view.",
)
def watch(run: Path, interval: float) -> None:
    """Watch runs while they train.

    RUN is a run folder, or a folder with run folders below it, such as that of a comparison; then
    each run is a row. The command only reads. It ends when no run trains there any more, or with
    Ctrl-C. Without a terminal it prints a line for each run that has new numbers.
    """
    from agents.watching.live import check_watchable, watch_folder

    with checking_input():
        check_watchable(run)
    try:
        watch_folder(run, interval)
    except KeyboardInterrupt as interruption:
        sys.exit(exit_code(interruption))
