"""The command ``rims``: train, evaluate, compare, record, bench. Nothing is computed here."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agents import bench_options, options
from agents.config import ActionMode
from agents.options import GroupedCommand, checking_input, flag, make_config
from envs import SUITES, BackendChoice, Suite, Task, get_suite, get_task

if TYPE_CHECKING:
    from agents.compare import Comparison, Run

# torch takes over a second to import, so the modules that need it are imported by the commands.

EXIT_INTERRUPTED = 130


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
@options.config_options()
@options.RUN_DIR
@options.CONFIG
def train(run_dir: Path | None, config: Path | None, **given: Any) -> None:
    """Train an agent with PPO.

    The run folder receives config.toml, progress.csv, TensorBoard events and checkpoint.pt.
    Ctrl-C stops and saves the agent; an interrupted run cannot be continued yet.
    """
    settings = make_config(given, config)
    folder = run_dir or Path("runs") / f"{settings.task.name}-{settings.core}-{settings.seed}"
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


@rims.command()
@options.RUN
@options.SUITE
@options.ENVS
@options.BACKEND
@options.EPISODES
@options.SEED
@options.MODE
@options.JSON
def evaluate(
    run: Path,
    suite: str | None,
    envs: tuple[str, ...],
    backend: BackendChoice | None,
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
    import torch

    from agents.checkpoint import load_checkpoint
    from agents.display import print_evaluations, show_progress
    from agents.evaluate import check_task
    from agents.evaluate import evaluate as run_evaluation

    with checking_input():
        tasks = [*(get_suite(suite).tasks if suite else ()), *map(get_task, envs)]
        checkpoint = load_checkpoint(run)
        config = checkpoint.config
        torch.set_num_threads(config.threads)
        tasks = tasks or [config.task]
        backend = backend or config.backend
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
    if as_json:
        about = {"run": str(run), "core": config.core, "env_steps": checkpoint.env_steps}
        about["trained_on"] = config.task.id
        click.echo(json.dumps({**about, "tasks": [r.to_dict() for r in results]}, indent=2))
    else:
        by = " and ".join(sorted({result.backend for result in results}))
        title = f"{run}: {config.core}, actions by '{mode}', seed {seed}, environments by {by}"
        print_evaluations(title, results, config.task)


@rims.command(cls=GroupedCommand)
@options.SUITE_TO_COMPARE_ON
@options.CORES
@options.SEEDS
@options.RUN_ROOT
@options.TASKS
@options.EPISODES
@options.MODE
@options.JOBS
@options.JSON
@options.config_options("suite", "env", "core", "seed")
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
    from agents.processes import usable_processors
    from agents.report import to_dict, to_markdown, write_report
    from agents.run_folder import lock_folder, require_writable

    config = make_config({**given, "core": cores[0]})
    with checking_input():
        suite = get_suite(config.suite)
        chosen = options.choose_tasks(suite, tasks)
        runs = comparing.plan(config, cores, range(seeds), run_root)
        require_writable(run_root)
        lock = lock_folder(run_root)
    jobs = min(jobs or usable_processors(), len(runs))
    try:
        comparison = _train_and_judge(runs, suite, chosen, episodes, mode, jobs)
    finally:
        lock.release()
    written = write_report(comparison, run_root)
    if as_json:
        click.echo(json.dumps(to_dict(comparison), indent=2))
    else:
        click.echo(to_markdown(comparison))
    click.echo("Written: " + ", ".join(str(path) for path in written), err=True)


def _train_and_judge(
    runs: list[Run], suite: Suite, tasks: list[Task], episodes: int, mode: ActionMode, jobs: int
) -> Comparison:
    from agents import compare as comparing
    from agents.display import RunsDisplay, show_progress

    with RunsDisplay() as display:
        failures = comparing.train_missing(runs, jobs, display.update)
    if failures:
        raise click.ClickException("some runs failed. " + " ".join(failures))
    with show_progress("evaluating", len(runs)) as advance:
        try:
            return comparing.judge(
                runs, suite, tasks, episodes=episodes, mode=mode, jobs=jobs, on_progress=advance
            )
        except comparing.JudgingError as error:
            raise click.ClickException(str(error)) from None


@rims.command()
@options.RUN
@options.ENV
@options.OUT
@options.SEED
@options.MODE
@options.FPS
@options.MAX_STEPS
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
    import torch

    from agents.checkpoint import load_checkpoint
    from agents.evaluate import check_task
    from agents.record import check_output, record_episode, save_gif

    with checking_input():
        check_output(out)
        checkpoint = load_checkpoint(run)
        torch.set_num_threads(checkpoint.config.threads)
        task = get_task(env) if env else checkpoint.config.task
        policy = checkpoint.make_policy()
        check_task(policy, task, "gymnasium")
    core = checkpoint.config.core
    recording = record_episode(policy, task, core, seed=seed, mode=mode, max_steps=max_steps)
    frames = save_gif(recording, out, fps)
    click.echo(f"{recording.outcome}. {frames} frames: {out}")


@rims.command()
@options.JSON
def suites(as_json: bool) -> None:
    """List the suites and their tasks."""
    if as_json:
        table = {
            s.name: {
                "train": s.train.id,
                "unseen": [t.id for t in s.unseen],
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
        for name, value in suite.preset.items():
            click.echo(f"  preset  {flag(name)} {value}")


@rims.group(invoke_without_command=True)
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
