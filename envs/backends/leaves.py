"""The parts of an observation that is no symbolic view, and one observation read by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from gymnasium import spaces
from minigrid.core.mission import MissionSpace
from numpy.typing import NDArray

from envs.layout import Layout

__all__ = ["Leaf", "layout_of", "read_leaves", "short"]

_MISSION: Final = "mission"
_SUPPORTED: Final = (
    "vectors of numbers (Box), Discrete, MultiDiscrete, images (Box of uint8, channels first or "
    "last) and a Dict of these"
)


class Leaf(NamedTuple):
    """One part of an observation."""

    name: tuple[str, ...]  # keys that lead to it; () for an observation that is no Dict
    kind: Literal["numbers", "categories", "image", "text"]
    shape: tuple[int, ...]
    start: NDArray[Any]  # of categories, the smallest value of each
    sizes: NDArray[Any]  # of categories, how many values each has
    to_channels_first: tuple[int, ...] = ()  # of an image: the order of its axes
    scale: float = 1.0  # of numbers

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"the observation's {'/'.join(self.name)!r}" if self.name else "the observation"


def layout_of(space: spaces.Space[Any]) -> tuple[Layout, tuple[Leaf, ...]]:
    """The layout of an observation, and its parts in the order of the layout.

    Raises:
        ValueError: in one line, for a space that agents cannot read.

    >>> layout_of(spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1, (2,))))[0]
    Layout(numbers=2, categories=(3,), images=(), mission=False)
    """
    leaves = _leaves((), space)

    def of(kind: str) -> list[Leaf]:
        return [leaf for leaf in leaves if leaf.kind == kind]

    layout = Layout(
        numbers=sum(int(np.prod(leaf.shape)) for leaf in of("numbers")),
        categories=tuple(int(size) for leaf in of("categories") for size in leaf.sizes),
        images=tuple(_channels_first(leaf) for leaf in of("image")),
        mission=bool(of("text")),
    )
    if not (layout.vector_size or layout.images):
        raise ValueError(f"observations must hold {_SUPPORTED}; they are {short(space)}")
    return layout, (*of("numbers"), *of("categories"), *of("image"), *of("text"))


def _leaves(name: tuple[str, ...], space: spaces.Space[Any]) -> list[Leaf]:
    none = np.zeros(0, dtype=np.int64)
    if isinstance(space, spaces.Dict):
        return [leaf for key, part in space.items() for leaf in _leaves((*name, key), part)]
    if isinstance(space, spaces.Discrete):
        return [Leaf(name, "categories", (), np.array([space.start]), np.array([space.n]))]
    if isinstance(space, spaces.MultiDiscrete):
        start = np.asarray(space.start).ravel()
        return [Leaf(name, "categories", space.shape, start, space.nvec.ravel())]
    if isinstance(space, spaces.MultiBinary):
        return [Leaf(name, "numbers", space.shape, none, none)]
    if isinstance(space, spaces.Text | MissionSpace) and name == (_MISSION,):
        return [Leaf(name, "text", (), none, none)]
    if isinstance(space, spaces.Box) and 0 not in space.shape:
        is_bytes = space.dtype == np.uint8
        if is_bytes and len(space.shape) in (2, 3):
            return [Leaf(name, "image", space.shape, none, none, _axes(space.shape))]
        if len(space.shape) <= 1:
            return [Leaf(name, "numbers", space.shape, none, none, scale=255.0 if is_bytes else 1)]
    part = f"part {'/'.join(name)!r} is" if name else "they are"
    raise ValueError(
        f"observations must be {_SUPPORTED}; {part} {short(space)}. Change it by --wrapper, such "
        "as FlattenObservation of gymnasium.wrappers"
    )


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of an image with its channels first; they are the smallest axis, first or last."""
    if len(shape) == 2:
        return (0, 1)
    return (0, 1, 2) if shape[0] < shape[2] else (2, 0, 1)


def _channels_first(leaf: Leaf) -> tuple[int, int, int]:
    sides = [leaf.shape[axis] for axis in leaf.to_channels_first]
    channels, height, width = sides if len(sides) == 3 else (1, *sides)
    return channels, height, width


def read_leaves(leaves: Sequence[Leaf], observation: Any) -> dict[str, Any]:
    """One observation as ``vector``, ``pixels`` and ``mission``, those of them that it has.

    Raises:
        ValueError: in one line, if it is not what its space says, or holds what is not finite.

    >>> layout, leaves = layout_of(spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1, (2,))))
    >>> read_leaves(leaves, {"a": 1, "b": np.array([0.5, 0.25])})["vector"].tolist()
    [0.5, 0.25, 0.0, 1.0, 0.0]
    """
    vector: list[NDArray[np.float32]] = []
    pixels: list[NDArray[np.uint8]] = []
    found: dict[str, Any] = {}
    for leaf in leaves:
        value = _part(leaf, observation)
        if leaf.kind == "text":
            found["mission"] = value
        elif leaf.kind == "numbers":
            vector.append(_numbers(leaf, value))
        elif leaf.kind == "categories":
            vector.extend(_one_hot(leaf, value))
        else:
            pixels.append(value.transpose(leaf.to_channels_first).ravel())
    if vector:
        found["vector"] = np.concatenate(vector)
    if pixels:
        found["pixels"] = np.concatenate(pixels)
    return found


def _part(leaf: Leaf, observation: Any) -> Any:
    """The value of a part: an array of the shape that its space says, or text."""
    value = observation
    for key in leaf.name:
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"{leaf.label} is missing")
        value = value[key]
    if leaf.kind == "text":
        if not isinstance(value, str):
            raise ValueError(f"the mission is {value!r}, not text")
        return value
    array = np.asarray(value)
    kinds = {"numbers": "iufb", "categories": "iu", "image": "u"}[leaf.kind]
    is_wide = leaf.kind == "image" and array.dtype != np.uint8
    if array.shape != leaf.shape or array.dtype.kind not in kinds or is_wide:
        raise ValueError(
            f"{leaf.label} is {array.dtype} {array.shape}, where its space says {leaf.shape}"
        )
    return array


def _numbers(leaf: Leaf, array: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        numbers = (array.ravel() / leaf.scale).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{leaf.label} is not finite")
    return numbers


def _one_hot(leaf: Leaf, array: NDArray[Any]) -> list[NDArray[np.float32]]:
    places = array.ravel() - leaf.start
    if (places < 0).any() or (places >= leaf.sizes).any():
        raise ValueError(f"{leaf.label} is {array.tolist()}, which is not in its space")
    found = []
    for place, size in zip(places.tolist(), leaf.sizes.tolist(), strict=True):
        found.append(np.zeros(size, dtype=np.float32))
        found[-1][place] = 1.0
    return found


def short(space: spaces.Space[Any]) -> str:
    """A space in a few words."""
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
