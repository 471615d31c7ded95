"""Reading the pickles of CIFAR without running what they name.

A pickle may call any function it names. The ones CIFAR comes in name four, all to put a numpy
array together; here each of them stands for a class of this module that only keeps what it is
given. Any other name is refused. numpy's own functions are not handed out either: with made-up
state they can be brought to read memory that is not theirs.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.words import message_of


class _Type:
    """Stands for ``numpy.dtype``: keeps the name of the type; order and sizes do not matter."""

    __slots__ = ("name",)

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Ignores the state, which does not concern bytes."""


class _Array:
    """Stands for ``numpy.ndarray`` and for the function that makes an empty one to be filled."""

    __slots__ = ("values",)

    def __init__(self, *_: Any) -> None:
        self.values: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        *_, shape, dtype, columns_first, content = state
        if not isinstance(dtype, _Type) or dtype.name not in (b"u1", "u1"):
            raise pickle.UnpicklingError("an array of another type than uint8")
        flat = np.frombuffer(content, np.uint8)
        self.values = flat.reshape(shape, order="F" if columns_first else "C")


class _Encoded(bytes):
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes in an old protocol."""

    __slots__ = ()

    def __new__(cls, text: Any = "", *_: Any) -> _Encoded:
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, state: Any) -> None:
        """Bytes have no state."""


_STANDS_FOR: dict[tuple[str, str], type] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _Encoded,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        try:
            return _STANDS_FOR[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {f'{module}.{name}'!r}") from None


def read_plain_pickle(content: bytes) -> dict[str, object]:
    """Read a pickled dictionary of plain values and arrays of bytes.

    Strings written by Python 2 come as ``bytes``, but for the keys, which are text.

    Args:
        content: the pickle.

    Returns:
        The dictionary, its arrays as ``NDArray[np.uint8]``, which cannot be written to.

    Raises:
        ValueError: if the pickle is damaged, holds anything else, or names a function or class
            that such data does not need. Nothing it names has been run or imported then.

    Example:
        >>> read_plain_pickle(pickle.dumps({"labels": [3, 1]}))
        {'labels': [3, 1]}
        >>> read_plain_pickle(pickle.dumps(print))
        Traceback (most recent call last):
        ...
        ValueError: not a pickle of plain data: it names 'builtins.print'
    """
    try:
        found = _Reader(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything, MemoryError too
        raise ValueError(f"not a pickle of plain data: {message_of(error)}") from error
    if not isinstance(found, dict):
        raise ValueError("not a pickle of plain data: it holds no dictionary")
    plain: dict[str, object] = {}
    for key, value in found.items():
        name = key.decode("latin1") if isinstance(key, bytes) else str(key)
        plain[name] = value.values if isinstance(value, _Array) else value
    return plain
