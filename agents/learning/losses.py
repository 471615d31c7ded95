"""The loss of PPO, mostly with its gradient by hand, and how well values explain returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Taken(NamedTuple):
    """Data of a rollout's steps, all of one shape (...) with at least one axis."""

    actions: Tensor  # int64; (..., components) if they are not single numbers
    log_probs: Tensor  # of these actions, when they were taken
    advantages: Tensor
    targets: Tensor  # of the values
    valid: Tensor  # bool: the step counts


class LossSettings(NamedTuple):
    """The clip range of the policy's loss, and the weights of the other terms."""

    clip_range: float  # epsilon
    value_coefficient: float  # c_v
    entropy_coefficient: float  # c_e


class PPOLoss(NamedTuple):
    """The loss, and what is logged of it."""

    loss: Tensor  # scalar, the only one with a gradient
    means: Tensor  # (5,), in the order of MEANS
    log_ratio: Tensor  # (...), 0 where the step does not count


#: Names of ``PPOLoss.means``.
MEANS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


def ppo_loss(log_probs: Tensor, values: Tensor, taken: Taken, settings: LossSettings) -> PPOLoss:
    r"""The loss of PPO (arXiv:1707.06347, Eq. 9), a mean over the steps that count.

    .. math::
        L = \mathrm{mean}\,\bigl[-\min(\rho A,\ \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon)\,A)
        + \tfrac{c_v}{2} (V - R)^2 - c_e H(\pi)\bigr],
        \qquad \rho = \pi(a) / \pi_{\text{old}}(a)

    Autograd would spend some eighty small calls on it, more than the arithmetic of a small network
    takes; here value and gradient are computed together.

    Args:
        log_probs: log-probabilities of all actions, (..., actions), normalised.
        values: V (...).
        taken: the actions a, their log-probabilities under the old policy, A and R.
        settings: epsilon, c_v and c_e.

    All numbers are of one type, and there is no autocast. What a step that does not count holds
    has no effect as long as it is finite.

    Returns:
        The loss, 0 if no step counts; the three terms, each without its coefficient; the estimate
        of KL(old, new) that is never negative, rho - 1 - log rho; and the share of steps with a
        ratio that is further from 1 than epsilon.

    Example:
        >>> taken = Taken(torch.tensor([1]), torch.tensor([-0.7]), *torch.tensor([[2.0], [0.5]]),
        ...               torch.tensor([True]))
        >>> log_probs = torch.tensor([[0.5, 0.5]]).log()
        >>> loss = ppo_loss(log_probs, torch.zeros(1), taken, LossSettings(0.2, 0.5, 0.01)).loss
        >>> round(loss.item(), 3)  # -2.014 + 0.5 * 0.125 - 0.01 * log(2)
        -1.958
    """
    return PPOLoss(*_PPOLoss.apply(log_probs, values, taken, settings))  # type: ignore[no-untyped-call]


def ppo_loss_by_autograd(
    log_prob: Tensor, entropy: Tensor, values: Tensor, taken: Taken, settings: LossSettings
) -> PPOLoss:
    """The loss of :func:`ppo_loss` for any distribution of actions.

    Args:
        log_prob: log-probabilities or densities of the actions taken, (...).
        entropy: entropies of the distributions (...).
        values: V (...).
        taken: see there; the actions themselves are not used.
        settings: see there.

    Returns:
        As there.
    """
    epsilon, c_v, c_e = settings
    weight = taken.valid.to(values.dtype)  # of each step in the means
    weight = weight / weight.sum().clamp(min=1)
    # Steps that do not count have ratio 1: others could overflow, and infinity times 0 is NaN.
    log_ratio = (log_prob - taken.log_probs).masked_fill(~taken.valid, 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon) * taken.advantages
    each = torch.stack([
        -torch.minimum(ratio * taken.advantages, clipped),
        (values - taken.targets).square() / 2,
        entropy,
        ratio - 1 - log_ratio,
        ((ratio - 1).abs() > epsilon).to(values.dtype),
    ])  # fmt: skip
    means = each.flatten(1) @ weight.flatten()
    loss = means[0] + c_v * means[1] - c_e * means[2]
    return PPOLoss(loss, means.detach(), log_ratio.detach())


class _PPOLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_probs: Tensor, values: Tensor, taken: Taken, settings: LossSettings
    ) -> tuple[Tensor, ...]:
        actions, old, advantages, targets, valid = taken
        epsilon, c_v, c_e = settings
        actions = actions.unsqueeze(-1)
        weight = valid.to(values.dtype)  # of each step in the means
        weight /= weight.sum().clamp(min=1)
        # Steps that do not count have ratio 1: others could overflow, and infinity times 0 is NaN.
        log_ratio = (log_probs.gather(-1, actions).squeeze(-1) - old).masked_fill_(~valid, 0.0)
        ratio = log_ratio.exp()
        change = ratio - 1
        surrogate = ratio * advantages
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon) * advantages
        error = values - targets
        probs = log_probs.exp()
        p_log_p = probs * log_probs
        each = torch.stack([
            torch.minimum(surrogate, clipped).neg_(),
            error.square() / 2,
            -p_log_p.sum(-1),
            change - log_ratio,
            (change.abs() > epsilon).to(values.dtype),
        ])  # fmt: skip
        means = each.flatten(1) @ weight.flatten()

        # Inside the range both sides of the minimum are equal, and the gradient is the surrogate's.
        # NaN is not above the other side either, so it reaches the gradient and is found there.
        into_action = torch.where(surrogate > clipped, 0.0, surrogate * -weight)
        into_log_probs = p_log_p.add_(probs).mul_((c_e * weight).unsqueeze(-1))
        into_log_probs.scatter_add_(-1, actions, into_action.unsqueeze(-1))
        ctx.save_for_backward(into_log_probs, error.mul_(c_v * weight))
        ctx.mark_non_differentiable(means, log_ratio)
        return means[0] + c_v * means[1] - c_e * means[2], means, log_ratio

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        into_log_probs, into_values = ctx.saved_tensors
        return into_log_probs * grad_loss, into_values * grad_loss, None, None


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
