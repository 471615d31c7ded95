"""``rims bench``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from agents.commands import bench_options
from agents.commands.options import EXIT_INTERRUPTED, checking_input


@click.group(invoke_without_command=True)
@click.pass_context
def bench(context: click.Context) -> None:
    """Measure speed and memory."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@bench.command()
@bench_options.cells_options
def cells(out: Path, resume: bool, **given: Any) -> None:
    """Time RIM layers against nn.LSTM and nn.GRU.

    Both layers of a pair have the same input and hidden size and run alternately in one process,
    inference and training, over a grid of layer sizes, batches and sequence lengths. For large
    cases peak memory is measured too. cells.json and cells.md are complete after every case, so
    that the command can be stopped; the same command goes on.
    """
    import torch

    from agents.run_folder import lock_folder, require_writable
    from rims.bench.cases import Settings, Size
    from rims.bench.run import bench_cells

    given = bench_options.apply_quick(given)
    given["sizes"] = tuple(Size(*size) for size in given["sizes"])
    given["threads"] = given["threads"] or torch.get_num_threads()
    with checking_input():
        settings = Settings(**given)
        require_writable(out)
        lock = lock_folder(out)
    command = shlex.join(("rims", *sys.argv[1:]))
    try:
        report = bench_cells(
            settings, out, command, resume=resume, say=lambda line: click.echo(line, err=True)
        )
    except KeyboardInterrupt:
        click.echo(f"Interrupted; the same command goes on from what is in {out}.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except FloatingPointError as error:
        raise click.ClickException(str(error)) from None
    finally:
        lock.release()
    click.echo(report, nl=False)


@bench.command("first-call")
@bench_options.THREADS
def first_call(threads: int | None) -> None:
    """Time the first calls of a layer, compilation of its kernels included.

    In a fresh process with nothing compiled before, and in another after it. Takes about a quarter
    of a minute.
    """
    import torch

    from rims.bench.first_call import measure_first_calls, to_markdown

    try:
        runs = measure_first_calls(threads or torch.get_num_threads())
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
    click.echo(to_markdown(runs), nl=False)
