"""The losses of PPO as pure functions. ``mask`` is true where a step counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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


def explained_variance(
    values: Tensor,
    targets: Tensor,
    mask: Tensor,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> float:
    """Share of the targets' variance the values explain: 1 perfect, 0 no better than the mean.

    Args:
        values: any shape.
        targets: same shape.
        mask: bool, same shape.
        total: adds up sums over all processes, where each has a part of the steps.
    """
    both = torch.stack([(targets - values)[mask], targets[mask]]).double()  # (2, steps)
    count = total(torch.tensor(float(both.shape[1]), dtype=torch.float64))
    mean = total(both.sum(1)) / count.clamp(min=1)
    residual, variance = total((both - mean.unsqueeze(1)).square().sum(1)).tolist()
    return 1 - residual / variance if variance > 0 else float("nan")
