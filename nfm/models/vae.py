"""Convolutional variational autoencoder (arXiv:1312.6114), encoder plain or with NFM."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfm.network import NFMOptions, trunk
from nfm.surroundings import refuse_checkpoint

#: NFM in the encoder, after each stage in two passes. arXiv:2010.08012 names VAE encoders without
#: giving settings; these are those of its small convolutional networks.
VAE_NFM: NFMOptions = {
    "passes": 2,
    "key_size": 16,
    "value_size": 16,
    "num_heads": 4,
    "top_k": 5,
    "rescale": "space_to_depth",
    "batch_norm": True,
}

#: Distribution of a pixel given the latent vector.
Likelihood = Literal["bernoulli", "gaussian"]


class VAEOutput(NamedTuple):
    """The approximate posterior of each image, and what a sample from it decodes to."""

    decoded: Tensor  # (B, C, Y, X) logits (Bernoulli) or means (Gaussian)
    mean: Tensor  # (B, Z)
    log_variance: Tensor  # (B, Z)
    log_scale: Tensor | None  # scalar, log of the Gaussian's deviation; None: Bernoulli


class ELBO(NamedTuple):
    """The two terms of the negative evidence lower bound, per image, in nats."""

    reconstruction: Tensor  # (B,) -log p(x | z) of the sampled z
    kl: Tensor  # (B,) KL(q(z | x) || p(z))

    @property
    def loss(self) -> Tensor:
        """Mean over the batch of their sum, the negative bound. To be minimised."""
        return (self.reconstruction + self.kl).mean()


class VAE(nn.Module):
    r"""Convolutional VAE for images with values in [0, 1] (arXiv:1312.6114).

    .. math:: q(z|x) = \mathcal{N}(\mu(x), \mathrm{diag}\, \sigma^2(x)), \qquad
              z = \mu + \sigma \epsilon, \qquad p(z) = \mathcal{N}(0, 1)

    A stage of the encoder is a 3x3 convolution of stride 2 and one of stride 1, each with BatchNorm
    and ReLU; channels double from stage to stage. The stages are the modules of the NFM. The
    decoder mirrors them (nearest up-sampling by two, 3x3 convolution) and never has an NFM.

    Args:
        image_size: pixels of a side, a multiple of ``2 ** stages``. Default 32.
        image_channels: Default 1.
        latent_size: Z. Default 32.
        width: channels of the first stage. Default 32.
        stages: Default 3.
        likelihood: ``"bernoulli"`` (default) or ``"gaussian"``, whose deviation is one learned
            number for all pixels.
        nfm: options of the NFM, such as :data:`VAE_NFM`; ``None`` (default) for none.

    Shape:
        ``(B, image_channels, image_size, image_size) -> VAEOutput``

    Raises:
        ValueError: if the image cannot be halved so often, or for an unknown likelihood.

    Example:
        >>> model = VAE(image_size=8, width=2, latent_size=3)
        >>> images = torch.rand(5, 1, 8, 8)
        >>> elbo(images, model(images)).kl.shape, model.sample(2).shape
        (torch.Size([5]), torch.Size([2, 1, 8, 8]))
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        image_channels: int = 1,
        latent_size: int = 32,
        width: int = 32,
        stages: int = 3,
        likelihood: Likelihood = "bernoulli",
        nfm: NFMOptions | None = None,
    ) -> None:
        super().__init__()
        if stages < 1 or image_size % 2**stages:
            raise ValueError(
                f"VAE: image_size must be a multiple of 2 ** stages with stages >= 1; "
                f"got image_size={image_size}, stages={stages}."
            )
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(
                f'VAE: likelihood must be "bernoulli" or "gaussian"; got {likelihood!r}.'
            )
        self.latent_size = latent_size
        channels = [width * 2**stage for stage in range(stages)]
        modules = [
            nn.Sequential(*_conv(below, above, stride=2), *_conv(above, above))
            for below, above in zip([image_channels, *channels], channels, strict=False)
        ]
        self.trunk = trunk(modules, channels, nfm)
        shape = (channels[-1], image_size // 2**stages, image_size // 2**stages)
        self.to_posterior = nn.Linear(math.prod(shape), 2 * latent_size)
        self.decoder = _decoder(latent_size, shape, channels, image_channels)
        gaussian = likelihood == "gaussian"
        self.log_scale = nn.Parameter(torch.zeros(())) if gaussian else None

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> VAEOutput:
        """Encode, sample one z per image, decode.

        Args:
            images: ``(B, C, Y, X)`` in [0, 1].
            generator: of the noise, on the CPU so that a seed means the same everywhere; ``None``
                (default) for torch's own.
        """
        mean, log_variance = self.encode(images)
        decoded = self.decoder(reparameterise(mean, log_variance, generator=generator))
        return VAEOutput(decoded, mean, log_variance, self.log_scale)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance ``(B, Z)`` of the approximate posterior."""
        mean, log_variance = self.to_posterior(self.trunk(images).flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """Mean images ``(B, C, Y, X)`` in [0, 1] of latent vectors ``(B, Z)``."""
        decoded: Tensor = self.decoder(latent)
        return decoded.sigmoid() if self.log_scale is None else decoded.clamp(0, 1)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Mean images of ``count`` latent vectors from the prior; ``generator`` as in forward."""
        latent = torch.randn(count, self.latent_size, generator=generator)
        return self.decode(latent.to(self.to_posterior.weight))


def reparameterise(
    mean: Tensor, log_variance: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Sample a Gaussian so that gradients reach its parameters (arXiv:1312.6114, section 2.4).

    .. math:: z = \mu + \sigma \epsilon, \qquad \epsilon \sim \mathcal{N}(0, 1)

    Args:
        mean: any shape.
        log_variance: of the same shape.
        generator: of the noise, on the CPU; ``None`` (default) for torch's own.

    Returns:
        Tensor shaped like ``mean``.

    Example:
        >>> reparameterise(torch.ones(2), torch.full((2,), -torch.inf)).tolist()
        [1.0, 1.0]
    """
    if generator is not None:  # torch's own is set back where something is computed again
        refuse_checkpoint("reparameterise", "noise of a generator")
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    return mean + (0.5 * log_variance).exp() * noise


def elbo(images: Tensor, output: VAEOutput) -> ELBO:
    r"""Reconstruction and KL of the negative evidence lower bound (arXiv:1312.6114, Eq. 10).

    .. math:: -\log p(x|z) \quad\text{and}\quad
              \frac{1}{2} \sum_j (\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2)

    summed over pixels and latent features. A Gaussian likelihood is a density of values in [0, 1],
    so its term can be negative.

    Args:
        images: ``(B, C, Y, X)`` in [0, 1]; for a Bernoulli likelihood, probabilities of a one.
        output: of :class:`VAE` for them.

    Returns:
        ``ELBO(reconstruction (B,), kl (B,))`` in nats.

    Example:
        >>> zeros = torch.zeros(1, 2)
        >>> output = VAEOutput(torch.zeros(1, 1, 2, 2), zeros, zeros, None)
        >>> terms = elbo(torch.ones(1, 1, 2, 2), output)
        >>> round(terms.reconstruction.item(), 4), terms.kl.item()
        (2.7726, 0.0)
    """
    if output.log_scale is None:
        pixels = F.binary_cross_entropy_with_logits(output.decoded, images, reduction="none")
    else:
        error = (images - output.decoded) * (-output.log_scale).exp()
        pixels = 0.5 * error.square() + output.log_scale + 0.5 * math.log(2 * math.pi)
    variance = output.log_variance.exp()
    kl = 0.5 * (output.mean.square() + variance - 1 - output.log_variance)
    return ELBO(pixels.flatten(1).sum(1), kl.sum(1))


def _decoder(
    latent_size: int, shape: tuple[int, int, int], channels: list[int], image_channels: int
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Linear(latent_size, math.prod(shape)),
        nn.Unflatten(1, shape),
        nn.ReLU(),
    ]
    below = channels[-1]
    for above in [*channels[-2::-1], channels[0]]:
        layers += [nn.Upsample(scale_factor=2), *_conv(below, above)]
        below = above
    return nn.Sequential(*layers, nn.Conv2d(below, image_channels, 3, padding=1))


def _conv(in_channels: int, out_channels: int, *, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
