"""Sets of images for the tasks on them, all in one form, and pictures of many images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.configs.images import Dataset, ImageConfig
from experiments.data.common import LabelledImages, identity
from experiments.data.published.cifar import load_cifar
from experiments.data.published.mnist import load_mnist
from experiments.data.published.tiny_imagenet import load_tiny_imagenet
from experiments.experiment import Batch, Experiment

Config = TypeVar("Config", bound=ImageConfig)

Split = Literal["train", "test"]

_CHUNK = 1000  # images


class Kind(NamedTuple):
    """Properties of a data set that are known before it is read."""

    side: int  # pixels
    channels: int
    classes: int
    mirrored: bool  # whether a mirrored image is one of the same class


KINDS: dict[Dataset, Kind] = {
    "mnist": Kind(32, 1, 10, mirrored=False),
    "cifar10": Kind(32, 3, 10, mirrored=True),
    "cifar100": Kind(32, 3, 100, mirrored=True),
    "tiny-imagenet": Kind(64, 3, 200, mirrored=True),
}


def load_images(config: ImageConfig, split: Split) -> LabelledImages:
    """Images ``(M, Y, X, C)`` of a split with their classes; digits padded with black to 32 x 32.

    Raises:
        ValueError: in one line, if files are missing or damaged.
    """
    folder = Path(config.data_dir)
    if config.dataset == "mnist":
        folder = _folder_of_digits(folder)
        images, labels = load_mnist(folder, split, download=config.download)
        return LabelledImages(np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], labels)
    if config.dataset == "tiny-imagenet":
        return load_tiny_imagenet(folder, split)
    return load_cifar(folder, config.dataset, split)


class GenerativeExperiment(Experiment[Config, Batch]):
    """A task that learns from images alone, without their classes."""

    @cached_property
    def _train_images(self) -> NDArray[np.uint8]:
        return load_images(self.config, "train").images

    @cached_property
    def _test_images(self) -> NDArray[np.uint8]:
        return load_images(self.config, "test").images

    @property
    def data_identity(self) -> str:
        """Number and checksum of the images."""
        return identity([self._train_images], [self._test_images])


def check_images(config: ImageConfig) -> None:
    """Refuse missing files, and fewer training images than a batch.

    Raises:
        ValueError: in one line, if files are missing or damaged, or a batch is too large.
    """
    load_images(config, "test")
    if config.dataset != "tiny-imagenet":  # whose 100 000 training files take a minute to read
        require_a_batch(len(load_images(config, "train").labels), config.batch_size)


def require_a_batch(images: int, size: int) -> None:
    """Refuse batches that the training images cannot fill.

    Raises:
        ValueError: in one line.
    """
    if size > images:
        raise ValueError(f"batch_size must be at most {images}, the training images; got {size}.")


def _folder_of_digits(folder: Path) -> Path:
    """The folder itself or ``mnist`` in it, as the other data sets are found."""
    is_it = folder.name == "mnist" or any(folder.glob("*-ubyte*"))
    return folder if is_it else folder / "mnist"


def to_tensor(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Bytes ``(M, Y, X, C)`` as ``(M, C, Y, X)`` on a device, still of the values 0 to 255.

    In memory the channels come first: with channels last, PyTorch 2.13 writes outside of its memory
    on a CPU, in gradients of convolutions of one pixel and stride 2 (oneDNN).

    Example:
        >>> to_tensor(np.zeros((5, 2, 3, 1), np.uint8), torch.device("cpu")).shape
        torch.Size([5, 1, 2, 3])
    """
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().contiguous()


class Levels(NamedTuple):
    """Mean and deviation of each channel, of bytes."""

    mean: NDArray[np.float32]  # (C,)
    deviation: NDArray[np.float32]  # (C,)


def levels_of(images: NDArray[np.uint8]) -> Levels:
    """Mean and deviation of each channel over all images and pixels; 1 where all are equal.

    Args:
        images: ``(M, Y, X, C)``.

    Example:
        >>> levels = levels_of(np.array([1, 3, 1, 3], np.uint8).reshape(2, 2, 1, 1))
        >>> levels.mean.tolist(), levels.deviation.tolist()
        ([2.0], [1.0])
    """
    # Counted, for which 100 000 images of bytes need not become numbers of eight bytes at once.
    counts = np.zeros((images.shape[-1], 256))
    for start in range(0, len(images), _CHUNK):
        for channel, count in enumerate(counts):
            part = images[start : start + _CHUNK, ..., channel]
            count += np.bincount(part.ravel(), minlength=256)
    shares, values = counts / counts.sum(1, keepdims=True), np.arange(256.0)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(1)
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0))
    return Levels(mean.astype(np.float32), deviation.astype(np.float32))


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Images ``(M, C, Y, X)`` with values in [0, 1] as bytes ``(M, Y, X, C)``.

    Example:
        >>> to_bytes(torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)).ravel().tolist()
        [0, 128, 255]
    """
    rounded = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(0, 2, 3, 1).numpy())


def grid(
    images: NDArray[np.uint8], columns: int, *, gap: int = 2, scale: int = 2
) -> NDArray[np.uint8]:
    """Many images as one, row by row, with grey between them; places left over stay grey.

    Args:
        images: ``(M, Y, X, C)`` with 1 or 3 channels.
        columns: images in a row.
        gap: pixels between images, before enlarging.
        scale: each pixel becomes a square of this side.

    Returns:
        A picture ``(Y', X')`` for one channel, ``(Y', X', 3)`` for three.

    Example:
        >>> grid(np.zeros((3, 4, 5, 3), np.uint8), 2, gap=1, scale=1).shape
        (9, 11, 3)
    """
    total, height, width, channels = images.shape
    rows = math.ceil(total / columns)
    cells = np.full((rows * columns, height + gap, width + gap, channels), 128, np.uint8)
    cells[:total, :height, :width] = images
    # (rows, columns, Y, X, C) -> (rows Y, columns X, C)
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    picture = cells.reshape(rows * (height + gap), columns * (width + gap), channels)
    picture = picture[: picture.shape[0] - gap, : picture.shape[1] - gap]
    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    return picture[..., 0] if channels == 1 else picture


def side_by_side(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images of two sets in turn: ``(M, ...)`` and ``(M, ...)`` to ``(2 M, ...)``.

    Example:
        >>> side_by_side(np.array([1, 2], np.uint8), np.array([3, 4], np.uint8)).tolist()
        [1, 3, 2, 4]
    """
    return np.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def parts(total: int, size: int) -> Sequence[slice]:
    """Slices of at most ``size``, one after the other.

    Example:
        >>> parts(5, 3)
        [slice(0, 3, None), slice(3, 5, None)]
    """
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
