"""Scenes of Sort-of-CLEVR: six coloured objects, where they lie, and their pictures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 75
RADIUS = 5  # half the side of a square without its middle, too: 11 pixels
COLOURS = ("red", "green", "blue", "orange", "grey", "yellow")
SHAPES = ("rectangle", "circle")
RECTANGLE, CIRCLE = 0, 1

_PALETTE = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 156, 0), (128, 128, 128), (255, 255, 0)],
    dtype=np.uint8,
)
_OFFSET = np.arange(-RADIUS, RADIUS + 1)
#: Pixels of each shape around its centre, (2, 11, 11); the disc has the pixels OpenCV fills.
_STENCIL = np.stack(
    [
        np.ones((_OFFSET.size, _OFFSET.size), dtype=bool),
        _OFFSET[:, None] ** 2 + _OFFSET**2 <= RADIUS**2,
    ]
)
_IMAGES_PER_DRAW = 1024  # bounds the memory of drawing


class Scene(NamedTuple):
    """Objects in each of M images: one of each colour, in the order of COLOURS."""

    centres: NDArray[np.int64]  # (M, 6, 2), x and y in pixels, 5 to 69
    shapes: NDArray[np.int64]  # (M, 6), index into SHAPES


def draw(scene: Scene) -> NDArray[np.uint8]:
    """Paint the objects on white, in the order of COLOURS; a later one covers an earlier one.

    Args:
        scene: M images of six objects.

    Returns:
        uint8 ``(M, 75, 75, 3)``, RGB.

    Example:
        >>> scene = Scene(np.full((1, 6, 2), 20), np.zeros((1, 6), int))
        >>> draw(scene)[0, 20, 20].tolist()  # all at one place: yellow is the last
        [255, 255, 0]
    """
    total = len(scene.shapes)
    images = np.full((total, IMAGE_SIZE, IMAGE_SIZE, 3), 255, dtype=np.uint8)
    for start in range(0, total, _IMAGES_PER_DRAW):
        part = slice(start, start + _IMAGES_PER_DRAW)
        index = np.arange(start, min(start + _IMAGES_PER_DRAW, total))
        for colour, value in enumerate(_PALETTE):
            x, y = scene.centres[part, colour].T  # each (m,)
            image, dy, dx = np.nonzero(_STENCIL[scene.shapes[part, colour]])  # one entry per pixel
            images[index[image], y[image] + _OFFSET[dy], x[image] + _OFFSET[dx]] = value
    return images


def draw_centres(rng: np.random.Generator) -> list[tuple[int, int]]:
    """Six centres, each drawn again until it is 10 pixels or more from all before it."""
    centres: list[tuple[int, int]] = []
    while True:
        # Plain numbers: for so few, arrays take several times as long.
        for x, y in rng.integers(RADIUS, IMAGE_SIZE - RADIUS, size=(12, 2)).tolist():
            if all((x - u) ** 2 + (y - v) ** 2 >= (2 * RADIUS) ** 2 for u, v in centres):
                centres.append((x, y))
            if len(centres) == len(COLOURS):
                return centres
