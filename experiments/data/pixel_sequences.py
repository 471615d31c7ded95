"""Images as sequences: resized, and read pixel by pixel, row by row or in a shuffled order."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from experiments.data.common import check_at_least, check_choice, check_seed

Order = Literal["pixel", "row", "permuted"]
ORDERS: tuple[Order, ...] = ("pixel", "row", "permuted")

#: A pixel of at least this is white once it is black or white.
WHITE = 128


def resize_nearest(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize by the nearest neighbour: row y comes from row ``floor(y * Y / height)``.

    Args:
        images: ``(M, Y, X)``.
        height: rows of the result.
        width: columns of the result.

    Returns:
        ``(M, height, width)``.

    Example:
        >>> resize_nearest(np.arange(4, dtype=np.uint8).reshape(1, 2, 2), 3, 2)[0].tolist()
        [[0, 1], [0, 1], [2, 3]]
    """
    check_at_least("resize_nearest", "height", height)
    check_at_least("resize_nearest", "width", width)
    row = np.arange(height) * images.shape[1] // height
    column = np.arange(width) * images.shape[2] // width
    return images[:, row[:, None], column]


def pixel_order(side: int, trained_side: int, seed: int) -> NDArray[np.int64]:
    """A shuffled order of the pixels of a square image, the same one at every size.

    The pixels of an image of ``trained_side`` are permuted once, by ``seed``. Each pixel of a
    larger image lies in one of its cells (the one it would be resized from); cells come in the
    permuted order, the pixels of a cell row by row. So an image of the size trained on is
    permuted as usual, and a larger one is the same sequence with pixels repeated.

    Args:
        side: side of the images.
        trained_side: side of training images.
        seed: decides the permutation, 0 or more.

    Returns:
        Indices into the flattened image, ``(side * side,)``.

    Example:
        >>> pixel_order(2, 2, 0).tolist(), pixel_order(4, 2, 0)[:4].tolist()
        ([2, 0, 1, 3], [8, 9, 12, 13])
    """
    check_at_least("pixel_order", "side", side)
    check_at_least("pixel_order", "trained_side", trained_side)
    check_seed("pixel_order", seed)
    place = np.empty(trained_side**2, np.int64)  # at which each cell comes
    place[np.random.default_rng(seed).permutation(trained_side**2)] = np.arange(trained_side**2)
    cell = np.arange(side) * trained_side // side
    cells = cell[:, None] * trained_side + cell
    return np.argsort(place[cells.ravel()], kind="stable")


def pixel_sequences(
    images: NDArray[np.uint8], side: int, order: Order, *, trained_side: int, seed: int = 0
) -> NDArray[np.float32]:
    """Black and white images as sequences of pixels or rows, time first.

    Images are made black and white (at half of 255), as by the authors of arXiv:1909.10893, and
    resized to ``side`` by the nearest neighbour. In the order ``row`` a step is a row: the image
    then gets ``side`` rows but stays ``trained_side`` wide, since a step always has as many
    features.

    Args:
        images: ``(M, Y, X)``, 0 to 255.
        side: side of the resized images.
        order: ``pixel``: row by row, a step per pixel; ``row``; ``permuted``: see
            :func:`pixel_order`.
        trained_side: the side that models are trained with.
        seed: seed of the permutation.

    Returns:
        ``(T, M, F)``, 0 or 1: T is ``side * side`` and F is 1, or ``side`` and ``trained_side``.

    Raises:
        ValueError: for another order, or a side below 1.

    Example:
        >>> images = np.full((5, 28, 28), 200, np.uint8)
        >>> [pixel_sequences(images, 16, o, trained_side=14).shape for o in ("pixel", "row")]
        [(256, 5, 1), (16, 5, 14)]
    """
    check_choice("pixel_sequences", "order", order, ORDERS)
    width = trained_side if order == "row" else side
    small = (resize_nearest(images, side, width) >= WHITE).astype(np.float32)
    if order == "row":
        return np.ascontiguousarray(small.swapaxes(0, 1))  # (M, Y, X) -> (Y, M, X)
    pixels = small.reshape(len(images), side * side)
    if order == "permuted":
        pixels = pixels[:, pixel_order(side, trained_side, seed)]
    return np.ascontiguousarray(pixels.T)[..., None]
