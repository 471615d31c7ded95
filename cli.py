"""The command ``rims``. Its commands are in :mod:`agents.commands`, a file each.

Those of ``rims experiment`` are in :mod:`experiments.commands`.
"""

from __future__ import annotations

import sys
from contextlib import suppress

import click

from agents.commands.bench import bench
from agents.commands.bench_scaling import scaling
from agents.commands.compare import compare
from agents.commands.evaluate import evaluate
from agents.commands.parsing.errors import (
    EXIT_USER_ERROR,
    OUT_OF_MEMORY,
    checking_input,
    os_trouble,
    plain_line,
)
from agents.commands.plot import plot
from agents.commands.record import record
from agents.commands.resume import resume
from agents.commands.suites import suites
from agents.commands.sweep import sweep
from agents.commands.train import train
from agents.commands.warmup import warmup
from agents.commands.watch import watch
from experiments.commands.experiment import experiment
from lab.running.memory import is_out_of_memory
from lab.running.ranks import speaks
from lab.running.signals import exit_code, raise_when_stopped
from lab.running.surroundings import prepare, require_room_for_torch, require_working_directory

#: Commands that do without torch.
WITHOUT_TORCH = ("suites", "watch", "plot")


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
    with checking_input():
        require_working_directory()
        if context.invoked_subcommand not in (None, *WITHOUT_TORCH):
            require_room_for_torch()


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
    warmup,
):
    rims.add_command(command)
bench.add_command(scaling)


def main() -> None:
    """Entry point: errors of the user are one line on standard error, exit code 2."""
    prepare()
    raise_when_stopped()
    code = _run()
    if code:  # here, where what an error still held is let go
        sys.exit(code)


def _run() -> int:
    """The command that was typed; its exit code."""
    try:
        rims.main(standalone_mode=False)
    except click.ClickException as error:
        if speaks() or error.exit_code != EXIT_USER_ERROR:
            _say(f"Error: {plain_line(error.format_message())}")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        _say("Interrupted.")
        return exit_code(error.__cause__ or error)
    except (OSError, MemoryError, RuntimeError, ImportError, SystemError) as error:
        if is_out_of_memory(error):
            _say(f"Error: {OUT_OF_MEMORY}")
        elif isinstance(error, OSError):  # such as a full disk
            _say(f"Error: {plain_line(os_trouble(error))}")
        else:
            raise  # a fault of ours, of which the traceback tells most
        return 1
    return 0


def _say(line: str) -> None:
    """On standard error, where somebody may be listening."""
    with suppress(OSError):
        click.echo(line, err=True)


if __name__ == "__main__":
    main()
