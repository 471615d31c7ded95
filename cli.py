"""The command ``rims``. Its commands are in :mod:`agents.commands`, a file each.

Those of ``rims experiment`` are in :mod:`experiments.commands`.
"""

from __future__ import annotations

import sys

import click

from agents.commands.bench import bench
from agents.commands.bench_scaling import scaling
from agents.commands.compare import compare
from agents.commands.evaluate import evaluate
from agents.commands.options import EXIT_USER_ERROR, os_trouble, plain_line
from agents.commands.plot import plot
from agents.commands.record import record
from agents.commands.resume import resume
from agents.commands.suites import suites
from agents.commands.sweep import sweep
from agents.commands.train import train
from agents.commands.watch import watch
from agents.ranks import speaks
from agents.signals import exit_code, raise_when_stopped
from experiments.commands.experiment import experiment


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(package_name="rims-toolkit")
@click.pass_context
def rims(context: click.Context) -> None:
    """Modular recurrent networks on MiniGrid: train agents, watch, judge and compare them.

    \b
    rims train --suite doorkey --core rim_lstm --run-dir runs/first
    rims resume runs/first
    rims evaluate runs/first --suite doorkey
    rims compare --suite doorkey --cores rim_lstm,lstm --seeds 3 --run-root runs/cmp
    rims experiment sort-of-clevr --model cnn,nfm --seeds 3 --run-root runs/clevr
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    train,
    resume,
    watch,
    evaluate,
    compare,
    record,
    plot,
    suites,
    sweep,
    bench,
    experiment,
):
    rims.add_command(command)
bench.add_command(scaling)


def main() -> None:
    """Entry point: errors of the user are one line on standard error, exit code 2."""
    raise_when_stopped()
    try:
        rims.main(standalone_mode=False)
    except click.ClickException as error:
        if speaks() or error.exit_code != EXIT_USER_ERROR:
            click.echo(f"Error: {plain_line(error.format_message())}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # such as a full disk
        click.echo(f"Error: {plain_line(os_trouble(error))}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo("Interrupted.", err=True)
        sys.exit(exit_code(error.__cause__ or error))


if __name__ == "__main__":
    main()
