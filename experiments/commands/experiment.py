"""``rims experiment``: one command for each row of :data:`experiments.registry.TASKS`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agents.commands.compare import MATCH_PARAMS, REPORT_ONLY, claimed, show_report
from agents.commands.parsing import options
from agents.commands.parsing.errors import checking_input
from agents.commands.parsing.lists import CommaSeparated, Seeds
from agents.commands.parsing.options import GroupedCommand
from experiments.configs.base import ExperimentConfig
from experiments.registry import COMPARED_CORES, TASKS, Show, Task
from lab.cores import CORE_NAMES, check_core
from lab.disk.output import check_output
from lab.variants import base_of, check_variant, each_variant, with_equal_sizes

if TYPE_CHECKING:
    from experiments.judging.comparison import Run
    from lab.comparing import Flag

CORES_HELP = (
    f"Cores to train, separated by commas: {', '.join(CORE_NAMES)} (a memoryless control), or the "
    "import path of a class of your own, PACKAGE.MODULE:CLASS, made and called as nn.LSTM is. "
    "rim_lstm+k=2 is one with settings of its own."
)
MODELS_HELP = (
    "Models to train, separated by commas: {}. NAME+SETTING=VALUE is one with settings of its own."
)

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


@click.group(invoke_without_command=True)
@click.pass_context
def experiment(context: click.Context) -> None:
    """Supervised experiments: train models over seeds and compare them.

    Every run has its own folder in RUN_ROOT, with config.toml, progress.csv, TensorBoard events,
    checkpoints and in the end results.json. The same command resumes interrupted runs and does not
    train finished ones again.

    \b
    rims experiment sort-of-clevr --model cnn,nfm --seeds 3 --run-root runs/clevr
    rims experiment copying --cores rim_lstm,lstm --seeds 3 --run-root runs/copying
    """


class TaskCommand(GroupedCommand):
    """A command whose options stand under the headings of experiments."""

    groups = ExperimentConfig.groups


def _one_of(models: Sequence[str]) -> Callable[[str], None]:
    def check(model: str) -> None:
        if model not in models:
            raise ValueError(f"{model!r} is not one of {', '.join(models)}.")

    return check


def _options(task: Task) -> list[Decorator]:
    has_cores = task.compared is COMPARED_CORES
    models = options.plain_option(
        task.compared.option,
        "models",
        type=CommaSeparated(check=check_variant(check_core if has_cores else _one_of(task.models))),
        default=",".join(task.models),
        metavar="NAMES",
        help=CORES_HELP if has_cores else MODELS_HELP.format(", ".join(task.models)),
    )
    seeds = options.plain_option(
        "--seeds",
        type=Seeds(),
        default="1",
        metavar="N",
        help=f"Runs per {task.compared.one}, with seeds from 0; or a list such as 3,7 or 0-4.",
    )
    return [
        models,
        seeds,
        options.RUN_ROOT,
        *([MATCH_PARAMS] if has_cores else []),
        REPORT_ONLY,
        options.JOBS,
        options.JSON,
        options.CONFIG,
        *map(_show_option, task.shows),
        options.config_options("model", "seed", of=task.config),
    ]


def _show_option(show: Show) -> Decorator:
    file = click.Path(dir_okay=False, path_type=Path)
    return options.plain_option(show.option, type=file, metavar="NAME", help=show.help)


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
        match_params: bool = False,
        **given: Any,
    ) -> None:
        wanted = {show: given.pop(f"show_{show.name}") for show in task.shows}
        pictures = {show: path for show, path in wanted.items() if path is not None}
        settings = _make_configs(task, given, config, models)
        compared = f"{task.compared.option} names none, but {', '.join(models)}"
        options.require_effect(list(settings.values()), options.typed_of(given), compared)
        _check_pictures(task, pictures, models)
        if match_params:
            settings = _matched(settings)
        runs = _compare(task, settings, seeds, run_root, report_only, jobs, as_json)
        _draw(runs, pictures)

    run.__doc__ = (
        f"{task.summary}\n\n    Tables, JSON and figures of the runs that are finished are written "
        "to RUN_ROOT: results.md, results.json, and learning_curves and results as .png and .svg.\n"
        "\n    If a run fails, the others are compared, the report names it and the exit code is 1."
    )
    decorated: Callable[..., None] = run
    for decorate in reversed(_options(task)):
        decorated = decorate(decorated)
    return click.command(task.name, cls=TaskCommand, short_help=task.summary)(decorated)


def _make_configs(
    task: Task, given: dict[str, Any], file: Path | None, models: tuple[str, ...]
) -> dict[str, ExperimentConfig]:
    """The settings of each variant: what was typed, else the file, else the default."""
    with checking_input():
        saved = task.config.read_some(file) if file else {}
        kept = {name: value for name, value in saved.items() if name not in ("model", "seed")}
        settings = {**given, **kept, **options.typed_of(given)}
        base = task.config(**settings, model=base_of(models[0]))
        return each_variant(base, models, "model")


def _matched(configs: Mapping[str, Any]) -> dict[str, ExperimentConfig]:
    """With the hidden sizes that give all cores as many parameters as the first."""
    from experiments.shared.cores import with_equal_parameters

    with checking_input():
        return with_equal_sizes(configs, with_equal_parameters)


def _compare(
    task: Task,
    configs: Mapping[str, ExperimentConfig],
    seeds: tuple[int, ...],
    run_root: Path,
    report_only: bool,
    jobs: int | None,
    as_json: bool,
) -> list[Run]:
    """Train what is missing, then write and print the report."""
    from experiments.judging import comparison as comparing
    from experiments.judging.report import to_dict, to_markdown, write_report
    from lab.comparing import NothingToCompare
    from lab.running.processes import jobs_of

    runs = comparing.plan(task, configs, seeds, run_root)
    threads = runs[0].config.threads
    jobs = None if report_only else jobs_of(jobs, threads, len(runs))
    if jobs is not None:
        with checking_input():
            comparing.check(runs, jobs)
        options.say_if_crowded(jobs * threads)
    with claimed(run_root, report_only):
        flags = _train(runs, jobs) if jobs else []
        try:
            found = comparing.assemble(task, runs, command=_typed(), flags=flags)
        except NothingToCompare as error:
            raise click.ClickException(str(error)) from None
        written = write_report(found, run_root)
    text = json.dumps(to_dict(found), indent=2) if as_json else to_markdown(found)
    show_report(text, written, failed=found.failed)
    return runs


def _check_pictures(task: Task, pictures: Mapping[Show, Path], models: tuple[str, ...]) -> None:
    with checking_input():
        for show, path in pictures.items():
            if not any(show.can_show(base_of(model)) for model in models):
                names, option = " or ".join(show.models), task.compared.option
                raise ValueError(f"{show.option} shows a run of {names}; name it in {option}.")
            check_output(path, show.endings, show.option)


def _draw(runs: list[Run], pictures: Mapping[Show, Path]) -> None:
    from experiments.judging.figures import draw

    for show, path in pictures.items():
        try:
            found = draw(show, runs, path)
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        if not found:
            names = " or ".join(show.models)
            raise click.ClickException(f"{show.option}: there is no finished run of {names}.")
        click.echo(f"Written: {path}", err=True)


def _train(runs: list[Run], jobs: int) -> list[Flag]:
    from lab import comparing
    from lab.reporting.display import ProgressTable, RunLine

    def line(run: Run) -> RunLine:
        row = run.row
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
