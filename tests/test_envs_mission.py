"""Tokens of missions: the vocabulary covers every task, and the encoding is what it says."""

import hashlib
from itertools import product

import gymnasium
import minigrid  # noqa: F401  (registers its environments)
import numpy as np
import pytest

from envs import MISSION_LENGTH, VOCABULARY, Task, encode_mission
from envs.backends.gymnasium_backend import make_env, quiet
from envs.mission import PADDING, UNKNOWN

# The wave function collapse levels need packages that need not be installed; their one mission is
# tested below.
IDS = [
    id
    for id in gymnasium.registry
    if id.startswith(("MiniGrid-", "BabyAI-")) and not id.startswith("MiniGrid-WFC-")
]


def test_vocabulary_order_is_frozen() -> None:
    # Part of the checkpoint format. Appending a word must not change this prefix.
    first = "\n".join(VOCABULARY[:57]).encode()
    assert len(VOCABULARY) >= 57
    assert (
        hashlib.sha256(first).hexdigest()
        == "d6f117abc5da816549504d98a9b1ffad1c5bccec8b8893225ee9a674cdec58de"
    )


def test_vocabulary_has_no_duplicates() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_encode_mission_by_hand() -> None:
    tokens = encode_mission("Go to the red door, then zebra")
    words = ["go", "to", "the", "red", "door", ",", "then", "<unknown>"]
    assert tokens.tolist() == [
        *(VOCABULARY.index(word) for word in words),
        *[PADDING] * (MISSION_LENGTH - len(words)),
    ]
    assert tokens.dtype == np.int64


def test_encode_mission_empty_is_all_padding() -> None:
    assert (encode_mission("") == PADDING).all()


def test_encode_mission_cuts_what_is_too_long() -> None:
    assert encode_mission("go " * (MISSION_LENGTH + 5)).shape == (MISSION_LENGTH,)


def test_encode_mission_cached_array_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        encode_mission("go")[0] = 3


def test_longest_mission_of_babyai_fits_exactly() -> None:
    clause = "put the red ball in front of you next to the blue key in front of you"
    for joint in (", then", " after you"):
        text = f"{clause} and {clause}{joint} {clause} and {clause}"
        tokens = encode_mission(text)
        assert (tokens != PADDING).all()
        assert tokens[-1] == VOCABULARY.index("you")
        assert len(text.replace(",", " ,").split()) == MISSION_LENGTH


@pytest.mark.parametrize("id", IDS)
def test_every_environment_speaks_the_vocabulary(id: str) -> None:
    task = Task(id=id)
    env = make_env(task)
    with quiet(task):
        missions = [env.reset(seed=seed)[0]["mission"] for seed in range(5)]
    env.close()
    for mission in missions:
        assert UNKNOWN not in encode_mission(mission), mission


def test_babyai_grammar_speaks_the_vocabulary() -> None:
    # Every clause of BabyAI's instructions, so that rare words do not depend on sampled levels.
    colors = ["", "red ", "green ", "blue ", "purple ", "yellow ", "grey "]
    kinds = ["object", "box", "ball", "key", "door"]
    places = ["", " in front of you", " behind you", " on your left", " on your right"]
    for article, color, kind, place in product(["a ", "the "], colors, kinds, places):
        thing = article + color + kind + place
        for verb in ("open", "go to", "pick up", "put the key next to"):
            assert UNKNOWN not in encode_mission(f"{verb} {thing}, then open the door")
    assert UNKNOWN not in encode_mission("go to a box and open a door after you pick up a key")


def test_maze_mission_speaks_the_vocabulary() -> None:
    assert UNKNOWN not in encode_mission("traverse the maze to get to the goal")
