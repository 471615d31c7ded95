"""``rims experiment``: one command for each row of :data:`experiments.registry.TASKS`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agents.commands import options
from agents.commands.compare import REPORT_ONLY, Seeds, claimed
from agents.commands.options import CommaSeparated, GroupedCommand, checking_input
from agents.output import check_output
from experiments.config import GROUPS, NFM_MODEL, ExperimentConfig, read_settings
from experiments.registry import TASKS, Task

if TYPE_CHECKING:
    from agents.comparison import Flag
    from experiments.comparison import Run

_SEEDS = options.plain_option(
    "--seeds",
    type=Seeds(),
    default="1",
    metavar="N",
    help="Runs per model, with seeds from 0; or a list of seeds such as 3,7 or 0-4.",
)

_SHOW_ATTENTION = options.plain_option(
    "--show-attention",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="NAME",
    help="Draw which earlier layers the first finished run of nfm reads, as .png, .svg or .pdf.",
)

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


@click.group()
def experiment() -> None:
    """Supervised experiments: train models over seeds and compare them.

    Every run has a folder of its own in RUN_ROOT, with config.toml, progress.csv, TensorBoard
    events, checkpoint.pt and in the end results.json. A run that was interrupted goes on when the
    same command is given again; what is finished is not trained again.

    \b
    rims experiment sort-of-clevr --model cnn,nfm --seeds 3 --run-root runs/clevr
    """


class TaskCommand(GroupedCommand):
    """A command whose options stand under the headings of experiments."""

    groups = GROUPS


def _options(task: Task) -> list[Decorator]:
    models = options.plain_option(
        "--model",
        "models",
        type=CommaSeparated(task.models),
        default=",".join(task.models),
        metavar="NAMES",
        help="Models to train, separated by commas.",
    )
    return [
        models,
        _SEEDS,
        options.RUN_ROOT,
        REPORT_ONLY,
        options.JOBS,
        options.JSON,
        options.CONFIG,
        *[_SHOW_ATTENTION] * task.has_nfm,
        options.config_options("model", "seed", of=task.config),
    ]


def task_command(task: Task) -> click.Command:
    """The command of a task, with an option for each of its settings."""

    def run(
        models: tuple[str, ...],
        seeds: tuple[int, ...],
        run_root: Path,
        report_only: bool,
        jobs: int | None,
        as_json: bool,
        config: Path | None,
        show_attention: Path | None = None,
        **given: Any,
    ) -> None:
        settings = _make_config(task, given, config)
        _check_effect(settings, models, options.typed_of(given))
        _check_picture(show_attention, models)
        runs = _compare(task, settings, models, seeds, run_root, report_only, jobs, as_json)
        if show_attention is not None:
            _draw(runs, show_attention)

    run.__doc__ = (
        f"{task.summary}\n\n    Tables, JSON and figures of the runs that are finished are written "
        "to RUN_ROOT: results.md, results.json, and learning_curves and results as .png and .svg.\n"
        "\n    If a run fails, the others are compared, the report names it and the exit code is 1."
    )
    decorated: Callable[..., None] = run
    for decorate in reversed(_options(task)):
        decorated = decorate(decorated)
    return click.command(task.name, cls=TaskCommand, short_help=task.summary)(decorated)


def _make_config(task: Task, given: dict[str, Any], file: Path | None) -> ExperimentConfig:
    """The settings: what was typed, else the file, else the default."""
    with checking_input():
        saved = read_settings(file, task.config) if file else {}
        kept = {name: value for name, value in saved.items() if name not in ("model", "seed")}
        return task.config(**{**given, **kept, **options.typed_of(given)})


def _check_effect(config: ExperimentConfig, models: tuple[str, ...], typed: dict[str, Any]) -> None:
    """Refuse what was typed and would do nothing in any run."""
    unused = frozenset.intersection(*(replace(config, model=name).unused for name in models))
    for name in (name for name in typed if name in unused):
        if name == "momentum":
            why = f"is used by sgd alone; the optimizer is {config.optimizer}"
        else:
            why = f"needs a model with NFM; --model names none, but {', '.join(models)}"
        raise options.UserError(f"{options.flag(name)} {why}.")


def _compare(
    task: Task,
    config: ExperimentConfig,
    models: tuple[str, ...],
    seeds: tuple[int, ...],
    run_root: Path,
    report_only: bool,
    jobs: int | None,
    as_json: bool,
) -> list[Run]:
    """Train what is missing, then write and print the report."""
    from agents.processes import usable_processors
    from experiments import comparison as comparing
    from experiments.report import to_dict, to_markdown, write_report

    runs = comparing.plan(task, config, models, seeds, run_root)
    if not report_only:
        with checking_input():
            comparing.check(runs)
    jobs = None if report_only else min(jobs or usable_processors(), len(runs))
    with claimed(run_root, report_only):
        flags = _train(runs, jobs) if jobs else []
        try:
            found = comparing.assemble(task, runs, jobs=jobs, command=_typed(), flags=flags)
        except comparing.NothingToCompare as error:
            raise click.ClickException(str(error)) from None
        written = write_report(found, run_root)
    click.echo(json.dumps(to_dict(found), indent=2) if as_json else to_markdown(found))
    click.echo("Written: " + ", ".join(str(path) for path in written), err=True)
    if found.failed:
        raise click.ClickException("some runs failed; the report's flags say which.")
    return runs


def _check_picture(path: Path | None, models: tuple[str, ...]) -> None:
    if path is None:
        return
    with checking_input():
        if NFM_MODEL not in models:
            raise ValueError("--show-attention shows a run of nfm; name it in --model.")
        check_output(path, (".png", ".svg", ".pdf"), "--show-attention")


def _draw(runs: list[Run], path: Path) -> None:
    from experiments.figures import draw_attention

    try:
        found = draw_attention(runs, path)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if not found:
        raise click.ClickException("--show-attention: there is no finished run of nfm.")
    click.echo(f"Written: {path}", err=True)


def _train(runs: list[Run], jobs: int) -> list[Flag]:
    from agents.display import ProgressTable, RunLine
    from agents.run_folder import newest_row
    from experiments import comparison as comparing

    def line(run: Run) -> RunLine:
        row = newest_row(run.folder)
        epochs, loss = int(row.get("epoch", 0)), row.get("loss", float("nan"))
        return RunLine(run.name, epochs, run.config.epochs, loss)

    with ProgressTable("epochs", "loss", ("epochs", "loss")) as display:
        return comparing.train_missing(
            runs, jobs, lambda missing: display.show_runs(map(line, missing))
        )


def _typed() -> str:
    """The command line that this is the answer to."""
    return shlex.join(["rims", *sys.argv[1:]])


for _task in TASKS.values():
    experiment.add_command(task_command(_task))
