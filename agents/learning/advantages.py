"""Generalized advantage estimation, with terminated and truncated kept apart. Pure."""

from __future__ import annotations

import torch
from torch import Tensor


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    bootstrap_truncated: bool = True,
) -> Tensor:
    r"""Advantages by GAE (arXiv:1506.02438, Eq. 16).

    .. math:: \delta_t = r_t + \gamma\,(1 - term_t)\, V_{t+1} - V_t, \qquad
              A_t = \delta_t + \gamma\lambda\,(1 - end_t)\, A_{t+1}

    where ``end`` is terminated or truncated. A truncated episode bootstraps with
    ``values[t + 1]``, which therefore has to be the value of the *last observation of that
    episode*, as the environments here deliver it, not of the first of the next.

    Args:
        rewards: ``(T, E)``.
        values: ``(T + 1, E)``, the last row for the observation after the last step.
        terminated: bool ``(T, E)``, the episode ended by the task's rules.
        truncated: bool ``(T, E)``, the episode was cut by its step limit.
        gamma: discount.
        gae_lambda: decay; 0 is one-step temporal difference, 1 is Monte Carlo.
        bootstrap_truncated: false counts nothing after a truncation, like a termination.

    Returns:
        ``(T, E)``. Add ``values[:-1]`` for the targets of the value function.

    Example:
        >>> no = torch.zeros(2, 1, dtype=torch.bool)
        >>> generalized_advantages(
        ...     torch.ones(2, 1), torch.zeros(3, 1), no, no, gamma=1.0, gae_lambda=1.0
        ... ).flatten().tolist()
        [2.0, 1.0]
    """
    ended = terminated | truncated
    absorbing = terminated if bootstrap_truncated else ended
    next_values = values[1:].masked_fill(absorbing, 0.0)
    deltas = rewards + gamma * next_values - values[:-1]  # (T, E)
    carry = (gamma * gae_lambda) * (~ended).to(deltas.dtype)
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        running = deltas[t] + carry[t] * running
        advantages[t] = running
    return advantages
