"""Losses of SNGAN (arXiv:1802.05957) and InfoMax-GAN (arXiv:2007.04589), pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    r"""Hinge loss of a discriminator (arXiv:1802.05957, Eq. 16).

    .. math:: \mathrm{mean}\,\max(0, 1 - D(x)) + \mathrm{mean}\,\max(0, 1 + D(G(z)))

    Args:
        real: scores of real images, any shape.
        fake: scores of generated images, any shape.

    Returns:
        A scalar.

    Example:
        >>> hinge_discriminator_loss(torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 0.0])).item()
        0.75
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator_loss(fake: Tensor) -> Tensor:
    r"""Loss of a generator against a hinge discriminator (arXiv:1802.05957, Eq. 17).

    .. math:: -\mathrm{mean}\, D(G(z))

    Args:
        fake: scores of generated images, any shape.

    Returns:
        A scalar.

    Example:
        >>> hinge_generator_loss(torch.tensor([-3.0, 1.0])).item()
        1.0
    """
    return -fake.mean()


def infomax_loss(local_features: Tensor, global_features: Tensor) -> Tensor:
    r"""InfoNCE: which local feature belongs to a global one (arXiv:2007.04589, section 3).

    .. math:: -\frac{1}{B P} \sum_{b,p} \log \frac{e^{l_{bp} \cdot g_b}}
              {e^{l_{bp} \cdot g_b} + \sum_{c \ne b} \sum_{q} e^{l_{cq} \cdot g_b}}

    over the B images of a batch and the P positions of their local features. The positions of
    another image are all negatives; the other positions of the same image are neither positive nor
    negative, as in the authors' code (which gives them a score of -10, not of minus infinity).
    InfoMax-GAN adds 0.2 of this to the losses of generator and discriminator.

    Args:
        local_features: projected, ``(B, R, y, x)``.
        global_features: projected, ``(B, R)``.

    Returns:
        A scalar, in nats; 0 for a batch of one.

    Raises:
        ValueError: if the two do not agree in B and R.

    Example:
        >>> round(infomax_loss(torch.zeros(2, 5, 3, 1), torch.zeros(2, 5)).exp().item(), 4)
        4.0
    """
    batch, size = local_features.shape[:2]
    if global_features.shape != (batch, size):
        raise ValueError(
            f"infomax_loss: global_features must be {(batch, size)}, B and R of local_features; "
            f"got {tuple(global_features.shape)}."
        )
    local = local_features.flatten(2)  # (B, R, P)
    scores = torch.einsum("br,crp->bcp", global_features, local)  # (B, B, P)
    own = torch.eye(batch, dtype=torch.bool, device=scores.device)
    positive = scores[own]  # (B, P)
    negative = scores.masked_fill(own.unsqueeze(-1), -math.inf).flatten(1)  # (B, B P)
    # softplus(negative - positive) = log(e^positive + e^negative) - positive
    return F.softplus(negative.logsumexp(-1, keepdim=True) - positive).mean()
