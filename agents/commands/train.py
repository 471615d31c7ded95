"""``rims train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from agents.commands import options
from agents.commands.options import EXIT_INTERRUPTED, GroupedCommand, checking_input, make_config
from agents.config import folder_name


@click.command(cls=GroupedCommand)
@options.config_options()
@options.RUN_DIR
@options.CONFIG
def train(run_dir: Path | None, config: Path | None, **given: Any) -> None:
    """Train an agent with PPO.

    The run folder receives config.toml, progress.csv, TensorBoard events and checkpoint.pt.
    Ctrl-C stops and saves the agent; an interrupted run cannot be continued yet.
    """
    settings = make_config(given, config)
    default = f"{settings.task.name}-{folder_name(settings.core)}-{settings.seed}"
    folder = run_dir or Path("runs") / default
    from agents.display import TrainingDisplay
    from agents.train import Trainer, TrainingError

    with checking_input():
        trainer = Trainer(settings, folder)
    name = f"{settings.core} on {settings.task.name} ({trainer.backend}), seed {settings.seed}"
    try:
        with TrainingDisplay(f"{name}: {folder}", settings.total_steps) as display:
            trainer.run(display.update)
    except KeyboardInterrupt:
        end = f"the agent is saved in {folder}" if trainer.saved else "there was nothing to save"
        click.echo(f"Interrupted; {end}.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except TrainingError as error:
        end = f"The last checkpoint is in {folder}" if trainer.saved else "No checkpoint was saved"
        raise click.ClickException(f"{error} {end}.") from None
    click.echo(f"Trained for {trainer.env_steps} steps. Run folder: {folder}")
