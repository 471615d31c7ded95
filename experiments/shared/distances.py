"""Distances between generated and real images that need no trained network.

None of this is the Frechet Inception Distance (arXiv:1706.08500), which compares features of a
network that has to be fetched.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_AXES_IMAGES = 2000  # at most, to find principal axes by
_AXES = 64
_PATCH = 7  # pixels
_COARSEST = 16  # pixels


class Axes(NamedTuple):
    """Principal axes of a set of images."""

    mean: Tensor  # (D,)
    directions: Tensor  # (D, K), orthonormal, the largest variance first

    def features(self, images: Tensor) -> Tensor:
        """Coordinates ``(M, K)`` of images ``(M, ...)`` with D values each."""
        return (images.flatten(1).double() - self.mean) @ self.directions


def principal_axes(images: Tensor, count: int = _AXES) -> Axes:
    """Principal axes of the pixels of at most 2000 images.

    Args:
        images: ``(M, ...)``, at least two; of more than 2000, evenly spaced ones are used.
        count: axes; fewer if the images have fewer dimensions.

    Example:
        >>> images = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
        >>> axes = principal_axes(images)
        >>> [round(abs(value), 4) for value in axes.directions[:, 0].tolist()]
        [0.6, 0.8]
    """
    every = -(-len(images) // _AXES_IMAGES)
    values = images[::every].flatten(1).double()
    mean = values.mean(0)
    centred = values - mean
    # There are fewer images than pixels: the products of images are the smaller matrix.
    variances, weights = torch.linalg.eigh(centred @ centred.T)
    kept = min(count, int((variances > 1e-9 * variances[-1]).sum()))
    order = torch.arange(len(variances) - 1, len(variances) - 1 - kept, -1)
    return Axes(mean, centred.T @ weights[:, order] / variances[order].sqrt())


def frechet_distance(first: Tensor, second: Tensor) -> float:
    r"""Frechet distance of the normal distributions fitted to two sets of features.

    .. math:: |\mu_1 - \mu_2|^2 + \mathrm{tr}(S_1 + S_2 - 2 (S_1 S_2)^{1/2})

    Args:
        first: ``(M, K)``, at least two rows.
        second: ``(M', K)``.

    Example:
        >>> spread = torch.tensor([[-1.0], [1.0]])
        >>> round(frechet_distance(spread, 3 * spread + 1), 4)  # 1 + (3 - 1)^2 * variance of 2
        9.0
    """
    one, other = first.double(), second.double()
    root = _square_root(one.T.cov().reshape(one.shape[1], -1))
    covariance = other.T.cov().reshape(root.shape)
    mixed = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0).sqrt().sum()
    means = (one.mean(0) - other.mean(0)).square().sum()
    distance = means + (root @ root).trace() + covariance.trace() - 2 * mixed
    return max(float(distance), 0.0)


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def patch_distance(
    real: Tensor, other: Tensor, *, patches: int = 16, directions: int = 128, seed: int = 0
) -> float:
    """Sliced Wasserstein distance of small patches (arXiv:1710.10196, section 5), times 1000.

    Patches of 7 x 7 pixels are taken from every level of a Laplacian pyramid down to 16 pixels,
    projected on random directions, and the sorted projections of both sets compared; the mean over
    directions and levels is returned.

    Differs from the paper: 16 patches per image instead of 128; the pyramid is of means over 2 x 2
    pixels; both sets are normalised by the levels of the real one, instead of each by its own,
    which hides differences in colour and contrast.

    Args:
        real: ``(M, C, Y, X)``, with Y and X a power of two times 16 or less.
        other: images of the same shape.
        patches: drawn of each image and level.
        directions: to project on.
        seed: seed of both draws.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> images = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> patch_distance(images, images), patch_distance(images, images + 1) > 100
        (0.0, True)
    """
    if real.shape != other.shape:
        raise ValueError(
            f"patch_distance: other must have the shape of real, {tuple(real.shape)}; "
            f"got {tuple(other.shape)}."
        )
    generator = torch.Generator().manual_seed(seed)
    levels = zip(_pyramid(real), _pyramid(other), strict=True)
    found = [_level_distance(*pair, patches, directions, generator) for pair in levels]
    return 1000 * float(torch.stack(found).mean())


def _pyramid(images: Tensor) -> list[Tensor]:
    """The details that each halving of the size loses, then the coarsest images."""
    levels = []
    while images.shape[-1] > _COARSEST:
        smaller = F.avg_pool2d(images, 2)
        levels.append(images - F.interpolate(smaller, scale_factor=2, mode="bilinear"))
        images = smaller
    return [*levels, images]


def _level_distance(
    real: Tensor, other: Tensor, patches: int, directions: int, generator: torch.Generator
) -> Tensor:
    total, channels, height, width = real.shape
    top = torch.randint(height - _PATCH + 1, (total, patches), generator=generator)
    left = torch.randint(width - _PATCH + 1, (total, patches), generator=generator)
    axes = torch.randn(channels * _PATCH**2, directions, generator=generator)
    axes = axes / axes.norm(dim=0)
    mean = real.mean((0, 2, 3), keepdim=True)
    deviation = real.std((0, 2, 3), keepdim=True).clamp(min=1e-6)
    projected = [
        (_cut((images - mean) / deviation, top, left) @ axes).sort(0).values
        for images in (real, other)
    ]
    distance: Tensor = (projected[0] - projected[1]).abs().mean()
    return distance


def _cut(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Patches at ``(M, P)`` places as rows ``(M P, C 7 7)``."""
    windows = images.unfold(2, _PATCH, 1).unfold(3, _PATCH, 1)  # (M, C, Y - 6, X - 6, 7, 7)
    image = torch.arange(len(images))[:, None]
    return windows[image, :, top, left].flatten(0, 1).flatten(1)
