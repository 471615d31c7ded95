"""Options of the commands. Those of PPOConfig are made from it: help and checks cannot differ."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import click

from agents.commands.parsing.errors import UserError, checking_input, flag
from agents.commands.parsing.lists import COUNT, CommaSeparated, ParamType
from agents.config import ActionMode, PPOConfig
from envs import BackendChoice, Suite, Task, get_suite
from lab.cores import check_core
from lab.settings import Settings
from lab.variants import check_variant, each_variant

Decorated = TypeVar("Decorated", bound=Callable[..., None])

_METAVARS: dict[type, str] = {int: "N", float: "X", str: "NAME"}

#: Attributes of an option that may be given several times; its values become one text.
_REPEATABLE: dict[str, Any] = {
    "multiple": True,
    "default": (),
    "callback": lambda context, parameter, values: ",".join(values),
}


class GroupedOption(click.Option):
    """An option that knows the heading it belongs under."""

    def __init__(self, *names: Any, group: str, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its own options first, then those of its settings by heading.

    Attributes:
        groups: the headings in their order.
    """

    groups: Sequence[str] = PPOConfig.groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        sections.update({group: [] for group in self.groups})
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                group = parameter.group if isinstance(parameter, GroupedOption) else "Options"
                sections[group].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def config_options(
    *leave_out: str, of: type[Settings] = PPOConfig
) -> Callable[[Decorated], Decorated]:
    """One option for every field of a class of settings but those named."""

    def decorate(command: Decorated) -> Decorated:
        hints = get_type_hints(of)
        for field in reversed(of.fields_in_order()):
            if field.name in leave_out:
                continue
            hint, name = hints[field.name], flag(field.name)
            choices = get_args(hint)
            command = click.option(
                f"{name}/--no-{name[2:]}" if hint is bool else name,
                field.name,
                cls=GroupedOption,
                group=field.metadata["group"],
                type=click.Choice(choices) if choices else hint,
                metavar=field.metadata["metavar"] or _METAVARS.get(hint),
                show_default=field.default != "",
                help=field.metadata["help"],
                **(_REPEATABLE if field.metadata["repeatable"] else {"default": field.default}),
            )(command)
        return command

    return decorate


class PlainOption(click.Option):
    """An option whose help does not spell out the range of its numbers; its errors do."""

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """The text in brackets behind the help."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


def plain_option(*names: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
    """A PlainOption that shows its default if it has one."""
    attributes.setdefault("show_default", attributes.get("default") is not None)
    return click.option(*names, cls=PlainOption, **attributes)


class FiniteRange(click.FloatRange):
    """A range of numbers; click's lets NaN through, which is in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Convert as click does, but refuse NaN."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not in the range {self._describe_range()}.", param, ctx)
        return number


class _Folder(click.Path):
    """A folder that is named; click takes no name for the current one."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Convert as click does, but refuse an empty name."""
        if value == "":
            self.fail("it names no folder; '.' is the current one.", param, ctx)
        return super().convert(value, param, ctx)


class WhichCheckpoint(ParamType[str | int]):
    """``last``, ``best`` or a number."""

    name = "checkpoint"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        """A number as such."""
        if isinstance(value, int):
            return value
        if value in ("last", "best"):
            return str(value)
        if not re.fullmatch(r"[0-9]{1,12}", value):
            self.fail(f"must be last, best or the number of an update; got {value!r}.", param, ctx)
        return int(value)


FOLDER = _Folder(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


# Options of several commands.
RUN = click.argument("run", type=FOLDER)
EPISODES = plain_option(
    "--episodes", default=200, type=COUNT, metavar="N", help="Episodes per task."
)
SEED = plain_option(
    "--seed",
    default=0,
    type=click.IntRange(0, 2**31 - 1),
    metavar="N",
    help="Seed of levels and sampled actions.",
)
MODE = plain_option(
    "--mode",
    type=click.Choice(get_args(ActionMode)),
    default="sample",
    help="Draw actions from the policy, or take the most probable.",
)
JSON = plain_option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)

CHECKPOINT = plain_option(
    "--checkpoint",
    type=WhichCheckpoint(),
    default="last",
    metavar="NAME",
    help="last, best (highest return of the latest episodes), or the number of an update.",
)

# Options of train.
RUN_DIR = plain_option(
    "--run-dir",
    type=FOLDER,
    metavar="NAME",
    help="Folder of the run.  [default: runs/TASK-CORE-SEED]",
)
CONFIG = plain_option(
    "--config",
    type=_FILE,
    metavar="NAME",
    help="Take settings from the config.toml of another run; options given here win.",
)

# Options of evaluate.
SUITE = plain_option("--suite", metavar="NAME", help="Evaluate on every task of this suite.")
ENVS = plain_option(
    "--env", "envs", multiple=True, metavar="ID", help="Evaluate on this environment; repeatable."
)
BACKEND = plain_option(
    "--backend",
    type=click.Choice(get_args(BackendChoice)),
    help="Backend of the environments.  [default: as in training]",
)

# Options of compare.
SUITE_TO_COMPARE_ON = plain_option(
    "--suite", required=True, metavar="NAME", help="The suite; see 'rims suites'."
)
CORES = plain_option(
    "--cores",
    type=CommaSeparated(check=check_variant(check_core)),
    metavar="NAMES",
    default="rim_lstm,lstm",
    help="Cores to compare, separated by commas; any that --core of 'rims train' takes. "
    "rim_lstm+k=2+learning_rate=1e-3 is one with settings of its own.",
)
RUN_ROOT = plain_option(
    "--run-root",
    required=True,
    type=FOLDER,
    metavar="NAME",
    help="Folder of all runs and the report.",
)
TASKS = plain_option(
    "--tasks",
    type=CommaSeparated(),
    metavar="NAMES",
    help="Evaluate only on these tasks of the suite, separated by commas.",
)
JOBS = plain_option(
    "--jobs",
    type=COUNT,
    metavar="N",
    help="Runs at a time.  [default: usable processors, divided by --threads]",
)

# Options of record.
ENV = plain_option(
    "--env", metavar="ID", help="Environment to show.  [default: the one trained on]"
)
OUT = plain_option(
    "--out", required=True, type=_FILE, metavar="NAME", help="The .gif or .mp4 file to write."
)
FPS = plain_option(
    "--fps", default=4.0, type=FiniteRange(0.5, 50), metavar="X", help="Frames per second."
)
MAX_STEPS = plain_option(
    "--max-steps", default=300, type=COUNT, metavar="N", help="Stop after this many steps."
)


def say_if_crowded(threads: int) -> None:
    """Tell a user at a terminal that this many threads will have to share processors."""
    from lab.running.processes import crowding

    if sys.stderr.isatty() and (why := crowding(threads)):
        click.echo(f"Note: {why}", err=True)


def typed_of(given: dict[str, Any]) -> dict[str, Any]:
    """The options that were typed rather than left at their default."""
    source = click.get_current_context().get_parameter_source
    return {n: v for n, v in given.items() if source(n) != click.core.ParameterSource.DEFAULT}


def make_config(given: dict[str, Any], file: Path | None = None) -> PPOConfig:
    """The configuration: what was typed, else the file, else the suite's preset, else default."""
    typed = typed_of(given)
    with checking_input():
        saved = PPOConfig.read_some(file) if file else {}
        named = typed if typed.get("suite") or typed.get("env") else saved
        preset = PPOConfig.preset_of(get_suite(named["suite"])) if named.get("suite") else {}
        if named is typed:  # a task that was typed replaces the file's, whichever way it was named
            saved = {n: v for n, v in saved.items() if n not in ("suite", "env")}
        return PPOConfig(**{**given, **preset, **saved, **typed})


def require_effect(configs: Sequence[Settings], typed: Iterable[str], compared: str) -> None:
    """Refuse what was typed and would do nothing in any run.

    Args:
        configs: settings of all runs.
        typed: names of the settings that were typed.
        compared: the cores or models of the runs, in words.

    Raises:
        UserError: in one line.
    """
    for name in typed:
        reasons = [config.unused.get(name, "") for config in configs]
        if all(reasons):
            # A property that only some cores lack is not the reason.
            others = [why for why in reasons if not why.startswith("needs a ")]
            raise UserError(f"{flag(name)} {others[0] if others else f'{reasons[0]}; {compared}'}.")


def require_effect_of_cores(config: PPOConfig, cores: Sequence[str], typed: Iterable[str]) -> None:
    """Refuse what was typed and would do nothing for any core that ``--cores`` names.

    Raises:
        UserError: in one line.
    """
    with checking_input():
        configs = list(each_variant(config, cores, "core").values())
    require_effect(configs, typed, f"--cores names none, but {', '.join(cores)}")


def choose_tasks(suite: Suite, names: tuple[str, ...] | None) -> list[Task]:
    """Tasks of the suite by id or short name; all of them if none are named.

    Raises:
        ValueError: if the suite has no task of a name.
    """
    if names is None:
        return list(suite.tasks)
    known = {task.id: task for task in suite.tasks} | {task.name: task for task in suite.tasks}
    for name in names:
        if name not in known:
            possible = ", ".join(task.name for task in suite.tasks)
            raise ValueError(f"--tasks: {name!r} is not in suite {suite.name}; it has {possible}.")
    return [known[name] for name in names]
