"""Multiply-adds of a step: exactly those of the equations, whatever computes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agents.config import PPOConfig
from agents.model.cost import _cudnn_rnn, multiply_adds
from agents.model.policy import RecurrentActorCritic
from core_cases import DeepLSTM, OwnLSTM, by_path
from envs import MISSION_LENGTH
from rims import scan_path

INPUT, HIDDEN, RIMS, ACTIONS = 29, 44, 4, 7


def make_policy(core: str, *, read_mission: bool = False, **settings: Any) -> RecurrentActorCritic:
    sizes = {"encoder_size": INPUT, "hidden_size": HIDDEN, "num_rims": RIMS, "k": 3}
    config = PPOConfig(**{"env": "MiniGrid-Empty-5x5-v0", "core": core, **sizes, **settings})
    return RecurrentActorCritic(config, ACTIONS, read_mission=read_mission)


def of_rims(gates: int) -> int:
    """Products in docs/notation.md, "One step of a RIM layer", in the order of that page."""
    unit = HIDDEN // RIMS
    read = 4 * unit  # A
    key, heads, comm = 64, 4, 16  # defaults of the layer
    compete = (
        RIMS * unit * key  # h[m] @ Wq[m]
        + INPUT * key  # x @ Wk
        + RIMS * key  # their product
        + INPUT * read  # x @ Wv
        + RIMS * read  # times p[m, 1]
    )
    update = RIMS * gates * unit * (read + unit)  # W_ih[m] @ u[m], W_hh[m] @ h[m]
    communicate = heads * (
        3 * RIMS * unit * comm  # WQ, WK, WV
        + 2 * RIMS * RIMS * comm  # scores, and what they weigh
        + 2 * RIMS * comm * unit  # W_gate, W_out
    )
    return compete + update + communicate


CORES = {
    "rim_lstm": of_rims(4),
    "rim_gru": of_rims(3),
    "lstm": 4 * HIDDEN * (INPUT + HIDDEN),
    "gru": 3 * HIDDEN * (INPUT + HIDDEN),
    "none": INPUT * HIDDEN,
    by_path(OwnLSTM): 4 * HIDDEN * (INPUT + HIDDEN),
    by_path(DeepLSTM): 4 * HIDDEN * (INPUT + HIDDEN) + 4 * HIDDEN * (HIDDEN + HIDDEN),
}
HEADS = HIDDEN * (ACTIONS + 1)
VIEW = 7 * 7 * (11 + 6 + 4)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("core", CORES)
def test_core_and_total_are_those_of_the_equations(core: str, learned: bool) -> None:
    cost = multiply_adds(make_policy(core, learned_initial_state=learned))
    assert cost.core == CORES[core]
    assert cost.total == VIEW * INPUT + CORES[core] + HEADS


def test_direction_and_mission_are_counted() -> None:
    cost = multiply_adds(make_policy("gru", direction=True, read_mission=True))
    reader = MISSION_LENGTH * 3 * 32 * (32 + 32)
    assert cost.total == (VIEW + 4 + 32) * INPUT + reader + cost.core + HEADS


@pytest.mark.parametrize("core", ["rim_lstm", "lstm"])
def test_type_of_the_agent_does_not_matter(core: str) -> None:
    policy = make_policy(core)
    assert multiply_adds(policy.double()) == multiply_adds(make_policy(core))


def test_a_way_that_was_forced_is_kept() -> None:
    policy = make_policy("rim_lstm")
    with scan_path("torch"):
        assert multiply_adds(policy).core == CORES["rim_lstm"]


def test_agent_and_random_numbers_are_left_as_they_were() -> None:
    policy = make_policy("rim_gru").train()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    state = torch.get_rng_state()
    multiply_adds(policy)
    assert policy.training
    assert all(torch.equal(before[n], value) for n, value in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cudnn_computes_in_one_operator_by_hand() -> None:
    """There is no such device here: the formula alone, for two layers with biases."""
    shapes = [(20, 3), (20, 5), (20,), (20,), (20, 5), (20, 5), (20,), (20,)]
    assert _cudnn_rnn((7, 2, 3), shapes) == 2 * 7 * 2 * (20 * 3 + 3 * 20 * 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("core", ["rim_lstm", "lstm", "gru"])
def test_counts_on_cuda_are_those_on_the_cpu(core: str) -> None:
    assert multiply_adds(make_policy(core).cuda()) == multiply_adds(make_policy(core))
