"""What an observation is made of where it is not MiniGrid's symbolic view."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from envs.view import View

__all__ = ["AnyView", "Layout", "MixedObservation", "parse_view"]

_MOST = 2**24  # numbers in one part of an observation


class Layout(NamedTuple):
    """Numbers, categories, images and text, in this order whatever the space is.

    The parts of a ``Dict`` are taken in the order of the space. Categories become one-hot.
    """

    numbers: int = 0
    """How many numbers there are."""
    categories: tuple[int, ...] = ()
    """How many values each category has."""
    images: tuple[tuple[int, int, int], ...] = ()
    """Channels, height and width of each image."""
    mission: bool = False
    """Whether there is a mission."""

    @property
    def vector_size(self) -> int:
        """Length of the vector of numbers and one-hot categories.

        >>> Layout(numbers=2, categories=(3, 4)).vector_size
        9
        """
        return self.numbers + sum(self.categories)

    @property
    def pixels(self) -> int:
        """Bytes of all images."""
        return sum(int(np.prod(shape)) for shape in self.images)

    @property
    def repeats(self) -> bool:
        """Whether equal observations are frequent, so that it pays to look for them."""
        return bool(self.images) or not self.numbers

    def holds(self, other: AnyView) -> bool:
        """Whether all that ``other`` can show has a place here."""
        return self == other

    def __str__(self) -> str:
        """The parts in words.

        >>> str(Layout(numbers=4)), str(Layout(images=((3, 56, 56),), categories=(4,)))
        ('4 numbers', 'categories of 4, images 3x56x56')
        """
        parts = [f"{self.numbers} numbers"] if self.numbers else []
        if self.categories:
            parts.append(f"categories of {', '.join(map(str, self.categories))}")
        if self.images:
            shapes = ("x".join(map(str, shape)) for shape in self.images)
            parts.append(f"images {', '.join(shapes)}")
        return ", ".join([*parts, *(["a mission"] if self.mission else [])]) or "nothing"

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read a layout from JSON, which somebody may have edited.

        Raises:
            TypeError: if it is none.

        >>> Layout.parse({"numbers": 4, "categories": [2], "images": [], "mission": False})
        Layout(numbers=4, categories=(2,), images=(), mission=False)
        """
        wrong = TypeError(f"view must hold numbers, categories, images and mission; got {value!r}")
        if not isinstance(value, dict) or value.keys() != set(cls._fields):
            raise wrong
        numbers, categories, images = value["numbers"], value["categories"], value["images"]
        if not isinstance(categories, list) or not isinstance(images, list):
            raise wrong
        if not all(isinstance(image, list) and len(image) == 3 for image in images):
            raise wrong
        counts = [*categories, *(side for image in images for side in image)]
        if type(value["mission"]) is not bool or type(numbers) is not int or numbers < 0:
            raise wrong
        if not all(type(count) is int and 1 <= count <= _MOST for count in [*counts, numbers or 1]):
            raise wrong
        shapes = tuple((channels, height, width) for channels, height, width in images)
        return cls(numbers, tuple(categories), shapes, value["mission"])


#: What an agent can read.
AnyView = View | Layout


def parse_view(value: Any) -> AnyView:
    """Read a view or a layout from JSON.

    Raises:
        TypeError: if it is neither.

    >>> parse_view([7, 7, [11, 6, 4]])
    View(width=7, height=7, categories=(11, 6, 4))
    """
    return Layout.parse(value) if isinstance(value, dict) else View.parse(value)


class MixedObservation(NamedTuple):
    """Observations of E agents by their :class:`Layout`."""

    vector: NDArray[np.float32]
    """(E, V): the numbers, then each category one-hot."""
    pixels: NDArray[np.uint8]
    """(E, P): the images, each (channels, height, width), one after the other."""
    mission: NDArray[np.int64]
    """(E, L): token ids, see :func:`envs.encode_mission`; (E, 0) without missions."""
