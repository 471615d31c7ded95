"""Random changes of image batches: crop and flip, mixup, and occlusion.

Every function takes its generator, leaves its input as it is, and works on any dtype: on bytes as
well as on images that are normalised already.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.data.common import check_at_least

_T = TypeVar("_T", bound=np.generic)


class Mixup(NamedTuple):
    """How a batch is mixed: ``lam * x + (1 - lam) * x[permutation]``, the losses likewise."""

    lam: float
    permutation: NDArray[np.int64]  # (B,)


class Boxes(NamedTuple):
    """One box per image: rows ``top`` to ``bottom - 1``, columns ``left`` to ``right - 1``."""

    top: NDArray[np.int64]  # (M,)
    bottom: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]


def random_crop(images: NDArray[_T], rng: np.random.Generator, *, padding: int = 4) -> NDArray[_T]:
    """Pad with zeros on all sides and cut out, for each image, a random window of the old size.

    Args:
        images: ``(M, Y, X, C)``.
        rng: source of the draws.
        padding: pixels on each side; each of the ``(2 * padding + 1)**2`` windows is as likely.

    Returns:
        A new array of the same shape.

    Raises:
        ValueError: if ``padding`` is negative.

    Example:
        >>> random_crop(np.ones((2, 32, 32, 3), np.uint8), np.random.default_rng(0)).shape
        (2, 32, 32, 3)
    """
    check_at_least("random_crop", "padding", padding, 0)
    total, height, width = images.shape[:3]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    top, left = rng.integers(2 * padding + 1, size=(total, 2)).T
    row = (top[:, None] + np.arange(height))[:, :, None]  # (M, Y, 1)
    column = (left[:, None] + np.arange(width))[:, None]  # (M, 1, X)
    cropped: NDArray[_T] = padded[np.arange(total)[:, None, None], row, column]
    return cropped


def random_flip(images: NDArray[_T], rng: np.random.Generator) -> NDArray[_T]:
    """Mirror each image left to right with probability 1/2.

    Args:
        images: ``(M, Y, X, C)``.
        rng: source of the draws.

    Returns:
        A new array of the same shape.

    Example:
        >>> row = np.arange(3).reshape(1, 1, 3, 1).repeat(2, axis=0)
        >>> random_flip(row, np.random.default_rng(1))[:, 0, :, 0].tolist()
        [[0, 1, 2], [2, 1, 0]]
    """
    flipped = rng.integers(2, size=len(images)).astype(bool)
    return np.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def crop_and_flip(
    images: NDArray[_T], rng: np.random.Generator, *, padding: int = 4
) -> NDArray[_T]:
    """The usual augmentation of CIFAR: :func:`random_crop`, then :func:`random_flip`.

    Args:
        images: ``(M, Y, X, C)``.
        rng: source of the draws.
        padding: pixels on each side.

    Returns:
        A new array of the same shape.

    Raises:
        ValueError: if ``padding`` is negative.

    Example:
        >>> crop_and_flip(np.ones((2, 32, 32, 3), np.uint8), np.random.default_rng(0)).dtype
        dtype('uint8')
    """
    return random_flip(random_crop(images, rng, padding=padding), rng)


def draw_mixup(batch_size: int, rng: np.random.Generator, *, alpha: float = 1.0) -> Mixup:
    r"""Draw how to mix a batch with itself (mixup, arXiv:1710.09412).

    .. math:: \lambda \sim \mathrm{Beta}(\alpha, \alpha), \quad
        \tilde x_i = \lambda x_i + (1 - \lambda) x_{\pi(i)}

    One :math:`\lambda` and one permutation :math:`\pi` for the whole batch, as its authors do.

    Args:
        batch_size: images in the batch, 1 or more.
        rng: source of the draws.
        alpha: 0 leaves the batch unmixed. Default: 1, all :math:`\lambda` equally likely.

    Returns:
        ``Mixup(lam, permutation)``.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> draw_mixup(3, np.random.default_rng(0), alpha=0.0).lam
        1.0
    """
    check_at_least("draw_mixup", "batch_size", batch_size)
    if not 0 <= alpha < np.inf:
        raise ValueError(f"draw_mixup: alpha must be 0 or more; got {alpha}.")
    lam = float(rng.beta(alpha, alpha)) if alpha > 0 else 1.0
    return Mixup(lam, rng.permutation(batch_size))


def occlusion_boxes(
    num_images: int, height: int, width: int, rng: np.random.Generator, *, size: int = 16
) -> Boxes:
    """One square box per image around a random pixel, cut at the border (arXiv:1708.04552).

    Every pixel is as likely to be the centre, so most boxes of 16 in 32 x 32 are cut. A box begins
    ``size // 2`` pixels before its centre.

    Args:
        num_images: boxes to draw.
        height: height of the images in pixels.
        width: width of the images in pixels.
        rng: source of the draws.
        size: side of a box that is not cut, 1 or more.

    Returns:
        ``Boxes(top, bottom, left, right)``, each ``(num_images,)``.

    Raises:
        ValueError: if a size is below 1.

    Example:
        >>> boxes = occlusion_boxes(1000, 32, 32, np.random.default_rng(0))
        >>> int((boxes.bottom - boxes.top).min()), int((boxes.bottom - boxes.top).max())
        (8, 16)
    """
    for argument, value in (("height", height), ("width", width), ("size", size)):
        check_at_least("occlusion_boxes", argument, value)
    y, x = rng.integers([height, width], size=(num_images, 2)).T - size // 2
    return Boxes(
        np.maximum(y, 0),
        np.minimum(y + size, height),
        np.maximum(x, 0),
        np.minimum(x + size, width),
    )


def occlude(
    images: NDArray[_T], rng: np.random.Generator, *, size: int = 16, fill: ArrayLike = 0
) -> NDArray[_T]:
    """Cover one box in each image; see :func:`occlusion_boxes` for where it is.

    Cutout covers images that are normalised already, with zero. On bytes that is ``fill`` set to
    the mean colour; the default there is black.

    Args:
        images: ``(M, Y, X, C)``.
        rng: source of the draws.
        size: side of a box that is not cut. Default: 16, as for CIFAR-10 in arXiv:2010.08012.
        fill: the value in the box, one number or one per channel.

    Returns:
        A new array of the same shape.

    Raises:
        ValueError: if ``size`` is below 1.

    Example:
        >>> covered = occlude(np.ones((1, 4, 4, 1), int), np.random.default_rng(0), size=2)
        >>> covered[0, :, :, 0].tolist()
        [[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1]]
    """
    total, height, width = images.shape[:3]
    boxes = occlusion_boxes(total, height, width, rng, size=size)
    row, column = np.arange(height), np.arange(width)
    in_rows = (boxes.top[:, None] <= row) & (row < boxes.bottom[:, None])  # (M, Y)
    in_columns = (boxes.left[:, None] <= column) & (column < boxes.right[:, None])  # (M, X)
    covered = in_rows[:, :, None] & in_columns[:, None]  # (M, Y, X)
    filling = np.asarray(fill).astype(images.dtype)
    return np.where(covered[..., None], filling, images)
