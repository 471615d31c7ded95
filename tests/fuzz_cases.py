"""Random command lines and files: what they are made of, and what every answer must keep to."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import cli
from agents.commands.parsing.lists import CommaSeparated, Numbers, Seeds
from agents.commands.parsing.options import WhichCheckpoint
from command_line import ENV, Result
from experiments.registry import TASKS
from lab.cores import CORE_NAMES

Command = tuple[str, ...]

#: The same examples every time, nothing kept between runs.
FUZZ = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class WouldRun(BaseException):
    """A command has accepted all it was given and begins to work."""


#: Where the work of each command begins: ``module:name``.
WORK = (
    "agents.learning.train:Trainer.run",
    "lab.comparing:train_missing",
    "agents.judging.compare:judge",
    "agents.judging.evaluate:evaluate",
    "agents.watching.record:record_episode",
    "agents.watching.plots:save_curves",
    "agents.watching.live:watch_folder",
    "agents.sweep.study:Study.__init__",
    "agents.throughput.run:measure",
    "agents.throughput.scaling:measure",
    "rims.bench.run:bench_cells",
    "rims.bench.first_call:measure_first_calls",
    "nfm.bench.run:bench_nfm",
    "experiments.judging.comparison:assemble",
    "experiments.data.published.mnist:_fetch",
)


def stop_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every command end where its work would begin."""

    def would_run(*_: object, **__: object) -> None:
        raise WouldRun

    places = list(WORK)
    with contextlib.suppress(ImportError):  # an extra
        import_module("jax")
        places.append("rims.jax.bench:bench_jax")
    for place in places:
        module, _, name = place.partition(":")
        *owners, last = name.split(".")
        owner: Any = import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        monkeypatch.setattr(owner, last, would_run)


# Answers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A folder that commands are called in; what was accepted may write there."""

    here: Path
    template: Path

    def tree(self) -> dict[str, tuple[str, bytes]]:
        """All there is."""
        found = {}
        folders = [str(self.here)]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    kind = _kind(entry)
                    found[entry.path] = (kind, _content(entry) if kind == "file" else b"")
                    if kind == "folder":
                        folders.append(entry.path)
        return found

    def restore(self) -> None:
        """Make it as it was at first."""
        for path in self.here.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self.template, self.here, symlinks=True, dirs_exist_ok=True)


def make_template(toy_run: Path, folder: Path) -> None:
    """A folder with a run, and all kinds of files that are in the way."""
    shutil.copytree(toy_run, folder / "run")
    shutil.copytree(toy_run, folder / "interrupted")
    shutil.rmtree(folder / "interrupted" / "checkpoints")
    for name in ("folder", "folder.toml", "folder.png", "used", "locked"):
        (folder / name).mkdir()
    (folder / "locked").chmod(0o500)
    (folder / "used" / "notes.txt").write_text("my notes")
    (folder / "file").write_text("a file")
    (folder / "text").write_text("to be or not to be\n" * 200)
    (folder / "broken.toml").write_text("a = [")
    (folder / "settings.toml").write_text(f'env = "{ENV}"\nnum_envs = 8\n')
    (folder / "suite.toml").write_text(f'name = "own"\ntrain = "{ENV}"\nunseen = []\n')
    (folder / "sweep.toml").write_text(
        "[sweep]\ntrials = 2\n[settings]\nsuite = 'empty'\n[search]\nepochs = {low = 1, high = 4}\n"
    )
    (folder / "dead").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")


def make_place(toy_run: Path, folder: Path) -> Iterator[Place]:
    """The folder that commands are called in; none of them does its work meanwhile."""
    place = Place(folder / "here", folder / "template")
    make_template(toy_run, place.template)
    shutil.copytree(place.template, place.here, symlinks=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(place.here)
        stop_before_work(monkeypatch)
        yield place


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return f"link to {os.readlink(entry)}"
    return "folder" if entry.is_dir() else "file"


#: By file, when it was last changed and what was then in it; nothing here sets times back.
_READ: dict[str, tuple[tuple[int, ...], bytes]] = {}


def _content(entry: os.DirEntry[str]) -> bytes:
    status = entry.stat(follow_symlinks=False)
    now = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if entry.path not in _READ or _READ[entry.path][0] != now:
        _READ[entry.path] = (now, Path(entry.path).read_bytes())
    return _READ[entry.path][1]


def call(*arguments: str) -> Result | None:
    """What :func:`cli.main` answers; ``None`` if it would run."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=e) for e in (None, "replace"))
    code = 0
    before = sys.argv
    sys.argv = ["rims", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except WouldRun:
        return None
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return Result(code, *(_text(stream) for stream in (out, err)))


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


def check(place: Place, *arguments: str) -> Result | None:
    """Call a command and see that a refusal is one line and leaves everything as it was."""
    before = place.tree()
    result = call(*arguments)
    after = place.tree()
    if after != before:
        place.restore()
    if result is None or result.code == 0:
        return result
    assert result.code in (1, 2), result
    assert_plain_line(result)
    if result.code == 2:
        assert after == before, f"written: {sorted(set(after.items()) ^ set(before.items()))}"
    return result


def assert_plain_line(result: Result) -> None:
    """One line of an error and nothing else; no character that a terminal would obey."""
    assert result.out == "", result
    assert result.err.endswith("\n"), result
    line = result.err.removesuffix("\n")
    assert line.startswith("Error: "), result
    assert len(line) > len("Error: "), result
    odd = {c for c in line if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cf")}
    assert not odd, (odd, result)


# Commands ---------------------------------------------------------------------------------------


def leaves(group: click.Group, path: Command = ()) -> Iterator[tuple[Command, click.Command]]:
    """Every command that is no group, with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(leaves(cli.rims))

#: What each command needs at least, and nothing may be wrong with; small where it can be.
NEEDED: dict[Command, Command] = {
    ("train",): ("--env", ENV, "--run-dir", "new"),
    ("resume",): ("interrupted",),
    ("watch",): ("run",),
    ("evaluate",): ("run",),
    ("compare",): ("--suite", "empty", "--run-root", "new", "--seeds", "1"),
    ("record",): ("run", "--out", "new.gif"),
    ("plot",): ("run", "--out", "new.png"),
    ("suites",): (),
    ("warmup",): (),
    ("sweep",): ("--config", "sweep.toml", "--out", "new"),
    ("bench", "cells"): ("--out", "new"),
    ("bench", "nfm"): ("--out", "new"),
    ("bench", "jax"): ("--out", "new"),
    ("bench", "first-call"): (),
    ("bench", "agents"): ("--out", "new"),
    ("bench", "scaling"): ("--out", "new"),
    **{("experiment", name): ("--run-root", "new") for name in TASKS},
    ("experiment", "language-model"): ("--run-root", "new", "--text-file", "text"),
}


#: Commands that read data no test may fetch.
WITHOUT_DATA = tuple(
    ("experiment", name) for name in ("stacked-mnist", "classify", "gan", "vae", "sequential-mnist")
)


def option_strings(option: click.Parameter) -> list[str]:
    """All ways to write an option's name."""
    return [name for name in (*option.opts, *option.secondary_opts) if name.startswith("-")]


def options_of(command: click.Command) -> list[click.Option]:
    """The options of a command."""
    return [p for p in command.params if isinstance(p, click.Option)]


# Values -----------------------------------------------------------------------------------------

SMALL = st.integers(0, 70).map(str)
HUGE = st.sampled_from([2**41, 2**63, 2**64, 10**30, 10**400, -(2**31), -(2**63)]).map(str)
NUMBERS = st.sampled_from(
    ["-1", "0", "1.5", "1e-3", "1e400", "-0.0", "nan", "NaN", "inf", "-inf", "1_0", "0x10", "٣"]
)

#: No "/", which could lead out of the folder.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=0, max_size=12)

ODD = st.sampled_from(
    [
        *("", " ", "-", "--", "-1", "--help", "-h", "--seed", ",", "=", ":", "..", "a\nb", "\n"),
        *("a\r\nError: b", "\x1b[31mred\x1b[0m", "\x07", "a\tb", "\u2028", "\x85", "\u202e", "é☃"),
        *("caf\udce9", "x" * 300, "%s{0}", "None", "True", "[]", "{}", "'", '"', "\\n"),
    ]
)

PATHS = st.sampled_from(
    [
        *("new", "new/deep", "new/deep/" + "x" * 300, "file", "file/below", "folder", "run", "."),
        *("interrupted", "used", "locked", "locked/below", "", "missing/new.png", "new.png"),
        *("new.gif", "new.mp4", "new.GIF", "folder.png", "new.txt", "settings.toml", "suite.toml"),
        *("broken.toml", "sweep.toml", "missing.toml", "x" * 300, "a\nb", "dead", "dead/below"),
        *("loop", "loop/below", "-", "/dev/null", "/dev/null/below", "/proc/nowhere"),
        *("text", "é☃", "caf\udce9", "new/../new"),
    ]
)

#: Options that take text: words that some of them have a use for.
WORDS = st.sampled_from(
    [
        *(ENV, "MiniGrid-DoorKey-5x5-v0", "MiniGrid-Dynamic-Obstacles-5x5-v0", "CartPole-v1"),
        *("MiniGrid-WFC-MazeSimple-v0", "BabyAI-GoToObj-v0", "empty", "doorkey", "dorkey"),
        *("suite.toml", "broken.toml", "missing.toml", "folder.toml", "cpu", "cuda", "cuda:99"),
        *("meta", "mps", "xla", "cpu:1", "lstm", "lsmt", "rim_gru,gru", "none", "torch.nn:GRU"),
        *("torch.nn:GRUU", "torch:nn", "a:b", ":", "a.b:", "os:getcwd", "1,3", "3,1,3", "14,16"),
        *("partition=gpu", "time=5", "time=x", "mem_gb=4", "=", "a=b=c", "time=", "text", "last"),
        *("best", "0", "0-4", "3,7", "4-0", "0-9999999999", "64,64,4,3", "64,64,4,9", "64,64"),
        *("success_rate", "return", "env_steps", "inference", "Empty-8x8", "Empty-7x7"),
    ]
)

JUNK = st.one_of(ODD, TEXT, NUMBERS, HUGE, PATHS, WORDS)


@st.composite
def typos(draw: st.DrawFn, words: tuple[str, ...]) -> str:
    """A word with one character gone, doubled or changed."""
    word = draw(st.sampled_from(words))
    place = draw(st.integers(0, max(len(word) - 1, 0)))
    middle = draw(st.sampled_from(["", word[place : place + 1] * 2, "x", "-", "Z"]))
    return word[:place] + middle + word[place + 1 :]


def likely(parameter: click.Parameter) -> st.SearchStrategy[str]:
    """Values that a parameter has a use for, or nearly."""
    kind = parameter.type
    if isinstance(kind, click.Choice):
        words = tuple(map(str, kind.choices))
        return st.sampled_from(words) | typos(words)
    if isinstance(kind, click.IntRange | click.types.IntParamType):
        return SMALL
    if isinstance(kind, click.FloatRange | click.types.FloatParamType):
        return SMALL | st.floats(width=32).map(str)
    if isinstance(kind, click.Path):
        return PATHS
    if isinstance(kind, Numbers):
        return st.lists(SMALL, min_size=1, max_size=5).map(",".join)
    if isinstance(kind, CommaSeparated):
        words = tuple(kind.choices) or (*CORE_NAMES, "Empty-8x8", "Empty-16x16", "success_rate")
        return st.lists(st.sampled_from(words), min_size=1, max_size=3).map(",".join) | typos(words)
    if isinstance(kind, Seeds | WhichCheckpoint):
        return SMALL | WORDS
    return WORDS | SMALL


@st.composite
def option_words(draw: st.DrawFn, option: click.Option) -> list[str]:
    """An option as it is typed: with a value, likely or not, or without."""
    name = draw(st.sampled_from(option_strings(option)))
    form = draw(st.sampled_from(["value"] * 8 + ["equals", "equals", "bare", "typo"]))
    value = draw(likely(option) | JUNK)
    if form == "typo":
        name = draw(typos((name,)))
    if form == "bare" or (option.is_flag and form != "equals"):
        return [name]
    return [f"{name}={value}"] if form == "equals" else [name, value]


@st.composite
def command_lines(draw: st.DrawFn, path: Command) -> list[str]:
    """A call of a command: mostly what it needs, and a few options in any order."""
    options = options_of(COMMANDS[path])
    words = list(NEEDED[path]) if draw(st.integers(0, 9)) else []
    if options:
        chosen = draw(st.lists(st.sampled_from(options), max_size=4))
        for option in chosen:
            given = draw(option_words(option))
            words = [*given, *words] if draw(st.booleans()) else [*words, *given]
    if not draw(st.integers(0, 7)):
        words.insert(draw(st.integers(0, len(words))), draw(JUNK))
    return [*path, *words]


@st.composite
def free_lines(draw: st.DrawFn) -> list[str]:
    """Any words in any order, most of them known somewhere."""
    commands = tuple(word for path in COMMANDS for word in path)
    options = tuple(n for c in COMMANDS.values() for o in options_of(c) for n in option_strings(o))
    known = st.sampled_from(commands) | st.sampled_from(options)
    words = known | JUNK | typos(commands) | typos(options)
    return draw(st.lists(words, max_size=7))
