"""Generalized advantages against a reference that looks at one episode of one environment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.learning.advantages import generalized_advantages


def reference(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
    bootstrap: bool,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The definition: a sum of discounted errors up to the end of the episode, step by step."""
    num_steps, num_envs = rewards.shape
    advantages = np.zeros((num_steps, num_envs))
    for env in range(num_envs):
        r = rewards[:, env].tolist()
        v = values[:, env].tolist()
        ends = terminated[:, env].tolist()
        cuts = truncated[:, env].tolist()
        for start in range(num_steps):
            weight = 1.0
            for t in range(start, num_steps):
                stop = ends[t] or (cuts[t] and not bootstrap)
                following = 0.0 if stop else v[t + 1]
                advantages[start, env] += weight * (r[t] + gamma * following - v[t])
                weight *= gamma * gae_lambda
                if ends[t] or cuts[t]:
                    break
    return advantages


def random_case(
    seed: int, num_steps: int, num_envs: int, rate: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, values, terminated, truncated."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(num_steps, num_envs, generator=generator, dtype=torch.float64)
    values = torch.randn(num_steps + 1, num_envs, generator=generator, dtype=torch.float64)
    draw = torch.rand(num_steps, num_envs, generator=generator)
    return rewards, values, draw < rate, (draw >= rate) & (draw < 2 * rate)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_steps=st.integers(1, 13),
    num_envs=st.integers(1, 5),
    rate=st.sampled_from([0.0, 0.1, 0.3, 0.5]),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    gae_lambda=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    bootstrap=st.booleans(),
)
def test_equals_the_definition(
    seed: int,
    num_steps: int,
    num_envs: int,
    rate: float,
    gamma: float,
    gae_lambda: float,
    bootstrap: bool,
) -> None:
    case = random_case(seed, num_steps, num_envs, rate)
    result = generalized_advantages(
        *case, gamma=gamma, gae_lambda=gae_lambda, bootstrap_truncated=bootstrap
    )
    expected = reference(*case, gamma, gae_lambda, bootstrap)
    # Double precision and at most 13 terms: only the order of the sum differs.
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-12)


def test_lambda_zero_is_the_one_step_error() -> None:
    rewards, values, terminated, truncated = random_case(1, 9, 4, 0.2)
    result = generalized_advantages(
        rewards, values, terminated, truncated, gamma=0.9, gae_lambda=0.0
    )
    expected = rewards + 0.9 * values[1:] * ~terminated - values[:-1]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_lambda_one_is_the_discounted_return_less_the_value() -> None:
    rewards, values, _, _ = random_case(2, 9, 4, 0.0)
    never = torch.zeros(9, 4, dtype=torch.bool)
    result = generalized_advantages(rewards, values, never, never, gamma=0.9, gae_lambda=1.0)
    returns = values[-1].clone()
    for t in reversed(range(9)):
        returns = rewards[t] + 0.9 * returns
        torch.testing.assert_close(result[t], returns - values[t], rtol=0, atol=1e-12)


def one_env(values: list[float], ended_at: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards of 1, an end at one step."""
    end = torch.zeros(len(values) - 1, 1, dtype=torch.bool)
    end[ended_at] = True
    never = torch.zeros_like(end)
    return torch.ones(len(values) - 1, 1), torch.tensor(values).unsqueeze(-1), end, never


def test_truncation_bootstraps_with_the_value_of_the_last_observation() -> None:
    # By hand, gamma 0.5, lambda 1, cut after step 1, values 10, 20, 40, 80:
    # A_1 = 1 + 0.5 * 40 - 20 = 1;  A_0 = 1 + 0.5 * 20 - 10 + 0.5 * A_1 = 1.5
    # A_2 = 1 + 0.5 * 80 - 40 = 1
    rewards, values, end, never = one_env([10, 20, 40, 80], 1)
    cut = generalized_advantages(rewards, values, never, end, gamma=0.5, gae_lambda=1.0)
    assert cut.flatten().tolist() == [1.5, 1.0, 1.0]


@pytest.mark.parametrize("how", ["terminated", "truncated without bootstrap"])
def test_nothing_counts_after_an_absorbing_end(how: str) -> None:
    # A_1 = 1 - 20 = -19;  A_0 = 1 + 0.5 * 20 - 10 + 0.5 * A_1 = -8.5
    rewards, values, end, never = one_env([10, 20, 40, 80], 1)
    flags = (end, never) if how == "terminated" else (never, end)
    result = generalized_advantages(
        rewards, values, *flags, gamma=0.5, gae_lambda=1.0, bootstrap_truncated=how == "terminated"
    )
    assert result.flatten().tolist() == [-8.5, -19.0, 1.0]


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_nothing_leaks_across_an_end(how: str) -> None:
    rewards, values, end, never = one_env([10, 20, 40, 80, 160], 1)
    flags = (end, never) if how == "terminated" else (never, end)
    before = generalized_advantages(rewards, values, *flags, gamma=0.9, gae_lambda=0.9)
    rewards[2:], values[3:] = 1000, -1000
    after = generalized_advantages(rewards, values, *flags, gamma=0.9, gae_lambda=0.9)
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2:], after[2:])


def test_nothing_leaks_between_environments() -> None:
    rewards, values, terminated, truncated = random_case(3, 7, 5, 0.2)
    alone = [
        generalized_advantages(
            rewards[:, [env]],
            values[:, [env]],
            terminated[:, [env]],
            truncated[:, [env]],
            gamma=0.9,
            gae_lambda=0.8,
        )
        for env in range(5)
    ]
    together = generalized_advantages(
        rewards, values, terminated, truncated, gamma=0.9, gae_lambda=0.8
    )
    # A few products and sums of single numbers per step, in vectors or alone.
    torch.testing.assert_close(torch.cat(alone, dim=1), together, rtol=0, atol=1e-12)


def test_arguments_are_left_as_they_were() -> None:
    case = random_case(4, 5, 3, 0.3)
    copies = [part.clone() for part in case]
    generalized_advantages(*case, gamma=0.9, gae_lambda=0.9)
    assert all(torch.equal(a, b) for a, b in zip(case, copies, strict=True))
