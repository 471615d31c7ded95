"""Proximal policy optimisation over sequences: one update from one rollout."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from agents.advantages import generalized_advantages
from agents.config import PPOConfig
from agents.losses import (
    approximate_kl,
    clipped_policy_loss,
    entropy,
    explained_variance,
    masked_mean,
    value_loss,
)
from agents.policy import RecurrentActorCritic
from agents.rollout import Rollout, minibatch_indices

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
) -> dict[str, float]:
    """Train on one rollout (PPO, arXiv:1707.06347) for ``config.epochs`` epochs.

    Each minibatch is a set of whole environment columns, run as sequences from the state the core
    had when the rollout began; resets inside the sequences are replayed as they happened. Steps
    that only reset an environment count nowhere.

    Returns:
        The metrics of :data:`UPDATE_METRICS`.
    """
    advantages = generalized_advantages(
        rollout.rewards,
        rollout.values,
        rollout.terminated,
        rollout.truncated,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        bootstrap_truncated=config.bootstrap_truncated,
    )
    targets = advantages + rollout.values[:-1]
    advantages = normalize(advantages, rollout.valid)

    trained = [p for group in optimizer.param_groups for p in group["params"]]
    sums: dict[str, float] = defaultdict(float)
    num_minibatches = 0
    ratio_error = 0.0
    for epoch in range(config.epochs):
        for envs in minibatch_indices(config.num_envs, config.minibatch_envs, generator):
            envs = envs.to(advantages.device)
            first = epoch == 0 and num_minibatches == 0
            parts, log_ratio = _losses(policy, rollout, advantages, targets, envs, config)
            if first:
                ratio_error = float((log_ratio.exp() - 1).abs().max())
            loss = (
                parts["policy_loss"]
                + config.value_coefficient * parts["value_loss"]
                - config.entropy_coefficient * parts["entropy"]
            )
            optimizer.zero_grad(set_to_none=False)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
            optimizer.step()
            for name, value in parts.items():
                sums[name] += float(value.detach())
            sums["gradient_norm"] += float(norm)
            num_minibatches += 1
    metrics = {name: value / num_minibatches for name, value in sums.items()}
    metrics["explained_variance"] = explained_variance(rollout.values[:-1], targets, rollout.valid)
    metrics["ratio_error"] = ratio_error
    return {name: metrics[name] for name in UPDATE_METRICS}


def normalize(advantages: Tensor, valid: Tensor) -> Tensor:
    """Shift and scale to mean 0 and deviation 1 over the valid steps of the whole rollout.

    Over the rollout rather than a minibatch: a minibatch can hold too few steps for a deviation.
    """
    counted = advantages[valid]
    if counted.numel() < 2:
        return advantages
    return (advantages - counted.mean()) / (counted.std() + 1e-8)


def _losses(
    policy: RecurrentActorCritic,
    rollout: Rollout,
    advantages: Tensor,
    targets: Tensor,
    envs: Tensor,
    config: PPOConfig,
) -> tuple[dict[str, Tensor], Tensor]:
    """Loss terms and statistics of one minibatch of environments, and the log ratio."""
    output = policy(
        rollout.observations.envs(envs),
        tuple(s[:, envs] for s in rollout.initial_state),
        rollout.episode_start[:, envs],
    )
    valid = rollout.valid[:, envs]
    actions = rollout.actions[:, envs].unsqueeze(-1)
    log_probs = output.log_probs.gather(-1, actions).squeeze(-1)  # (T, e)
    # Steps that only reset an environment have no ratio: 0 keeps them out of every statistic.
    log_ratio = (log_probs - rollout.log_probs[:, envs]).masked_fill(~valid, 0.0)
    parts = {
        "policy_loss": clipped_policy_loss(
            log_ratio, advantages[:, envs], valid, config.clip_range
        ),
        "value_loss": value_loss(output.values, targets[:, envs], valid),
        "entropy": entropy(output.log_probs, valid),
    }
    with torch.no_grad():
        parts["approx_kl"] = approximate_kl(log_ratio, valid)
        clipped = (log_ratio.exp() - 1).abs() > config.clip_range
        parts["clip_fraction"] = masked_mean(clipped.to(log_ratio.dtype), valid)
    return parts, log_ratio.detach()
