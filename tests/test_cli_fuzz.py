"""Random command lines: whatever is typed is answered in one line or accepted."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from hypothesis import given, settings

import cli
from agents.commands.parsing.errors import UserError
from agents.commands.parsing.lists import CommaSeparated
from command_line import ENV, Result, assert_one_line, fresh_process
from fuzz_cases import (
    COMMANDS,
    FUZZ,
    NEEDED,
    WITHOUT_DATA,
    Command,
    Place,
    check,
    command_lines,
    free_lines,
    make_place,
    option_strings,
    options_of,
)
from selection import short

#: Of each command, and of lines of any words.
EXAMPLES = 30
#: Short of these commands; what all experiments share is tried on one.
FIRST = [("train",), ("evaluate",), ("compare",), ("sweep",), ("experiment", "adding")]
RANDOMLY = short([(path,) for path in COMMANDS], *(list(COMMANDS).index(path) for path in FIRST))
FREE_EXAMPLES = 100


@pytest.fixture(scope="module")
def place(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from make_place(toy_run, tmp_path_factory.mktemp("fuzz"))


def test_every_command_is_in_the_table() -> None:
    assert set(NEEDED) == set(COMMANDS)


@pytest.mark.parametrize("path", RANDOMLY, ids=" ".join)
def test_random_options(place: Place, path: Command) -> None:
    """Whether one is accepted is chance; that one is, is tested of what each command needs."""
    answers = list[int]()

    @settings(FUZZ, max_examples=EXAMPLES)
    @given(command_lines(path))
    def run(words: list[str]) -> None:
        result = check(place, *words)
        answers.append(0 if result is None else result.code)

    run()
    assert 2 in answers


@settings(FUZZ, max_examples=FREE_EXAMPLES)
@given(words=free_lines())
def test_random_words(place: Place, words: list[str]) -> None:
    check(place, *words)


# The harness itself -----------------------------------------------------------------------------


def _raises() -> None:
    raise RuntimeError("a bug")


def _writes() -> None:
    Path("written").touch()
    raise UserError("no")


def _prints() -> None:
    click.echo("working")
    raise UserError("no")


def _exits() -> None:
    raise SystemExit(3)


def _complains_twice() -> None:
    click.echo("Error: one", err=True)
    raise UserError("two")


@pytest.mark.parametrize("broken", [_raises, _writes, _prints, _exits, _complains_twice])
def test_a_broken_command_is_found(
    place: Place, monkeypatch: pytest.MonkeyPatch, broken: Callable[[], None]
) -> None:
    monkeypatch.setitem(cli.rims.commands, "suites", click.command("suites")(broken))
    with pytest.raises((AssertionError, RuntimeError)):
        check(place, "suites")
    place.restore()


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_ends_where_its_work_begins(place: Place, path: Command) -> None:
    if path in (("suites",), ("warmup",), *WITHOUT_DATA):
        pytest.skip("has no work, or needs data that is not in the folder")
    assert check(place, *path, *NEEDED[path]) is None


# Every option -----------------------------------------------------------------------------------


#: Options of free text, with the reason why nothing in them is a mistake of its own.
ANYTHING_GOES = {
    "data_dir": "names a folder that need not be there where files are fetched",
    "text_file": "any file is a text",
    "metrics": "columns are those of the runs' files",
}

#: What errors call an option that is named by what it names.
CALLED = {"env": "environment", "envs": "environment", "suite": "suite", "slurm_settings": "slurm"}

_NOT_WHOLE = ("abc", "", "1.5", "-1", "9" * 30, "nan")
_NOT_REAL = ("abc", "", "-1", "nan", "inf")
_NO_WORD = ("no-such", "")

#: By name, where the type alone does not say it.
_IMPOSSIBLE = {
    "digits": ("0", "x"),
    "comm_gate_bias": ("abc", "", "101", "nan", "-inf"),
    "slurm_settings": ("x", "=1"),
    **dict.fromkeys(("test_blanks", "test_lengths", "test_sides", "test_balls"), ("x", "", "-1")),
}


def impossible(option: click.Option) -> tuple[str, ...]:
    """Values that an option must refuse, by its type."""
    kind = option.type
    if option.is_flag:
        return ("yes",)
    if option.name in _IMPOSSIBLE:
        return _IMPOSSIBLE[option.name]
    if isinstance(kind, click.IntRange | click.types.IntParamType):
        return _NOT_WHOLE
    if isinstance(kind, click.FloatRange | click.types.FloatParamType):
        return _NOT_REAL
    if isinstance(kind, click.Path):
        return ("folder",) if not kind.dir_okay else ("file", "")
    if isinstance(kind, CommaSeparated):
        return (",", "no-such")
    if isinstance(kind, click.Choice | click.types.StringParamType):
        return _NO_WORD[:1]
    return ("x", "", "-1", "0,")  # lists of numbers, seeds, checkpoints


CASES = [
    (path, option)
    for path, command in COMMANDS.items()
    for option in options_of(command)
    if option.name not in ANYTHING_GOES
]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_refuses_what_cannot_be(place: Place, path: Command) -> None:
    options = [option for of, option in CASES if of == path]
    for option in options:
        name = max(option.opts, key=len)
        for value in impossible(option):
            result = check(place, *path, *NEEDED[path], f"{name}={value}")
            assert result is not None, (name, value)
            assert result.code == 2, (name, value, result)
            named = (*option_strings(option), CALLED.get(str(option.name), name))
            assert any(n in result.err for n in named), (value, result)


def test_almost_no_option_takes_anything() -> None:
    every = {option.name for command in COMMANDS.values() for option in options_of(command)}
    assert set(ANYTHING_GOES) <= every
    assert len(CASES) > 300


# Time -------------------------------------------------------------------------------------------


QUICKLY_REFUSED = (
    ("train", "--env", ENV, "--gamma", "2"),
    ("train", "--suite", "dorkey"),
    ("evaluate", "nowhere"),
    ("record", "nowhere", "--out", "new.gif"),
    ("plot", "nowhere", "--out", "new.png"),
    ("compare", "--suite", "empty", "--run-root", "new", "--seeds", "x"),
    ("sweep", "--config", "nowhere.toml", "--out", "new"),
    ("bench", "cells", "--seconds-per-case", "nan"),
    ("experiment", "adding", "--run-root", "new", "--epochs", "0"),
)


@pytest.mark.parametrize("words", QUICKLY_REFUSED, ids=" ".join)
def test_mistakes_are_answered_at_once(tmp_path: Path, words: Command) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with fresh_process(*words, folder=tmp_path) as running:
        result = Result(0, *running.communicate())._replace(code=running.returncode)
    # Of the processor: by the clock it depends on what else is running.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2
    assert_one_line(result)
    assert list(tmp_path.iterdir()) == []
