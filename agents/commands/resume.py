"""``rims resume``."""

from __future__ import annotations

from pathlib import Path

import click

from agents.commands.parsing import options
from agents.commands.parsing.errors import checking_input
from agents.commands.parsing.options import plain_option
from agents.commands.train import processes, run_to_end
from lab.disk.folder import require_run_folder
from lab.settings import Damaged

_COUNT = click.IntRange(1, 2**40)


@click.command()
@options.RUN
@plain_option(
    "--total-steps",
    type=_COUNT,
    metavar="N",
    help="New total of environment steps.  [default: unchanged]",
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
    help="CPU threads of torch.  [default: unchanged]",
)
@plain_option("--device", metavar="NAME", help="Torch device of the policy.  [default: unchanged]")
def resume(
    run: Path,
    total_steps: int | None,
    fallback: bool,
    threads: int | None,
    device: str | None,
) -> None:
    """Resume a run that was interrupted or killed.

    RUN is the run's folder, which holds all its settings. On the same machine the run finishes
    bit-identical to a run without the interruption, apart from measured times.

    A complete run is left as it is; with more --total-steps it continues. Under torchrun, the
    number of processes may differ from before.
    """
    with checking_input():
        require_run_folder(run)
    from agents.learning.resuming import RunComplete, device_of
    from agents.learning.resuming import resume as resume_run
    from lab.disk.store import DamagedCheckpoint

    with checking_input():
        try:
            device_now = device or device_of(run, fallback=fallback)
        except DamagedCheckpoint as error:
            raise _with_cure(error) from None
    with processes(device_now) as world:
        with checking_input():
            try:
                trainer, notices = resume_run(
                    run,
                    total_steps=total_steps,
                    threads=threads,
                    device=device,
                    fallback=fallback,
                    world=world,
                )
            except DamagedCheckpoint as error:
                raise _with_cure(error) from None
            except RunComplete as error:
                if total_steps is not None:
                    raise
                # Nothing is wrong: a launcher that starts the command again finds all done.
                if world.is_first:
                    click.echo(f"Notice: {error}", err=True)
                return
        for notice in notices if world.is_first else ():
            click.echo(f"Notice: {notice}.", err=True)
        run_to_end(trainer)


def _with_cure(error: ValueError) -> Damaged:
    return Damaged(f"{error} Option --fallback does so, and keeps it.")
