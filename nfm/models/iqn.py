"""Implicit quantile networks (arXiv:1806.06923) as a head, with the parts Rainbow adds."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfm.surroundings import refuse_checkpoint


class IQNOutput(NamedTuple):
    """Quantiles of the return of every action, and the fractions at which they were taken."""

    quantiles: Tensor  # (B, N, A)
    taus: Tensor  # (B, N), within [0, 1)


class NoisyLinear(nn.Module):
    r"""Linear layer with learned, factorised Gaussian noise (arXiv:1706.10295, Eq. 9 to 11).

    .. math:: y = (\mu^w + \sigma^w \odot f(\epsilon^{out}) f(\epsilon^{in})^\top) x
                  + \mu^b + \sigma^b \odot f(\epsilon^{out}), \qquad
              f(\epsilon) = \mathrm{sgn}(\epsilon) \sqrt{|\epsilon|}

    The noise stays the same until :meth:`resample`; in evaluation there is none. What is computed
    again for a gradient, by ``torch.utils.checkpoint``, takes the noise of that moment: resample
    after the backward pass.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        sigma: :math:`\sigma_0`; every deviation starts at ``sigma / sqrt(in_features)``. Default
            0.5, as in Rainbow.

    Shape:
        ``(..., in_features) -> (..., out_features)``

    Example:
        >>> layer = NoisyLinear(3, 5)
        >>> layer(torch.ones(2, 3)).shape
        torch.Size([2, 5])
    """

    #: f of the noise of each input and output, (in_features,) and (out_features,)
    input_noise: Tensor
    output_noise: Tensor

    def __init__(self, in_features: int, out_features: int, *, sigma: float = 0.5) -> None:
        super().__init__()
        self.sigma = sigma
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.weight_sigma = nn.Parameter(torch.empty(out_features, in_features))
        self.bias_sigma = nn.Parameter(torch.empty(out_features))
        self.register_buffer("input_noise", torch.zeros(in_features), persistent=False)
        self.register_buffer("output_noise", torch.zeros(out_features), persistent=False)
        self.reset_parameters()
        self.resample()

    def reset_parameters(self) -> None:
        r"""Means from :math:`U(-1/\sqrt{in}, 1/\sqrt{in})`, deviations as said above."""
        scale = 1 / math.sqrt(self.weight.shape[1])
        for mean in (self.weight, self.bias):
            nn.init.uniform_(mean, -scale, scale)
        for deviation in (self.weight_sigma, self.bias_sigma):
            nn.init.constant_(deviation, self.sigma * scale)

    def resample(self, *, generator: torch.Generator | None = None) -> None:
        """Draw new noise; ``generator`` is on the CPU, ``None`` (default) for torch's own."""
        for noise in (self.input_noise, self.output_noise):
            drawn = torch.randn(noise.shape, generator=generator)
            noise.copy_(drawn.sign() * drawn.abs().sqrt())

    def forward(self, input: Tensor) -> Tensor:
        """The noisy map in training mode, the map of the means otherwise."""
        output = F.linear(input, self.weight, self.bias)
        if not self.training:
            return output
        # (sigma * outer(out, in)) x = out * (sigma (in * x)): no noisy copy of the weights.
        # Copies are what the gradient keeps: the noise may be drawn anew before it is computed.
        noise = F.linear(input * self.input_noise.clone(), self.weight_sigma, self.bias_sigma)
        return output + self.output_noise.clone() * noise

    def extra_repr(self) -> str:
        """Sizes, as ``nn.Linear`` prints them."""
        out_features, in_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}"


class IQNHead(nn.Module):
    r"""Quantiles of returns at any fractions (arXiv:1806.06923, Eq. 4), dueling and noisy.

    .. math:: \phi_j(\tau) = \mathrm{ReLU}\Big(\sum_{i=0}^{n-1} \cos(\pi i \tau) w_{ij} + b_j\Big),
              \qquad Z_\tau(x, a) = V(h) + A(h, a) - \mathrm{mean}_{a'} A(h, a'),
              \quad h = \psi(x) \odot \phi(\tau)

    V and A are ``linear, ReLU, linear`` each (arXiv:1511.06581), of noisy layers
    (arXiv:1706.10295), as Rainbow (arXiv:1710.02298) combines them.

    Args:
        num_features: F, of the state.
        num_actions: A.
        hidden: units of each stream. Default 512.
        num_cosines: n. Default 64.
        noisy: noisy layers or ordinary ones. Default true.

    Shape:
        ``(B, F) -> IQNOutput((B, N, A), (B, N))``

    Example:
        >>> head = IQNHead(7, 3, hidden=5)
        >>> quantiles, taus = head(torch.zeros(2, 7), 11)
        >>> quantiles.shape, taus.shape
        (torch.Size([2, 11, 3]), torch.Size([2, 11]))
    """

    #: (n,): 0 ... n - 1
    orders: Tensor

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        *,
        hidden: int = 512,
        num_cosines: int = 64,
        noisy: bool = True,
    ) -> None:
        super().__init__()
        orders = torch.arange(num_cosines, dtype=torch.get_default_dtype())
        self.register_buffer("orders", orders, persistent=False)
        self.embedding = nn.Linear(num_cosines, num_features)
        linear = NoisyLinear if noisy else nn.Linear
        self.value = nn.Sequential(linear(num_features, hidden), nn.ReLU(), linear(hidden, 1))
        self.advantage = nn.Sequential(
            linear(num_features, hidden), nn.ReLU(), linear(hidden, num_actions)
        )

    def forward(
        self,
        features: Tensor,
        num_quantiles: int,
        *,
        generator: torch.Generator | None = None,
    ) -> IQNOutput:
        """Quantiles at ``num_quantiles`` fractions from U(0, 1), drawn for each state.

        Args:
            features: ``(B, F)``.
            num_quantiles: N.
            generator: of the fractions, on the CPU so that a seed means the same everywhere;
                ``None`` (default) for torch's own.
        """
        if generator is not None:  # torch's own is set back where something is computed again
            refuse_checkpoint("IQNHead", "fractions of a generator")
        taus = torch.rand(len(features), num_quantiles, generator=generator).to(features)
        return IQNOutput(self.at(features, taus), taus)

    def at(self, features: Tensor, taus: Tensor) -> Tensor:
        """Quantiles ``(B, N, A)`` of states ``(B, F)`` at the fractions ``(B, N)``."""
        cosines = (math.pi * taus.unsqueeze(-1) * self.orders).cos()  # (B, N, n)
        joined = features.unsqueeze(1) * F.relu(self.embedding(cosines))  # (B, N, F)
        advantage: Tensor = self.advantage(joined)  # (B, N, A)
        centred = advantage - advantage.mean(-1, keepdim=True)
        value: Tensor = self.value(joined)  # (B, N, 1)
        return value + centred

    def resample(self, *, generator: torch.Generator | None = None) -> None:
        """Draw new noise for all noisy layers, see :meth:`NoisyLinear.resample`."""
        for module in self.modules():
            if isinstance(module, NoisyLinear):
                module.resample(generator=generator)


def quantile_huber_loss(
    quantiles: Tensor, taus: Tensor, targets: Tensor, *, kappa: float = 1.0
) -> Tensor:
    r"""Quantile regression with a Huber loss (arXiv:1806.06923, Eq. 2 and 3).

    .. math:: \mathcal{L} = \sum_{i=1}^{N} \frac{1}{N'} \sum_{j=1}^{N'}
              |\tau_i - [\delta_{ij} < 0]| \frac{L_\kappa(\delta_{ij})}{\kappa}, \qquad
              \delta_{ij} = t_j - \theta_i

    with :math:`L_\kappa(\delta)` equal to :math:`\delta^2 / 2` up to :math:`|\delta| = \kappa` and
    :math:`\kappa (|\delta| - \kappa / 2)` beyond.

    Args:
        quantiles: :math:`\theta`, ``(B, N)``, of the actions taken.
        taus: the fractions at which they were taken, ``(B, N)``.
        targets: t, ``(B, N')``; no gradient passes into them.
        kappa: where the loss becomes linear, in units of return, above 0. Default 1.

    Returns:
        ``(B,)``, one loss per transition, so that replay can weight them.

    Raises:
        ValueError: if ``kappa`` is not positive.

    Example:
        >>> quantiles, taus, targets = torch.zeros(1, 1), torch.full((1, 1), 0.25), torch.ones(1, 1)
        >>> quantile_huber_loss(quantiles, taus, targets).tolist()
        [0.125]
    """
    if kappa <= 0:
        raise ValueError(f"quantile_huber_loss: kappa must be above 0; got {kappa}.")
    delta = targets.detach().unsqueeze(1) - quantiles.unsqueeze(2)  # (B, N, N')
    size = delta.abs()
    huber = torch.where(size <= kappa, 0.5 * delta.square(), kappa * (size - 0.5 * kappa))
    weight = (taus.unsqueeze(2) - (delta.detach() < 0).to(taus.dtype)).abs()
    return (weight * huber / kappa).mean(2).sum(1)
