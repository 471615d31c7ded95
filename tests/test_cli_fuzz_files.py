"""Random files: whatever is in one is answered in one line or accepted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.config import PPOConfig
from command_line import ENV
from experiments.registry import TASKS
from fuzz_cases import FUZZ, Place, check, make_place, typos
from selection import short

EXAMPLES = 110

OTHER_ENV = "MiniGrid-Empty-6x6-v0"

#: Neither sizes that take minutes to build nor an end of the numbers.
INTEGERS = st.integers(-3, 70) | st.sampled_from([2**41, 2**63, 2**64, -(2**63), 10**30, 10**400])
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="/"), max_size=12)
WORDS = st.sampled_from(
    [ENV, "empty", "lstm", "lsmt", "nfm", "cpu", "a\nb", "a\0b", "1,3", "", "x"]
)
SCALARS = st.one_of(
    st.booleans(),
    INTEGERS,
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), -0.0]),
    TEXT,
    WORDS,
    st.datetimes(),
    st.dates(),
    st.times(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: the command that reads it, one that is right, and the names in it."""

    command: tuple[str, ...]
    right: dict[str, Any]
    names: dict[str, tuple[str, ...]]  # by table; "" is the top


def _fields(of: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(of))


_SUITE = ("name", "description", "train", "unseen", "chance", "preset")
_SWEEP = ("trials", "sampler", "sampler_seed", "seeds", "objective", "episodes")
_SEARCHED = {"low": 1, "high": 4}

KINDS = {
    "settings": Kind(
        ("train", "--run-dir", "new", "--config"),
        {"env": ENV, "num_envs": 8},
        {"": _fields(PPOConfig)},
    ),
    **{
        name: Kind(
            ("experiment", name, "--run-root", "new", "--config"),
            {"epochs": 2},
            {"": _fields(TASKS[name].config)},
        )
        for name in ("sort-of-clevr", "adding")
    },
    "suite": Kind(
        ("train", "--run-dir", "new", "--suite"),
        {"name": "own", "train": {"id": ENV}, "unseen": [OTHER_ENV], "preset": {"num_envs": 8}},
        {
            "": _SUITE,
            "train": ("id", "name", "gym_kwargs", "envpool_id", "envpool_kwargs"),
            "preset": tuple(n for n in _fields(PPOConfig) if n not in PPOConfig.not_of_a_preset),
        },
    ),
    "sweep": Kind(
        ("sweep", "--out", "new", "--config"),
        {
            "sweep": {"trials": 2},
            "settings": {"suite": "empty"},
            "search": {"epochs": _SEARCHED},
        },
        {
            "": ("sweep", "settings", "search"),
            "sweep": _SWEEP,
            "settings": _fields(PPOConfig),
            "search": _fields(PPOConfig),
        },
    ),
}


@pytest.fixture(scope="module")
def place(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from make_place(toy_run, tmp_path_factory.mktemp("fuzz-files"))


@st.composite
def documents(draw: st.DrawFn, kind: Kind) -> dict[str, Any]:
    """The right one with a few values replaced, added or taken out."""
    document: dict[str, Any] = {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in kind.right.items()
    }
    for _ in range(draw(st.integers(1, 2))):
        table = draw(st.sampled_from(tuple(kind.names)))
        place = document if not table else document.get(table)
        if not isinstance(place, dict):
            continue
        known = kind.names[table]
        name = draw(st.sampled_from(known) | st.sampled_from(known) | typos(known) | TEXT)
        if not draw(st.integers(0, 5)):
            place.pop(name, None)
        elif table == "search":
            ends = st.fixed_dictionaries({"low": SCALARS, "high": SCALARS})
            choices = st.fixed_dictionaries({"choices": st.lists(SCALARS, max_size=3)})
            place[name] = draw(ends | choices | VALUES)
        else:
            place[name] = draw(VALUES)
    return document


@st.composite
def contents(draw: st.DrawFn, kind: Kind) -> bytes:
    """Mostly a document; sometimes one that was cut short, or none at all."""
    form = draw(st.integers(0, 11))
    if form == 0:
        return draw(st.binary(max_size=60))
    if form == 1:
        depth = draw(st.sampled_from([3, 5000]))
        return draw(st.sampled_from([b"a = " + b"[" * depth, b"a = " + b"{a=" * depth]))
    if form == 2:
        return b"seed = " + b"9" * draw(st.sampled_from([20, 5000]))
    content = tomli_w.dumps(draw(documents(kind))).encode()
    return content[: draw(st.integers(0, len(content)))] if form == 3 else content


@pytest.mark.parametrize("name", short(KINDS, 0, -2, -1))
def test_random_files(place: Place, name: str) -> None:
    kind, answers = KINDS[name], list[int]()

    @settings(FUZZ, max_examples=EXAMPLES)
    @given(contents(kind))
    def run(content: bytes) -> None:
        (place.template / "fuzz.toml").write_bytes(content)
        (place.here / "fuzz.toml").write_bytes(content)
        result = check(place, *kind.command, "fuzz.toml")
        answers.append(0 if result is None else result.code)

    run()
    assert set(answers) == {0, 2}
    assert answers.count(0) > 1


@pytest.mark.parametrize(
    ("name", "table"), [(name, table) for name, kind in KINDS.items() for table in kind.names]
)
def test_a_misspelt_name_is_told_the_right_one(place: Place, name: str, table: str) -> None:
    kind = KINDS[name]
    for word in kind.names[table]:
        if len(word) < 3:
            continue
        misspelt = word[:-2] + word[-1] + word[-2]
        if misspelt == word:
            misspelt = word + "x"
        document = {key: dict(v) if isinstance(v, dict) else v for key, v in kind.right.items()}
        (document[table] if table else document)[misspelt] = 1
        (place.here / "fuzz.toml").write_text(tomli_w.dumps(document))
        result = check(place, *kind.command, "fuzz.toml")
        assert result is not None
        assert result.code == 2
        assert repr(misspelt) in result.err or f".{misspelt}" in result.err
        assert f"did you mean {word!r}" in result.err, result.err
