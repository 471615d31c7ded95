"""``rims train``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agents.commands.parsing import options
from agents.commands.parsing.errors import checking_input
from agents.commands.parsing.options import GroupedCommand, make_config
from lab.cores import folder_name
from lab.running.signals import exit_code

if TYPE_CHECKING:
    from agents.learning.train import Trainer
    from lab.running.world import World


@click.command(cls=GroupedCommand)
@options.config_options()
@options.RUN_DIR
@options.CONFIG
def train(run_dir: Path | None, config: Path | None, **given: Any) -> None:
    """Train an agent with PPO.

    The run folder receives config.toml, progress.csv, TensorBoard events and checkpoints. Ctrl-C
    finishes the update, saves and stops; 'rims resume' continues and ends as the run would have
    ended.

    Several processes train one agent together, each with its part of the environments:
    torchrun --nproc-per-node 2 -m cli train ...
    """
    settings = make_config(given, config)
    options.require_effect([settings], options.typed_of(given), f"--core is {settings.core}")
    default = f"{settings.task.name}-{folder_name(settings.core)}-{settings.seed}"
    folder = run_dir or Path("runs") / default
    from agents.learning.train import Trainer

    with processes(settings.device) as world:
        with checking_input():
            trainer = Trainer(settings, folder, world)
        run_to_end(trainer)


@contextmanager
def processes(device: str) -> Iterator[World]:
    """The processes torchrun has started, if it has; what keeps them from training is one line."""
    from lab.running.devices import require_devices
    from lab.running.guards import RunStopped
    from lab.running.world import joined

    with checking_input():
        require_devices(device)
    try:
        with joined(device) as world:
            yield world
    except RunStopped as error:
        raise click.ClickException(str(error)) from None


def run_to_end(trainer: Trainer) -> None:
    """Train with a display, and say how it ended."""
    from agents.watching.display import TrainingDisplay
    from lab.running.guards import RunStopped

    settings, folder, first = trainer.config, trainer.folder, trainer.world.is_first
    name = f"{settings.core} on {settings.task.name} ({trainer.backend}), seed {settings.seed}"
    try:
        if first:
            options.say_if_crowded(settings.threads)
            with TrainingDisplay(f"{name}: {folder}", settings.total_steps) as display:
                trainer.run(display.update)
        else:
            trainer.run()
    except KeyboardInterrupt as interruption:
        if first:
            end = (
                f"the agent is saved; 'rims resume {folder}' goes on"
                if trainer.saved
                else "there was nothing to save"
            )
            with suppress(OSError):  # the terminal may be gone
                click.echo(f"Interrupted; {end}.", err=True)
        sys.exit(exit_code(interruption))
    except RunStopped as error:
        end = f"The last checkpoint is in {folder}" if trainer.saved else "No checkpoint was saved"
        raise click.ClickException(f"{error} {end}.") from None
    if first:
        click.echo(f"Trained for {trainer.progress.env_steps} steps. Run folder: {folder}")
