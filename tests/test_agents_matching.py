"""Hidden sizes that give cores equally many parameters: judged by building both."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from agents.config import PPOConfig
from agents.model.cores import RecurrentCore
from agents.model.matching import core_parameters, matched_hidden_size
from agents.model.policy import count_parameters
from core_cases import OwnLayers, by_path

NAMES = ("rim_lstm", "rim_gru", "lstm", "gru")
CASES = [(*pair, size) for pair in permutations(NAMES, 2) for size in (64, 128, 256)]

#: Four mechanisms allow a core only every fourth size; these have none within 2 %.
OUT_OF_REACH = [
    ("rim_lstm", "rim_gru", 64),
    ("rim_lstm", "lstm", 64),
    ("rim_gru", "rim_lstm", 64),
    ("rim_gru", "lstm", 128),
]


def make_config(core: str, **settings: Any) -> PPOConfig:
    return PPOConfig(**{"env": "MiniGrid-Empty-5x5-v0", "core": core, **settings})


def built(config: PPOConfig) -> int:
    """The parameters of a real core."""
    return count_parameters(RecurrentCore(config.encoder_size, config))


@pytest.mark.parametrize(
    ("core", "other", "size"), [case for case in CASES if case not in OUT_OF_REACH]
)
def test_matched_cores_differ_by_at_most_two_percent(core: str, other: str, size: int) -> None:
    config, reference = make_config(core), make_config(other, hidden_size=size)
    found = matched_hidden_size(config, reference)
    target = built(reference)

    def distance(hidden_size: int) -> int:
        return abs(built(replace(config, hidden_size=hidden_size)) - target)

    assert distance(found) <= 0.02 * target
    step = config.num_rims if core.startswith("rim") else 1
    assert found % step == 0
    assert distance(found) < min(distance(found - step), distance(found + step))


@pytest.mark.parametrize(("core", "other", "size"), OUT_OF_REACH)
def test_what_cannot_be_matched_is_refused_with_the_nearest(
    core: str, other: str, size: int
) -> None:
    config, reference = make_config(core), make_config(other, hidden_size=size)
    with pytest.raises(ValueError, match=r"the nearest is") as caught:
        matched_hidden_size(config, reference)
    message = str(caught.value)
    assert "\n" not in message
    target = built(reference)
    assert f"which has {target}:" in message
    assert message.endswith(f" Name {core!r} first, or take another --hidden-size.")
    (nearest,) = map(int, re.findall(r"with hidden size (\d+)\.", message))
    for hidden_size in (nearest - config.num_rims, nearest, nearest + config.num_rims):
        assert abs(built(replace(config, hidden_size=hidden_size)) - target) > 0.02 * target


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("core", [*NAMES, "none"])
def test_parameters_are_counted_as_of_a_real_core(core: str, learned: bool) -> None:
    config = make_config(core, hidden_size=44, encoder_size=31, learned_initial_state=learned)
    assert core_parameters(config) == built(config)


@pytest.mark.parametrize("core", [*NAMES])
def test_a_core_matches_itself(core: str) -> None:
    reference = make_config(core, hidden_size=192)
    assert matched_hidden_size(replace(reference, hidden_size=4), reference) == 192


def test_the_sizes_of_both_encoders_count() -> None:
    reference = make_config("gru", encoder_size=300, hidden_size=100)
    config = make_config("lstm", encoder_size=20)
    found = matched_hidden_size(config, reference)
    assert abs(built(replace(config, hidden_size=found)) / built(reference) - 1) <= 0.02
    assert found != matched_hidden_size(replace(config, encoder_size=300), reference)


def test_a_class_of_ones_own_can_be_matched() -> None:
    reference = make_config("rim_gru", hidden_size=64)
    config = make_config(by_path(OwnLayers))
    found = matched_hidden_size(config, reference)
    assert abs(built(replace(config, hidden_size=found)) / built(reference) - 1) <= 0.02


def test_memoryless_control_keeps_its_size() -> None:
    reference = make_config("lstm", hidden_size=64)
    assert matched_hidden_size(make_config("none", hidden_size=77), reference) == 77
    with pytest.raises(ValueError, match="no recurrent parameters"):
        matched_hidden_size(reference, make_config("none"))


def test_large_cores_are_neither_allocated_nor_slow() -> None:
    reference = make_config("rim_lstm", hidden_size=2**20)  # 22 TB
    config = make_config("rim_gru")
    matched_hidden_size(config, make_config("lstm", hidden_size=256))  # imports are not timed
    began = time.perf_counter()
    found = matched_hidden_size(config, reference)
    # 0.1 s alone on the machine; the bound leaves room for other work on it.
    assert time.perf_counter() - began < 2
    assert abs(core_parameters(replace(config, hidden_size=found)) / 5.5e12 - 1) < 0.05
