"""Stacked MNIST: several digits in one image, to be recognised whatever their number.

Section 4.2 and appendix C of arXiv:2010.08012: a model is trained on images with 1 or 3 digits (or
1 or 5) and tested on each number from 1 to 5. Every batch has one number of digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.data.common import LabelledImages, check_at_least, check_seed
from experiments.data.pixel_sequences import resize_nearest

FRAME = 64
DIGIT = 16
NUM_CLASSES = 10

#: Numbers of digits tested, and the two sets of numbers the paper trains on.
TEST_COUNTS = (1, 2, 3, 4, 5)
TRAIN_COUNTS = ((1, 3), (1, 5))

_TRAIN, _EVALUATION = 0, 1  # keep the draws of one seed apart


class StackedDigits(NamedTuple):
    """Images with the same number of digits each, and which classes occur in them."""

    images: NDArray[np.uint8]  # (M, 64, 64), 0 to 255
    targets: NDArray[np.uint8]  # (M, 10), 1 where a digit of that class is in the image


def shrink(digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce digits to 16 x 16 by the nearest neighbour: pixel i comes from floor(i * 28 / 16).

    Args:
        digits: uint8 ``(M, Y, X)``, 28 x 28 for MNIST.

    Returns:
        uint8 ``(M, 16, 16)``.

    Example:
        >>> shrink(np.arange(28, dtype=np.uint8) * np.ones((1, 28, 1), np.uint8))[0, 0].tolist()
        [0, 1, 3, 5, 7, 8, 10, 12, 14, 15, 17, 19, 21, 22, 24, 26]
    """
    return resize_nearest(digits, DIGIT, DIGIT)


def stack_digits(
    digits: LabelledImages, num_digits: int, num_images: int, rng: np.random.Generator
) -> StackedDigits:
    """Paste digits at random places of 64 x 64 frames.

    Each digit is any of ``digits``, and each place in which it lies wholly inside the frame is as
    likely as another. Digits may overlap; the brighter pixel stays, so that none vanishes. (The
    paper says only that they are pasted.) They may also be of one class, which then counts once.

    Args:
        digits: digits to draw from, as read or shrunk already (``(M, 16, 16)``, which saves time).
        num_digits: digits in every image, 1 or more.
        num_images: images to make, 1 or more.
        rng: source of all draws. The first images are the same whatever ``num_images`` is.

    Returns:
        Images with their targets.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> digits = LabelledImages(np.full((2, 28, 28), 9, np.uint8), np.array([4, 4]))
        >>> images, targets = stack_digits(digits, 2, 3, np.random.default_rng(0))
        >>> images.shape, targets[0].tolist()
        ((3, 64, 64), [0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    """
    check_at_least("stack_digits", "num_digits", num_digits)
    check_at_least("stack_digits", "num_images", num_images)
    small = digits.images if digits.images.shape[1:] == (DIGIT, DIGIT) else shrink(digits.images)
    places = FRAME - DIGIT + 1
    drawn = rng.integers([len(small), places, places], size=(num_images, num_digits, 3))
    images = np.zeros((num_images, FRAME, FRAME), dtype=np.uint8)
    targets = np.zeros((num_images, NUM_CLASSES), dtype=np.uint8)
    each = np.arange(num_images)
    span = np.arange(DIGIT)
    for index, top, left in np.moveaxis(drawn, 1, 0).transpose(0, 2, 1):  # each (num_images,)
        where = (
            each[:, None, None],
            (top[:, None] + span)[..., None],
            (left[:, None] + span)[:, None],
        )
        images[where] = np.maximum(images[where], small[index])
        targets[each, digits.labels[index]] = 1
    return StackedDigits(images, targets)


def train_batches(
    digits: LabelledImages, counts: Sequence[int], *, batch_size: int, num_batches: int, seed: int
) -> Iterator[StackedDigits]:
    """Make training batches of new images; batch b has ``counts[b % len(counts)]`` digits each.

    Taking the counts in turn rather than drawing them gives each the same number of batches.
    Batch b depends on the digits, ``counts``, ``batch_size``, ``seed`` and b alone.

    Args:
        digits: the digits of the training split.
        counts: numbers of digits, :data:`TRAIN_COUNTS` has those of the paper.
        batch_size: images in a batch.
        num_batches: batches to make.
        seed: seed of all draws, 0 or more.

    Returns:
        An iterator over batches.

    Raises:
        ValueError: if an argument is outside its range; at once, before the first batch.

    Example:
        >>> digits = LabelledImages(np.ones((5, 28, 28), np.uint8), np.arange(5))
        >>> batches = train_batches(digits, (1, 3), batch_size=2, num_batches=4, seed=0)
        >>> [int(targets.sum(1).max()) for _, targets in batches]
        [1, 3, 1, 3]
    """
    for argument, value in (("batch_size", batch_size), ("num_batches", num_batches)):
        check_at_least("train_batches", argument, value)
    check_seed("train_batches", seed)
    if not counts or min(counts) < 1:
        raise ValueError(f"train_batches: counts must hold numbers from 1 on; got {counts}.")
    small = LabelledImages(shrink(digits.images), digits.labels)
    return (
        stack_digits(small, counts[b % len(counts)], batch_size, _generator(seed, _TRAIN, b))
        for b in range(num_batches)
    )


def evaluation_set(
    digits: LabelledImages, num_digits: int, *, num_images: int, seed: int
) -> StackedDigits:
    """Make a fixed set of images with the same number of digits, for validation or the test.

    Args:
        digits: the digits of the test split, or those held out of the training split.
        num_digits: digits in every image; :data:`TEST_COUNTS` has those of the paper.
        num_images: images to make. The first ones are the same whatever their number.
        seed: seed of all draws, 0 or more. They differ from those of training with the same seed.

    Returns:
        Images with their targets.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> digits = LabelledImages(np.ones((5, 28, 28), np.uint8), np.arange(5))
        >>> evaluation_set(digits, 5, num_images=7, seed=0).images.shape
        (7, 64, 64)
    """
    check_at_least("evaluation_set", "num_digits", num_digits)
    check_seed("evaluation_set", seed)
    rng = _generator(seed, _EVALUATION, num_digits)
    return stack_digits(digits, num_digits, num_images, rng)


def _generator(*source: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(source))
