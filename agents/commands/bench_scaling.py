"""``rims bench scaling``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agents.commands.bench import about_machine, measuring
from agents.commands.parsing.bench_options import (
    NOT_OF_AGENTS,
    folder_option,
    number_option,
    threads_option,
)
from agents.commands.parsing.errors import checking_input
from agents.commands.parsing.lists import Numbers
from agents.commands.parsing.options import (
    GroupedCommand,
    config_options,
    make_config,
    plain_option,
    require_effect,
    typed_of,
)

if TYPE_CHECKING:
    from agents.throughput.scaling import Measured, Plan, Results, Row


@click.command(cls=GroupedCommand)
@plain_option(
    "--processes",
    type=Numbers(most=1024),
    default="1,2",
    metavar="N,...",
    help="Numbers of processes, one after the other.",
)
@plain_option("--core", metavar="NAME", default="rim_lstm", help="Core, as for 'rims train'.")
@number_option("--updates", 20, "Updates timed per run.", high=10**4)
@number_option("--rounds", 3, "Runs of each row.", high=10**4)
@threads_option(1, "CPU threads of torch per process.")
@folder_option("scaling", "bench-scaling")
@config_options(*NOT_OF_AGENTS)
def scaling(processes: tuple[int, ...], updates: int, rounds: int, out: Path, **given: Any) -> None:
    """Time training with several processes that torchrun starts.

    Each number of processes trains with the environments of one process, and with as many for each.
    Without --suite and --env the task is that of suite doorkey. scaling.json and scaling.md are
    complete after every run.
    """
    from agents.learning.session import require_divisible
    from agents.model.footprint import require_fits
    from agents.model.trainable import require_trainable
    from agents.throughput.scaling import Plan

    threads = given.pop("threads")
    if not given["suite"] and not given["env"]:
        given["suite"] = "doorkey"
    config = replace(make_config(given), threads=threads)
    require_effect([config], typed_of(given), f"--core is {config.core}")
    with checking_input():
        plan = Plan(config=config, processes=processes, updates=updates, rounds=rounds)
        for row in plan.rows:
            own = replace(config, num_envs=row.num_envs)
            require_divisible(own, row.processes)
            require_fits(own)
        require_trainable(config)
    with measuring(out):
        report = _measure(plan, out)
    click.echo(report, nl=False)


def _measure(plan: Plan, out: Path) -> str:
    from agents.model.policy import RecurrentActorCritic, count_parameters, reads_mission
    from agents.throughput.scaling import ScalingError, measure, to_json, to_markdown
    from envs import make_vector_env
    from lab.disk.output import write_text

    config = plan.config
    with make_vector_env(config.task, 1, 0, config.backend) as env:
        policy = RecurrentActorCritic(
            config, env.actions, read_mission=reads_mission(config), view=env.view
        )
    parameters, machine = count_parameters(policy), about_machine(config.threads)

    def write(row: Row, measured: Measured, results: Results) -> None:
        what = f"{row.processes} processes, {row.num_envs} environments"
        click.echo(f"{what}: {measured.steps_per_second:,.0f} steps/s", err=True)
        write_text(out / "scaling.json", to_json(plan, results, machine, parameters))
        write_text(out / "scaling.md", to_markdown(plan, results, machine, parameters))

    try:
        return to_markdown(plan, measure(plan, write), machine, parameters)
    except ScalingError as error:
        raise click.ClickException(str(error)) from None
