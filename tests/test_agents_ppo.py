"""One update: what counts, what does not, and that it moves the policy the right way."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from agents.config import PPOConfig
from agents.learning.ppo import UPDATE_METRICS, _clip, normalize, update
from agents.learning.rollout import Rollout, Runner, collect
from agents.model.policy import RecurrentActorCritic
from envs import Task, make_vector_env
from lab.cores import CoreName
from tolerances import RATIO_ERROR, rounding

NAMES = get_args(CoreName)
NUM_ENVS, NUM_STEPS = 8, 20
SHORT = Task(id="MiniGrid-Empty-Random-5x5-v0", gym_kwargs={"max_steps": 7})


def make_config(core: str = "lstm", **changes: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "num_envs": NUM_ENVS,
        "minibatches": 2,
        "epochs": 2,
        "hidden_size": 16,
        "num_rims": 4,
        "k": 2,
        **changes,
    }
    return PPOConfig(env=SHORT.id, core=core, **settings)


def make_policy(config: PPOConfig) -> RecurrentActorCritic:
    torch.manual_seed(0)
    policy = RecurrentActorCritic(config, 7, read_mission=False)
    with torch.no_grad():
        policy.actor.weight.mul_(100)
    return policy


def make_rollout(policy: RecurrentActorCritic) -> Rollout:
    """The second rollout, so that it starts in the middle of episodes."""
    with make_vector_env(SHORT, NUM_ENVS, 0, "gymnasium") as env:
        runner = Runner(env, policy, torch.Generator().manual_seed(0))
        collect(runner, NUM_STEPS)
        rollout, _ = collect(runner, NUM_STEPS)
    assert int((~rollout.valid).sum()) >= NUM_ENVS
    return rollout


def train_on(
    policy: RecurrentActorCritic, rollout: Rollout, config: PPOConfig, seed: int = 0
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Update a copy; return the metrics and its weights."""
    policy = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3, eps=1e-5)
    metrics = update(policy, optimizer, rollout, config, torch.Generator().manual_seed(seed))
    return metrics, policy.state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("core", NAMES)
def test_update_moves_every_weight_and_reports_its_metrics(core: str) -> None:
    config = make_config(core)
    policy = make_policy(config)
    before = copy.deepcopy(policy.state_dict())
    metrics, after = train_on(policy, make_rollout(policy), config)
    assert list(metrics) == list(UPDATE_METRICS)
    assert all(isinstance(value, float) for value in metrics.values())
    assert metrics["ratio_error"] < RATIO_ERROR
    assert metrics["gradient_norm"] > 0
    assert 0 <= metrics["clip_fraction"] <= 1
    assert metrics["approx_kl"] > 0  # after the first minibatch the policy has moved
    assert [name for name in after if torch.equal(after[name], before[name])] == []
    assert all(bool(weight.isfinite().all()) for weight in after.values())


@pytest.mark.parametrize("core", NAMES)
def test_update_twice_from_the_same_start_is_the_same(core: str) -> None:
    config = make_config(core)
    policy = make_policy(config)
    rollout = make_rollout(policy)
    first_metrics, first = train_on(policy, rollout, config)
    second_metrics, second = train_on(policy, rollout, config)
    _, other = train_on(policy, rollout, config, seed=1)
    assert first_metrics == second_metrics
    assert same(first, second)
    assert not same(first, other)


def test_wrong_log_probs_show_in_the_ratio_error() -> None:
    config = make_config(minibatches=1)
    policy = make_policy(config)
    rollout = make_rollout(policy)
    step, env = rollout.valid.nonzero()[5]
    rollout.log_probs[step, env] -= 0.01
    metrics, _ = train_on(policy, rollout, config)
    # A stored probability 1 % too small: the ratio is e**0.01.
    assert metrics["ratio_error"] == pytest.approx(0.01005, rel=1e-2)


@pytest.mark.parametrize("core", NAMES)
@pytest.mark.parametrize("field", ["rewards", "actions", "log_probs"])
def test_steps_that_only_reset_do_not_count(core: str, field: str) -> None:
    config = make_config(core)
    policy = make_policy(config)
    rollout = make_rollout(policy)
    metrics, weights = train_on(policy, rollout, config)
    changed = getattr(rollout, field).clone()
    if field == "actions":
        changed[~rollout.valid] = (changed[~rollout.valid] + 3) % 7
    else:
        changed[~rollout.valid] = torch.linspace(-50, 50, int((~rollout.valid).sum()))
    changed_metrics, changed_weights = train_on(
        policy, rollout._replace(**{field: changed}), config
    )
    assert same(weights, changed_weights)
    assert metrics == changed_metrics


@pytest.mark.parametrize("field", ["rewards", "actions", "log_probs"])
def test_steps_that_count_do(field: str) -> None:
    """The control of the test above: one valid entry changes the result."""
    config = make_config()
    policy = make_policy(config)
    rollout = make_rollout(policy)
    _, weights = train_on(policy, rollout, config)
    changed = getattr(rollout, field).clone()
    step, env = rollout.valid.nonzero()[3]
    changed[step, env] = (changed[step, env] + 1) % 7 if field == "actions" else -3.0
    _, changed_weights = train_on(policy, rollout._replace(**{field: changed}), config)
    assert not same(weights, changed_weights)


def test_update_makes_rewarded_actions_more_probable() -> None:
    config = make_config(gamma=0.0, entropy_coefficient=0.0, epochs=4)
    policy = make_policy(config)
    rollout = make_rollout(policy)
    rewarded = rollout._replace(rewards=(rollout.actions == 2).float() * rollout.valid)

    def probability(weights: dict[str, Tensor]) -> float:
        probe = copy.deepcopy(policy)
        probe.load_state_dict(weights)
        with torch.no_grad():
            output = probe(rollout.observations, rollout.initial_state, rollout.episode_start)
        return float(output.log_probs[..., 2].exp().mean())

    before = probability(policy.state_dict())
    _, weights = train_on(policy, rewarded, config)
    _, punished = train_on(policy, rewarded._replace(rewards=-rewarded.rewards), config)
    assert probability(punished) < before < probability(weights)


def test_gradient_is_scaled_down_to_its_limit() -> None:
    config = make_config(minibatches=1, epochs=1, max_grad_norm=1e-3)
    policy = make_policy(config)
    rollout = make_rollout(policy)
    policy = copy.deepcopy(policy)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten().clone() for p in policy.parameters()])
    metrics = update(policy, optimizer, rollout, config, torch.Generator())
    after = torch.cat([p.detach().flatten() for p in policy.parameters()])
    assert metrics["gradient_norm"] > 1e-3
    # One step of size 1 is the gradient itself; weights near 1 round at 1e-7 each.
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-2)


# Normalising ------------------------------------------------------------------------------------


def test_normalized_advantages_have_mean_zero_and_deviation_one() -> None:
    generator = torch.Generator().manual_seed(0)
    advantages = 5 + 3 * torch.randn(9, 6, generator=generator)
    valid = torch.rand(9, 6, generator=generator) < 0.7
    result = normalize(advantages, valid)[valid]
    # Of sums of single numbers, counted in deviations of which the largest has some.
    bound = rounding(torch.float32, int(valid.sum())) * float(advantages.abs().max()) / 3
    assert float(result.mean()) == pytest.approx(0, abs=bound)
    assert float(result.std()) == pytest.approx(1, abs=bound)
    other = advantages.masked_fill(~valid, 1e6)
    assert torch.equal(normalize(other, valid)[valid], result)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_valid_steps_to_normalize_give_no_nan(count: int) -> None:
    valid = torch.zeros(2, 2, dtype=torch.bool)
    valid.view(-1)[:count] = True
    assert bool(normalize(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), valid).isfinite().all())


def test_equal_advantages_normalize_to_zero() -> None:
    valid = torch.ones(3, 2, dtype=torch.bool)
    assert normalize(torch.full((3, 2), 4.0), valid).tolist() == [[0.0, 0.0]] * 3


def test_update_from_a_single_step_stays_finite() -> None:
    config = make_config(num_envs=1, minibatches=1)
    policy = make_policy(config)
    with make_vector_env(SHORT, 1, 0, "gymnasium") as env:
        rollout, _ = collect(Runner(env, policy, torch.Generator().manual_seed(0)), 1)
    _, weights = train_on(policy, rollout, config)
    assert all(bool(weight.isfinite().all()) for weight in weights.values())


@pytest.mark.parametrize("limit", [1e-3, 0.5, 1e3])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 50.0])
def test_gradients_are_clipped_as_by_pytorch(limit: float, scale: float) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 5)
    trained: list[torch.Tensor] = list(layer.parameters())
    gradients = [scale * torch.randn_like(parameter) for parameter in trained]

    def given() -> list[torch.Tensor]:
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient.clone()
        return trained

    expected = float(torch.nn.utils.clip_grad_norm_(given(), limit))
    clipped = [parameter.grad for parameter in trained]
    assert _clip(given(), limit, torch.zeros(()), layer) == expected
    for parameter, gradient in zip(trained, clipped, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
