"""Code shared by data sets: images with labels, their order and checksum, checks of arguments."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class LabelledImages(NamedTuple):
    """Images, each with one class.

    Args:
        images: uint8, ``(M, Y, X)`` for grey levels or ``(M, Y, X, 3)`` for RGB, 0 to 255.
        labels: int64 ``(M,)``, counted from 0.
    """

    images: NDArray[np.uint8]  # (M, Y, X) or (M, Y, X, 3)
    labels: NDArray[np.int64]  # (M,)


def hold_out(
    data: LabelledImages, fraction: float, *, seed: int = 0
) -> tuple[LabelledImages, LabelledImages]:
    """Cut off a random part of a labelled set, for validation for instance.

    Both parts keep the order of the whole; which image goes where depends on ``seed`` and on the
    number of images only.

    Args:
        data: the whole, M images.
        fraction: share that is cut off, above 0 and below 1; rounded to whole images.
        seed: seed of the draw, 0 or more.

    Returns:
        The rest, then the part cut off.

    Raises:
        ValueError: if one of the two would be empty.

    Example:
        >>> whole = LabelledImages(np.zeros((10, 2, 2), np.uint8), np.arange(10))
        >>> rest, part = hold_out(whole, 0.2)
        >>> rest.labels.tolist(), part.labels.tolist()
        ([0, 1, 2, 3, 5, 7, 8, 9], [4, 6])
    """
    total = len(data.labels)
    size = round(total * fraction)
    if not 0 < size < total:
        raise ValueError(
            f"hold_out: fraction must leave both parts an image; got {fraction} of {total} images."
        )
    check_seed("hold_out", seed)
    order = np.random.default_rng(seed).permutation(total)
    part, rest = np.sort(order[:size]), np.sort(order[size:])
    return (
        LabelledImages(data.images[rest], data.labels[rest]),
        LabelledImages(data.images[part], data.labels[part]),
    )


def identity(*splits: Sequence[NDArray[Any]]) -> str:
    """The number of samples in each split, and a checksum of all arrays.

    Args:
        splits: the arrays of each split, such as images and labels.

    Example:
        >>> identity([np.arange(3)], [np.arange(2)])
        '3 and 2 samples, checksum 0da7f48a'
    """
    checksum = 0
    for array in (array for split in splits for array in split):
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    counts = " and ".join(str(len(split[0])) for split in splits)
    return f"{counts} samples, checksum {checksum:08x}"


def shuffled(
    rng: np.random.Generator, total: int, size: int, *, drop_last: bool = False
) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Indices of the batches of an epoch: each of ``total`` samples once, in random order.

    Args:
        rng: decides the order.
        total: samples.
        size: samples of a batch.
        drop_last: leave out a last batch that would be smaller.

    Example:
        >>> [len(part) for part in shuffled(np.random.default_rng(0), 5, 2)]
        [2, 2, 1]
    """
    order = rng.permutation(total)
    end = total - total % size if drop_last else total
    for start in range(0, end, size):
        yield order[start : min(start + size, end)]


def check_choice(where: str, argument: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a name that is none of ``choices``.

    Raises:
        ValueError: naming the function, the argument and what it may be.

    Example:
        >>> check_choice("load", "split", "dev", ("train", "test"))
        Traceback (most recent call last):
        ...
        ValueError: load: split must be one of train, test; got 'dev'.
    """
    if value not in choices:
        raise ValueError(f"{where}: {argument} must be one of {', '.join(choices)}; got {value!r}.")


def check_seed(where: str, seed: int) -> None:
    """Refuse a negative seed, for which numpy's own message names no argument.

    Raises:
        ValueError: if ``seed`` is negative.

    Example:
        >>> check_seed("load", -1)
        Traceback (most recent call last):
        ...
        ValueError: load: seed must be 0 or more; got -1.
    """
    if seed < 0:
        raise ValueError(f"{where}: seed must be 0 or more; got {seed}.")


def check_at_least(where: str, argument: str, value: int, least: int = 1) -> None:
    """Refuse a number below ``least``.

    Raises:
        ValueError: naming the function, the argument and the bound.

    Example:
        >>> check_at_least("load", "num_images", 0)
        Traceback (most recent call last):
        ...
        ValueError: load: num_images must be 1 or more; got 0.
    """
    if value < least:
        raise ValueError(f"{where}: {argument} must be {least} or more; got {value}.")
