"""Proximal policy optimisation over sequences: one update from one rollout."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from agents.config import PPOConfig
from agents.learning.advantages import generalized_advantages
from agents.learning.losses import (
    MEANS,
    LossSettings,
    PPOLoss,
    Taken,
    explained_variance,
    ppo_loss,
    ppo_loss_by_autograd,
)
from agents.learning.rollout import Rollout, minibatch_indices
from agents.model.distributions import Categorical
from agents.model.policy import RecurrentActorCritic
from lab.running.guards import NotFinite, first_not_finite
from lab.running.world import World

#: Names and meaning of what :func:`update` returns, in the order they are logged.
UPDATE_METRICS = {
    "policy_loss": "clipped surrogate, mean over the update's minibatches",
    "value_loss": "half the squared error of the value function",
    "entropy": "of the policy, in nats",
    "approx_kl": "divergence of the new policy from the one that collected",
    "clip_fraction": "share of steps whose probability ratio was clipped",
    "explained_variance": "of the returns by the collected values",
    "gradient_norm": "before clipping, mean over minibatches",
    "ratio_error": "largest |ratio - 1| before the first optimiser step; rounding only",
}


def update(
    policy: RecurrentActorCritic,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    config: PPOConfig,
    generator: torch.Generator,
    world: World | None = None,
) -> dict[str, float]:
    """Train on one rollout (PPO, arXiv:1707.06347) for ``config.epochs`` epochs.

    Each minibatch is a set of whole environment columns, run as sequences from the state the core
    had when the rollout began; resets inside the sequences are replayed as they happened. Steps
    that only reset an environment count nowhere.

    Args:
        policy: is trained.
        optimizer: the optimizer of its parameters.
        rollout: the rollout of this process's environments.
        config: all settings.
        generator: draws the order of environments; in the same state in all processes.
        world: the processes that train together. Each step is down the gradient of the loss over
            the environments of all of them.

    Returns:
        The metrics of :data:`UPDATE_METRICS`, of all processes together.

    Raises:
        NotFinite: if a number that has to be finite is not; no step was made with it.
    """
    world = world or World()
    for name in ("rewards", "values"):
        if first_not_finite([(name, getattr(rollout, name))]):
            raise NotFinite(f"one of the rollout's {name}")
    rewards = rollout.rewards
    if config.reward_scale != 1:
        rewards = rewards * config.reward_scale
    advantages = generalized_advantages(
        rewards,
        rollout.values,
        rollout.terminated,
        rollout.truncated,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        bootstrap_truncated=config.bootstrap_truncated,
    )
    targets = advantages + rollout.values[:-1]
    advantages = normalize(advantages, rollout.valid, world)

    trained = [p for group in optimizer.param_groups for p in group["params"]]
    sums: dict[str, float] = defaultdict(float)
    num_minibatches = 0
    ratio_error = 0.0
    own = world.part(config.num_envs)
    for epoch in range(config.epochs):
        for envs in minibatch_indices(config.num_envs, config.minibatches, generator, own):
            envs = envs.to(advantages.device)
            first = epoch == 0 and num_minibatches == 0
            found = _loss(policy, rollout, advantages, targets, envs, config)
            if first:
                ratio_error = float((found.log_ratio.exp() - 1).abs().max())
            # Means over this process's steps to shares of means over those of all processes.
            counted = rollout.valid[:, envs].sum()
            share = counted / world.sum(counted.clone()).clamp(min=1) if world.size > 1 else 1.0
            loss = found.loss * share
            optimizer.zero_grad(set_to_none=False)
            loss.backward()  # type: ignore[no-untyped-call]
            for parameter in trained:
                world.sum(parameter.grad)
            norm = _clip(trained, config.max_grad_norm, loss, policy)
            optimizer.step()
            for name, value in zip(MEANS, (found.means * share).tolist(), strict=True):
                sums[name] += value
            sums["gradient_norm"] += norm / world.size
            num_minibatches += 1
    metrics = dict(zip(sums, _summed(sums.values(), world), strict=True))
    metrics = {name: value / num_minibatches for name, value in metrics.items()}
    metrics["explained_variance"] = explained_variance(
        rollout.values[:-1], targets, rollout.valid, world.sum
    )
    metrics["ratio_error"] = world.largest(ratio_error)
    return {name: metrics[name] for name in UPDATE_METRICS}


def _clip(trained: list[Tensor], limit: float, loss: Tensor, policy: nn.Module) -> float:
    """Scale gradients down to a norm of ``limit``; the norm they had.

    Raises:
        NotFinite: naming the loss, or a parameter whose gradient is broken.
    """
    try:
        return float(nn.utils.clip_grad_norm_(trained, limit, error_if_nonfinite=True))
    except RuntimeError:  # and nothing is scaled yet
        if not bool(loss.isfinite()):
            raise NotFinite("policy_loss, value_loss or entropy") from None
        broken = first_not_finite((name, p.grad) for name, p in policy.named_parameters())
        raise NotFinite(f"the gradient of {broken or 'all parameters together'}") from None


def _summed(values: Iterable[float], world: World) -> list[float]:
    summed: list[float] = world.sum(torch.tensor(list(values), dtype=torch.float64)).tolist()
    return summed


def normalize(advantages: Tensor, valid: Tensor, world: World | None = None) -> Tensor:
    """Shift and scale to mean 0 and deviation 1 over the valid steps of the whole rollout.

    Over the rollout rather than a minibatch: a minibatch can hold too few steps for a deviation.
    """
    world = world or World()
    counted = advantages[valid].double()
    number, total = _summed((counted.numel(), float(counted.sum())), world)
    if number < 2:
        return advantages
    mean = total / number
    (squares,) = _summed((float((counted - mean).square().sum()),), world)
    return (advantages - mean) / (math.sqrt(squares / (number - 1)) + 1e-8)


def _loss(
    policy: RecurrentActorCritic,
    rollout: Rollout,
    advantages: Tensor,
    targets: Tensor,
    envs: Tensor,
    config: PPOConfig,
) -> PPOLoss:
    """The loss of one minibatch of environments."""
    output = policy(
        rollout.observations.envs(envs),
        tuple(s[:, envs] for s in rollout.initial_state),
        rollout.episode_start[:, envs],
    )
    every = Taken(rollout.actions, rollout.log_probs, advantages, targets, rollout.valid)
    taken = Taken(*(part[:, envs] for part in every))
    settings = LossSettings(config.clip_range, config.value_coefficient, config.entropy_coefficient)
    if isinstance(policy.distribution, Categorical):
        return ppo_loss(output.parameters, output.values, taken, settings)
    log_prob = policy.distribution.log_prob(output.parameters, taken.actions)
    entropy = policy.distribution.entropy(output.parameters)
    return ppo_loss_by_autograd(log_prob, entropy, output.values, taken, settings)
