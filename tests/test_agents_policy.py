"""The agent: what it outputs, how it acts, and that nothing in it is random but the actions."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from agents.config import PPOConfig
from agents.model.observations import Observations
from agents.model.policy import RecurrentActorCritic, count_parameters
from envs import MISSION_LENGTH
from lab.cores import CoreName

NAMES = get_args(CoreName)
NUM_STEPS, NUM_ENVS, NUM_ACTIONS = 4, 3, 7


def make_policy(core: str, **changes: Any) -> RecurrentActorCritic:
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_rims": 4, "k": 2, **changes}
    config = PPOConfig(env="MiniGrid-Empty-5x5-v0", core=core, **settings)
    return RecurrentActorCritic(config, NUM_ACTIONS, read_mission=False)


def make_observations(*lead: int) -> Observations:
    generator = torch.Generator().manual_seed(1)
    return Observations(
        torch.randint(0, 4, (*lead, 7, 7, 3), generator=generator, dtype=torch.uint8),
        torch.randint(0, 4, lead, generator=generator),
        torch.zeros(*lead, MISSION_LENGTH, dtype=torch.int64),
    )


NEVER = torch.zeros(NUM_STEPS, NUM_ENVS, dtype=torch.bool)


@pytest.mark.parametrize("core", NAMES)
def test_forward_gives_distributions_values_and_state(core: str) -> None:
    policy = make_policy(core)
    state = policy.initial_state(NUM_ENVS)
    output = policy(make_observations(NUM_STEPS, NUM_ENVS), state, NEVER)
    assert output.log_probs.shape == (NUM_STEPS, NUM_ENVS, NUM_ACTIONS)
    assert output.values.shape == (NUM_STEPS, NUM_ENVS)
    assert [part.shape for part in output.state] == [part.shape for part in state]
    total = output.log_probs.exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))  # float32 rounding of 7 terms


def test_actions_left_out_have_no_probability_of_their_own() -> None:
    policy = make_policy("lstm", actions="toggle,left")
    assert policy.actions == (0, 5)
    output = policy(make_observations(NUM_STEPS, NUM_ENVS), policy.initial_state(NUM_ENVS), NEVER)
    assert output.log_probs.shape[-1] == 2
    assert make_policy("lstm").actions == tuple(range(NUM_ACTIONS))
    config = PPOConfig(env="MiniGrid-Empty-5x5-v0", actions="left,drop")
    with pytest.raises(ValueError, match="actions must be of 3"):
        RecurrentActorCritic(config, 3, read_mission=False)


@pytest.mark.parametrize("core", NAMES)
def test_first_policy_is_almost_uniform(core: str) -> None:
    policy = make_policy(core)
    observations = make_observations(NUM_STEPS, NUM_ENVS)
    output = policy(observations, policy.initial_state(NUM_ENVS), NEVER)
    probabilities = output.log_probs.detach().exp()
    # The gain of the actor is 0.01; with features below 1 logits stay below 0.01 * sqrt(16).
    assert bool(((probabilities - 1 / NUM_ACTIONS).abs() < 0.02).all())
    assert float((probabilities - 1 / NUM_ACTIONS).abs().max()) > 0


@pytest.mark.parametrize("core", NAMES)
def test_nothing_but_actions_is_random(core: str) -> None:
    """In training mode too: a dropout would make probability ratios noise."""
    policy = make_policy(core).train()
    observations = make_observations(NUM_STEPS, NUM_ENVS)
    state = policy.initial_state(NUM_ENVS)
    first, second = (policy(observations, state, NEVER) for _ in range(2))
    assert torch.equal(first.log_probs, second.log_probs)
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.log_probs, policy.eval()(observations, state, NEVER).log_probs)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("core", NAMES)
def test_every_parameter_learns(core: str, learned: bool) -> None:
    policy = make_policy(core, k=3, learned_initial_state=learned)
    observations = make_observations(NUM_STEPS, NUM_ENVS)
    begin = NEVER.clone()
    begin[0] = True  # as in every first rollout; learned starts take part nowhere else
    output = policy(observations, policy.initial_state(NUM_ENVS), begin)
    (output.log_probs[..., 0].sum() + output.values.sum()).backward()
    idle = [n for n, p in policy.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert idle == []


def test_act_greedy_takes_the_most_probable_action() -> None:
    policy = make_policy("lstm")
    observations = make_observations(NUM_ENVS)
    state, never = policy.initial_state(NUM_ENVS), NEVER[0]
    with torch.no_grad():
        policy.actor.bias[5] = 1.0
    action, output = policy.act(observations, state, never, drawn=None)
    assert action.tolist() == [5] * NUM_ENVS
    assert output.log_probs.shape == (1, NUM_ENVS, NUM_ACTIONS)
    assert not output.values.requires_grad


def test_act_draws_from_the_policy() -> None:
    policy = make_policy("none")
    many = 4000
    one = make_observations(1)
    observations = Observations(*(part.expand(many, *part.shape[1:]) for part in one))
    with torch.no_grad():
        policy.actor.bias[:] = torch.arange(7.0) * 0.3
    action, output = policy.act(
        observations,
        policy.initial_state(many),
        torch.zeros(many, dtype=torch.bool),
        drawn=torch.rand(many, generator=torch.Generator().manual_seed(0)),
    )
    shares = torch.bincount(action, minlength=NUM_ACTIONS) / many
    # Five standard deviations of a share of 4000 draws are at most 0.04.
    assert float((shares - output.log_probs[0, 0].exp()).abs().max()) < 0.04


def test_act_depends_on_what_is_drawn_only() -> None:
    policy = make_policy("gru")
    observations = make_observations(NUM_ENVS)
    state, never = policy.initial_state(NUM_ENVS), NEVER[0]

    def draw(seed: int) -> list[int]:
        torch.manual_seed(torch.seed())
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(9, NUM_ENVS, generator=generator)
        many = [policy.act(observations, state, never, drawn=row)[0] for row in drawn]
        actions: list[int] = torch.cat(many).tolist()
        return actions

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_count_parameters_by_hand() -> None:
    policy = make_policy("none", encoder_size=24)
    encoder = (7 * 7 * 21) * 24 + 24
    core = 24 * 16 + 16
    heads = (16 * 7 + 7) + (16 + 1)
    assert count_parameters(policy) == encoder + core + heads
    policy.critic.requires_grad_(False)
    assert count_parameters(policy) == encoder + core + heads - 17
