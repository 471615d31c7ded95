"""``rims suites``."""

from __future__ import annotations

import json

import click

from agents.commands.parsing import options
from agents.commands.parsing.errors import flag
from envs import SUITES


@click.command()
@options.JSON
def suites(as_json: bool) -> None:
    """List the suites, their tasks, chance levels and presets.

    A suite of your own is a TOML file, given as --suite FILE.toml wherever a suite is asked for.
    """
    if as_json:
        table = {
            s.name: {
                "train": s.train.id,
                "unseen": [t.id for t in s.unseen],
                "chance": s.chance,
                "preset": dict(s.preset),
            }
            for s in SUITES.values()
        }
        click.echo(json.dumps(table, indent=2))
        return
    for suite in SUITES.values():
        click.echo(f"{suite.name}: {suite.description}")
        click.echo(f"  train   {suite.train.id}")
        for task in suite.unseen:
            click.echo(f"  unseen  {task.id}")
        if suite.chance is not None:
            click.echo(f"  chance  {suite.chance} on the training task")
        for name, value in suite.preset.items():
            click.echo(f"  preset  {flag(name)} {value}")
