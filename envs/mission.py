"""Missions as token ids: a fixed vocabulary, so that every policy can read every task."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["MISSION_LENGTH", "PADDING", "UNKNOWN", "VOCABULARY", "encode_mission", "words_of"]

PADDING: Final = 0
UNKNOWN: Final = 1

# Append only. A token's index is a row of the embedding that is stored in checkpoints: reordering
# or removing a word would silently change what a trained policy reads.
# fmt: off
VOCABULARY: Final[tuple[str, ...]] = (
    "<pad>", "<unknown>",
    ",", "a", "after", "and", "at", "avoid", "ball", "behind", "blue", "box", "door", "end",
    "fetch", "find", "from", "front", "get", "go", "goal", "green", "grey", "hallway", "in",
    "key", "lava", "left", "matching", "maze", "must", "near", "next", "object", "of", "on",
    "open", "opening", "pick", "purple", "put", "reach", "red", "right", "room", "rooms",
    "square", "the", "then", "to", "traverse", "unlock", "up", "use", "yellow", "you", "your",
)
# fmt: on
"""Every word of the missions of MiniGrid and BabyAI; index 0 is padding, index 1 any other word."""

# The longest BabyAI mission: four times "put the red ball in front of you next to the blue key in
# front of you" (17 tokens), joined by two "and" and one ", then" or "after you".
MISSION_LENGTH: Final = 4 * 17 + 2 * 1 + 2
"""Tokens per mission, L. Longer missions are cut, shorter ones padded at the end."""

_INDEX: Final = {word: index for index, word in enumerate(VOCABULARY) if index > UNKNOWN}


def words_of(mission: str) -> list[str]:
    """The words of a mission as they are looked up."""
    return mission.lower().replace(",", " , ").split()


@lru_cache(maxsize=4096)
def encode_mission(mission: str) -> NDArray[np.int64]:
    """Token ids of a mission; case is ignored and a comma is a token of its own.

    Args:
        mission: the sentence an environment gives, possibly empty.

    Returns:
        Array (L,), padded with 0. It is cached and therefore read-only: copy it to change it.

    >>> [VOCABULARY[token] for token in encode_mission("open the door, then go")[:7]]
    ['open', 'the', 'door', ',', 'then', 'go', '<pad>']
    """
    words = words_of(mission)[:MISSION_LENGTH]
    tokens = np.full(MISSION_LENGTH, PADDING, dtype=np.int64)  # (L,)
    tokens[: len(words)] = [_INDEX.get(word, UNKNOWN) for word in words]
    tokens.flags.writeable = False
    return tokens
