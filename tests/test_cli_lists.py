"""Every list with commas, of every command: nothing between two of them, or twice, is refused."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from agents.commands.parsing.lists import COUNT, CommaList, Numbers, Seeds
from command_line import COMPARE, ENV, Rims, assert_one_line, tree
from fuzz_cases import COMMANDS, NEEDED, options_of

#: Options of text whose settings are lists, by command.
SETTINGS = {
    ("train", "--actions"): "left",
    ("experiment copying", "--test-blanks"): "5",
    ("experiment adding", "--test-lengths"): "5",
    ("experiment sequential-mnist", "--test-sides"): "5",
    ("experiment bouncing-balls", "--test-balls"): "5",
    ("experiment stacked-mnist", "--digits"): "3",
}

OPTIONS = {
    (" ".join(path), option.opts[0]): option.type
    for path, command in COMMANDS.items()
    for option in options_of(command)
    if isinstance(option.type, CommaList)
    and not (isinstance(option.type, Numbers) and option.multiple)
}


def one_of(kind: CommaList) -> str:
    choices = getattr(kind, "choices", None)
    return choices[0] if choices else "lstm" if getattr(kind, "check", None) else "7"


def test_all_lists_are_known() -> None:
    # of the experiments, and cores, seeds, tasks, metrics, batch, steps, kind, pass, processes
    assert len(OPTIONS) >= 20
    of_text = {
        (" ".join(path), option.opts[0])
        for path, command in COMMANDS.items()
        for option in options_of(command)
        if "comma" in (option.help or "") and not isinstance(option.type, CommaList)
    }
    # ... and what the classes of settings call lists
    assert of_text <= {*SETTINGS, *((name, "--actions") for name in ("compare",))}


@pytest.mark.parametrize("form", ["{0},,{0}x", "{0},", ",{0}", ",", " , ", "{0},{0}", "{0}, {0}"])
@pytest.mark.parametrize("place", [*OPTIONS, *SETTINGS], ids=" ".join)
def test_entry_that_is_empty_or_there_twice_is_refused(
    rims: Rims, tmp_path: Path, place: tuple[str, str], form: str
) -> None:
    command, option = place
    value = SETTINGS[place] if place in SETTINGS else one_of(OPTIONS[place])
    needed = [] if command == "train" else NEEDED[tuple(command.split())]
    call = [*command.split(), *needed, option, form.format(value)]
    line = assert_one_line(rims(*call, *(("--env", ENV) if command == "train" else ())))
    assert option in line
    assert tree(tmp_path / "here") == {}


def test_good_lists_are_as_before(rims: Rims) -> None:
    assert Seeds().convert("3, 7", None, None) == (3, 7)
    assert Seeds().convert("0-2,5", None, None) == (0, 1, 2, 5)
    assert Seeds().convert("2", None, None) == (0, 1)
    assert Numbers().convert(" 1 ,50", None, None) == (1, 50)
    assert Numbers(("a", "b")).convert("64,64", None, None) == (64, 64)  # each has its place
    assert Numbers(most=3).convert("3", None, None) == (3,)
    assert COUNT("3") == 3


@pytest.mark.parametrize("text", ["1 2", "٣", "0-3,2", "1,01", "3-1", "0", "1--2"])
def test_seeds_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Seeds().convert(text, None, None)


def test_message_says_where_and_what_to_do(rims: Rims) -> None:
    line = assert_one_line(rims(*COMPARE, "--cores", "rim_lstm,,lstm"))
    assert "'--cores': 'rim_lstm,,lstm' has an empty entry; name something" in line
    line = assert_one_line(rims(*COMPARE, "--seeds", "0-3,2"))
    assert "'--seeds': '0-3,2' names '2' twice; name each once." in line
