"""The command ``rims``: train, evaluate, compare, record. Nothing is computed here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import click

from agents.config import ActionMode, ConfigError, CoreName, PPOConfig, read_settings
from agents.options import CommaSeparated, GroupedCommand, config_options, flag
from envs import SUITES, Suite, Task, get_suite, get_task

# torch takes over a second to import, so the modules that need it are imported by the commands.

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
COUNT = click.IntRange(1, 10**6)
RUN = click.argument("run", type=FOLDER)
EPISODES = click.option(
    "--episodes", default=200, show_default=True, type=COUNT, help="Episodes per task."
)
SEED = click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**31 - 1),
    help="Decides levels and sampled actions.",
)
MODE = click.option(
    "--mode",
    type=click.Choice(["sample", "greedy"]),
    default="sample",
    show_default=True,
    help="Draw actions from the policy, or take the most probable.",
)


class UserError(click.ClickException):
    """A mistake in what was asked for: one line, exit code 2."""

    exit_code = EXIT_USER_ERROR


@contextmanager
def checking_input() -> Iterator[None]:
    """Turn a complaint about what the user gave into one line that names the option."""
    try:
        yield
    except ConfigError as error:
        raise UserError(f"{flag(error.field)} {error.rule}") from None
    except ValueError as error:
        raise UserError(str(error)) from None


def make_config(given: dict[str, Any], file: Path | None = None) -> PPOConfig:
    """The configuration: what was typed, else the file, else the suite's preset, else default."""
    source = click.get_current_context().get_parameter_source
    typed = {n: v for n, v in given.items() if source(n) != click.core.ParameterSource.DEFAULT}
    with checking_input():
        saved = read_settings(file) if file else {}
        named = typed if typed.get("suite") or typed.get("env") else saved
        preset = get_suite(named["suite"]).preset if named.get("suite") else {}
        if named is typed:  # a task that was typed replaces the file's, whichever way it was named
            saved = {n: v for n, v in saved.items() if n not in ("suite", "env")}
        return PPOConfig(**{**given, **preset, **saved, **typed})


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(package_name="rims-toolkit")
@click.pass_context
def rims(context: click.Context) -> None:
    """Modular recurrent networks on MiniGrid: train, evaluate, compare, record.

    \b
    rims train --suite doorkey --core rim_lstm --run-dir runs/first
    rims evaluate runs/first --suite doorkey
    rims compare --suite doorkey --cores rim_lstm,lstm --seeds 3 --run-root runs/cmp
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@rims.command(cls=GroupedCommand)
@config_options()
@click.option("--run-dir", type=FOLDER, help="Folder of the run.  [default: runs/TASK-CORE-SEED]")
@click.option("--config", type=FILE, help="Start from the config.toml of another run.")
def train(run_dir: Path | None, config: Path | None, **given: Any) -> None:
    """Train an agent with PPO.

    The run folder receives config.toml, progress.csv, TensorBoard events and checkpoint.pt.
    Ctrl-C stops and saves.
    """
    settings = make_config(given, config)
    folder = run_dir or Path("runs") / f"{settings.task.name}-{settings.core}-{settings.seed}"
    from agents.display import TrainingDisplay
    from agents.train import Trainer

    with checking_input():
        trainer = Trainer(settings, folder)
    name = f"{settings.core} on {settings.task.name} ({trainer.backend}), seed {settings.seed}"
    try:
        with TrainingDisplay(f"{name}: {folder}", settings.total_steps) as display:
            trainer.run(display.update)
    except KeyboardInterrupt:
        click.echo(f"Interrupted; the agent is saved in {folder}.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    click.echo(f"Trained for {trainer.env_steps} steps. Run folder: {folder}")


@rims.command()
@RUN
@click.option("--suite", help="Evaluate on every task of this suite.")
@click.option("--env", "envs", multiple=True, help="Evaluate on this environment; repeatable.")
@EPISODES
@SEED
@MODE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
def evaluate(
    run: Path,
    suite: str | None,
    envs: tuple[str, ...],
    episodes: int,
    seed: int,
    mode: ActionMode,
    as_json: bool,
) -> None:
    """Evaluate a trained agent.

    RUN is its folder; the task is the one it was trained on unless options name others. Every
    episode is a level of its own, never a training level's seed. Success means the episode ended
    with a reward above 0. Intervals hold for this agent; another seed may differ by more.
    """
    from agents.checkpoint import load_checkpoint
    from agents.display import print_evaluations, show_progress
    from agents.evaluate import check_task
    from agents.evaluate import evaluate as run_evaluation

    with checking_input():
        tasks = [*(get_suite(suite).tasks if suite else ()), *map(get_task, envs)]
        checkpoint = load_checkpoint(run)
        tasks = tasks or [checkpoint.config.task]
        backend = checkpoint.config.backend
        policy = checkpoint.make_policy()
        for task in tasks:
            check_task(policy, task, backend)
    results = []
    with show_progress("episodes", len(tasks) * episodes) as advance:
        for task in tasks:
            results.append(
                run_evaluation(
                    policy,
                    task,
                    episodes=episodes,
                    seed=seed,
                    mode=mode,
                    backend=backend,
                    on_progress=advance,
                )
            )
    config = checkpoint.config
    if as_json:
        about = {"run": str(run), "core": config.core, "env_steps": checkpoint.env_steps}
        click.echo(json.dumps({**about, "tasks": [r.to_dict() for r in results]}, indent=2))
    else:
        print_evaluations(f"{run}: {config.core}, actions by '{mode}', seed {seed}", results)


@rims.command(cls=GroupedCommand)
@click.option("--suite", required=True, help="The suite; see 'rims suites'.")
@click.option(
    "--cores",
    type=CommaSeparated(get_args(CoreName)),
    default="rim_lstm,lstm",
    show_default=True,
    help="Cores to compare, separated by commas.",
)
@click.option("--seeds", default=2, show_default=True, type=COUNT, help="Runs per core.")
@click.option("--run-root", required=True, type=FOLDER, help="Folder of all runs and the report.")
@click.option(
    "--tasks",
    type=CommaSeparated(),
    help="Evaluate only on these tasks of the suite, separated by commas.",
)
@EPISODES
@MODE
@click.option("--jobs", type=COUNT, help="Runs at a time.  [default: number of processors]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the tables.")
@config_options("suite", "env", "core", "seed")
def compare(
    cores: tuple[str, ...],
    seeds: int,
    run_root: Path,
    tasks: tuple[str, ...] | None,
    episodes: int,
    mode: ActionMode,
    jobs: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Train cores over seeds and compare them.

    Every core is trained on the suite's training task and judged on all its tasks. Runs that are
    complete in RUN_ROOT are not trained again. Tables, JSON and figures are written
    there: comparison.md, comparison.json, learning_curves.png, tasks.png.
    """
    from agents import compare as comparing
    from agents.display import RunsDisplay, show_progress
    from agents.report import to_dict, to_markdown, write_report
    from agents.run_folder import require_writable

    config = make_config({**given, "core": cores[0]})
    jobs = jobs or os.cpu_count() or 1
    with checking_input():
        suite = get_suite(config.suite)
        chosen = _choose_tasks(suite, tasks)
        runs = comparing.plan(config, cores, range(seeds), run_root)
        require_writable(run_root)
    with RunsDisplay() as display:
        failures = comparing.train_missing(runs, jobs, display.update)
    if failures:
        raise click.ClickException("some runs failed. " + " ".join(failures))
    with show_progress("evaluating", len(runs)) as advance:
        comparison = comparing.judge(
            runs,
            suite,
            chosen,
            episodes=episodes,
            mode=mode,
            jobs=jobs,
            on_run=lambda _: advance(1),
        )
    written = write_report(comparison, run_root)
    if as_json:
        click.echo(json.dumps(to_dict(comparison), indent=2))
    else:
        click.echo(to_markdown(comparison))
    click.echo("Written: " + ", ".join(str(path) for path in written), err=True)


@rims.command()
@RUN
@click.option("--env", help="Environment to show.  [default: the one trained on]")
@click.option("--out", required=True, type=FILE, help="The GIF to write.")
@SEED
@MODE
@click.option("--fps", default=4.0, show_default=True, type=click.FloatRange(0.5, 50))
@click.option("--max-steps", default=300, show_default=True, type=COUNT, help="Stop after these.")
def record(
    run: Path,
    env: str | None,
    out: Path,
    seed: int,
    mode: ActionMode,
    fps: float,
    max_steps: int,
) -> None:
    """Record one episode as an animated GIF.

    RUN is the folder of the agent. Beside the grid: which mechanisms are active at each step, and
    the action probabilities.
    """
    from agents.checkpoint import load_checkpoint
    from agents.evaluate import check_task
    from agents.record import check_output, record_episode, save_gif

    with checking_input():
        check_output(out)
        checkpoint = load_checkpoint(run)
        task = get_task(env) if env else checkpoint.config.task
        policy = checkpoint.make_policy()
        check_task(policy, task, "gymnasium")
    core = checkpoint.config.core
    recording = record_episode(policy, task, core, seed=seed, mode=mode, max_steps=max_steps)
    frames = save_gif(recording, out, fps)
    click.echo(f"{recording.outcome}. {frames} frames: {out}")


@rims.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def suites(as_json: bool) -> None:
    """List the suites and their tasks."""
    if as_json:
        table = {
            s.name: {"train": s.train.id, "unseen": [t.id for t in s.unseen]}
            for s in SUITES.values()
        }
        click.echo(json.dumps(table, indent=2))
        return
    for suite in SUITES.values():
        click.echo(f"{suite.name}: {suite.description}")
        click.echo(f"  train   {suite.train.id}")
        for task in suite.unseen:
            click.echo(f"  unseen  {task.id}")
        for name, value in suite.preset.items():
            click.echo(f"  preset  {flag(name)} {value}")


def _choose_tasks(suite: Suite, names: tuple[str, ...] | None) -> list[Task]:
    """Tasks of the suite by id or short name; all of them if none are named."""
    if names is None:
        return list(suite.tasks)
    known = {task.id: task for task in suite.tasks} | {task.name: task for task in suite.tasks}
    for name in names:
        if name not in known:
            possible = ", ".join(task.name for task in suite.tasks)
            raise ValueError(f"--tasks: {name!r} is not in suite {suite.name}; it has {possible}.")
    return [known[name] for name in names]


def main() -> None:
    """Entry point: errors of the user are one line on standard error, exit code 2."""
    try:
        rims.main(standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
