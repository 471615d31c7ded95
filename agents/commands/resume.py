"""``rims resume``."""

from __future__ import annotations

from pathlib import Path

import click

from agents.commands import options
from agents.commands.options import checking_input, plain_option
from agents.commands.train import run_to_end

_COUNT = click.IntRange(1, 2**40)


@click.command()
@options.RUN
@plain_option(
    "--total-steps",
    type=_COUNT,
    metavar="N",
    help="Train until so many environment steps.  [default: as the run was to]",
)
@plain_option(
    "--fallback",
    is_flag=True,
    help="If the last checkpoint is damaged, set it aside and go on from the one before.",
)
@plain_option(
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="CPU threads of torch.  [default: as before]",
)
@plain_option("--device", metavar="NAME", help="Torch device of the policy.  [default: as before]")
def resume(
    run: Path,
    total_steps: int | None,
    fallback: bool,
    threads: int | None,
    device: str | None,
) -> None:
    """Go on with a run that was interrupted or killed.

    RUN is its folder, which says all about it. On the same machine it ends with the weights and
    numbers with which it would have ended without the interruption, but for those of time.

    With more --total-steps, also a run that is complete goes on. With torchrun, the number of
    processes may be another one than before.
    """
    with checking_input():
        options.require_run(run)
    from agents.resuming import continued, read_run
    from agents.train import Trainer
    from agents.world import joined

    with checking_input():
        before = read_run(run, fallback=fallback)
        config = continued(run, before, total_steps=total_steps, threads=threads, device=device)
    with joined(config.device) as world:
        with checking_input():
            trainer = Trainer.resuming(run, config, before.checkpoint, world)
        for notice in before.notices if world.is_first else ():
            click.echo(f"Notice: {notice}.", err=True)
        run_to_end(trainer)
