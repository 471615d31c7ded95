"""Weights of the authors' implementation of arXiv:2010.08012."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from nfm.module import NFM


def load_authors_weights(modules: Sequence[NFM], arrays: Mapping[str, ArrayLike]) -> None:
    """Copy the weights of the authors' NFM layers into our modules, one per position.

    Position p has arrays ``p.query.weight``, ``p.key.bias``, ``p.out.conv1.weight``,
    ``p.out.norm.running_mean``, ``p.gamma`` and so on, as a module's ``state_dict`` has them
    without the number. What a module does not have because it does not read or write is passed
    over, for the authors give every position everything.

    Args:
        modules: with the positions' sizes, in the order in which they are called.
        arrays: by name; nothing else may be missing or left over.

    Raises:
        ValueError: if an array is missing, unknown, or of another shape; then nothing is changed.

    Example:
        >>> module = NFM(3, read=False)
        >>> arrays = {f"0.{name}": weight for name, weight in module.state_dict().items()}
        >>> load_authors_weights([module], arrays)
    """
    states = [_state_of(place, module, arrays) for place, module in enumerate(modules)]
    known = {
        f"{place}.{name}"
        for place, module in enumerate(modules)
        for name in (*module.state_dict(), *_passed_over(module))
    }
    for name in arrays:
        if name not in known:
            raise ValueError(f"load_authors_weights: {name!r} belongs to no module.")
    for module, state in zip(modules, states, strict=True):
        module.load_state_dict(state)


with torch.device("meta"):  # draws no random numbers
    #: Of a module that reads and writes. The count of batches is not in the authors' files.
    _ALL_NAMES = frozenset(NFM(1).state_dict()) - {"out.norm.num_batches_tracked"}
_TO_WRITE = frozenset(name for name in _ALL_NAMES if name.startswith(("key.", "value.")))


def _passed_over(module: NFM) -> frozenset[str]:
    """Parameters that only a module that reads, or that writes, needs."""
    for_reading = frozenset() if module.reads else _ALL_NAMES - _TO_WRITE
    return for_reading if module.writes else for_reading | _TO_WRITE


def _state_of(place: int, module: NFM, arrays: Mapping[str, ArrayLike]) -> dict[str, Tensor]:
    state = {}
    for name, own in module.state_dict().items():
        full = f"{place}.{name}"
        if full not in arrays:
            if name in _ALL_NAMES:
                raise ValueError(f"load_authors_weights: there is no array {full!r}.")
            state[name] = own
            continue
        given = torch.as_tensor(arrays[full]).to(own)
        if given.shape != own.shape:
            raise ValueError(
                f"load_authors_weights: {full!r} must be {tuple(own.shape)}; "
                f"got {tuple(given.shape)}."
            )
        state[name] = given
    return state
