"""PPOConfig as options of a click command, so that help, defaults and checks cannot differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args, get_type_hints

import click

from agents.config import Group, PPOConfig

Decorated = TypeVar("Decorated", bound=Callable[..., None])

_METAVARS: dict[type, str] = {int: "N", float: "X", str: "NAME"}


def flag(field: str) -> str:
    """The option of a field: ``total_steps`` is ``--total-steps``."""
    return "--" + field.replace("_", "-")


class CommaSeparated(click.ParamType[tuple[str, ...]]):
    """One or more words with commas between them, each once, from ``choices`` if given."""

    name = "names"

    def __init__(self, choices: Sequence[str] = ()) -> None:
        self.choices = choices

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split and check; what is a tuple already was checked before."""
        if isinstance(value, tuple):
            return value
        words = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
        if not words:
            self.fail("names nothing; give at least one.", param, ctx)
        for word in words:
            if self.choices and word not in self.choices:
                self.fail(f"{word!r} is not one of {', '.join(self.choices)}.", param, ctx)
        return words


class GroupedOption(click.Option):
    """An option that knows the heading it belongs under."""

    def __init__(self, *names: Any, group: str, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its own options first, then those of PPOConfig by heading."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        sections.update({group: [] for group in get_args(Group)})
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                group = parameter.group if isinstance(parameter, GroupedOption) else "Options"
                sections[group].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def config_options(*leave_out: str) -> Callable[[Decorated], Decorated]:
    """One option for every field of PPOConfig but those named."""

    def decorate(command: Decorated) -> Decorated:
        hints = get_type_hints(PPOConfig)
        for field in reversed(dataclasses.fields(PPOConfig)):
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
                metavar=_METAVARS.get(hint),
                default=field.default,
                show_default=field.default != "",
                help=field.metadata["help"],
            )(command)
        return command

    return decorate
