"""The losses of PPO written plainly, for autograd. ``mask`` is true where a step counts."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.learning.losses import LossSettings, Taken


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the true entries of ``mask``; zero if there are none."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def clipped_policy_loss(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    r"""Clipped surrogate (arXiv:1707.06347, Eq. 7), to be minimised.

    .. math:: L = -\mathrm{mean}\,\min(\rho A,\ \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon)\,A)

    Args:
        log_ratio: log of new over old action probability, any shape.
        advantages: same shape.
        mask: bool, same shape.
        clip_range: epsilon.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -masked_mean((ratio * advantages).minimum(clipped * advantages), mask)


def value_loss(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Half the mean squared error of the value function."""
    return 0.5 * masked_mean((values - targets).square(), mask)


def entropy(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy in nats of categorical distributions ``(..., actions)`` of log-probabilities."""
    return masked_mean(-(log_probs.exp() * log_probs).sum(-1), mask)


def approximate_kl(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Low-variance estimate of KL(old, new): mean of ratio - 1 - log ratio, never negative."""
    return masked_mean(log_ratio.exp() - 1 - log_ratio, mask)


def plain_ppo_loss(
    log_probs: Tensor, values: Tensor, taken: Taken, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """The loss, and the means that :func:`agents.learning.losses.ppo_loss` gives beside it."""
    epsilon, c_v, c_e = settings
    mask = taken.valid
    now = log_probs.gather(-1, taken.actions.unsqueeze(-1)).squeeze(-1)
    log_ratio = (now - taken.log_probs).masked_fill(~mask, 0.0)
    policy = clipped_policy_loss(log_ratio, taken.advantages, mask, epsilon)
    value = value_loss(values, taken.targets, mask)
    bonus = entropy(log_probs, mask)
    kl = approximate_kl(log_ratio, mask)
    clipped = masked_mean(((log_ratio.exp() - 1).abs() > epsilon).to(values.dtype), mask)
    return policy + c_v * value - c_e * bonus, torch.stack([policy, value, bonus, kl, clipped])
