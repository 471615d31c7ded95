"""Two tasks that need memory and nothing else: copying and adding, of any length."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.data.common import check_at_least

#: The token that stands for nothing, as input and as target.
BLANK = 0


class CopyingSequences(NamedTuple):
    """Sequences to be copied, time first; tokens are counted from 0."""

    inputs: NDArray[np.int64]  # (T, B)
    targets: NDArray[np.int64]  # (T, B), BLANK before the recall


class AddingSequences(NamedTuple):
    """Numbers of which two are marked, and the sums of these two; time first."""

    inputs: NDArray[np.float32]  # (T, B, 2): the number, and 1 where it is marked, else 0
    targets: NDArray[np.float32]  # (B,)


def copying_sequences(
    num_sequences: int,
    blanks: int,
    rng: np.random.Generator,
    *,
    items: int = 10,
    alphabet: int = 8,
) -> CopyingSequences:
    """Draw sequences for the copying task (section 4.1 of arXiv:1909.10893).

    The input is ``items`` random symbols, ``blanks - 1`` blanks, a marker that asks for the recall,
    and ``items`` blanks; so there are ``blanks`` steps between what is to be kept and the first
    step at which it is told again. The target is blank up to the marker, then the symbols in their
    order. Tokens: 0 is the blank, 1 to ``alphabet`` are symbols, ``alphabet + 1`` is the marker.

    Args:
        num_sequences: B.
        blanks: steps between the symbols and the recall, the marker's step among them, 1 or more.
        rng: source of all draws.
        items: symbols to be kept. Default 10.
        alphabet: different symbols. Default 8.

    Returns:
        Inputs and targets of ``blanks + 2 items`` steps.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> inputs, targets = copying_sequences(1, 3, np.random.default_rng(0), items=2)
        >>> inputs[:, 0].tolist(), targets[:, 0].tolist()
        ([7, 6, 0, 0, 9, 0, 0], [0, 0, 0, 0, 0, 7, 6])
    """
    for name, value in (
        ("num_sequences", num_sequences),
        ("blanks", blanks),
        ("items", items),
        ("alphabet", alphabet),
    ):
        check_at_least("copying_sequences", name, value)
    symbols = rng.integers(1, alphabet + 1, size=(items, num_sequences))
    inputs = np.full((blanks + 2 * items, num_sequences), BLANK, np.int64)
    targets = inputs.copy()
    inputs[:items] = symbols
    inputs[items + blanks - 1] = alphabet + 1
    targets[-items:] = symbols
    return CopyingSequences(inputs, targets)


def adding_sequences(num_sequences: int, length: int, rng: np.random.Generator) -> AddingSequences:
    """Draw sequences for the adding task (Hochreiter and Schmidhuber, 1997).

    Every step shows a number, uniform in [0, 1). One step of the first half and one of the second
    are marked; the target is the sum of their numbers, which has variance 1/6 about its mean of 1.

    Args:
        num_sequences: B.
        length: T, 2 or more.
        rng: source of all draws.

    Returns:
        Inputs and targets.

    Raises:
        ValueError: if ``num_sequences`` is below 1 or ``length`` below 2.

    Example:
        >>> inputs, targets = adding_sequences(4, 6, np.random.default_rng(0))
        >>> inputs.shape, inputs[..., 1].sum(0).tolist()
        ((6, 4, 2), [2.0, 2.0, 2.0, 2.0])
        >>> np.allclose(targets, (inputs[..., 0] * inputs[..., 1]).sum(0))
        True
    """
    check_at_least("adding_sequences", "num_sequences", num_sequences)
    check_at_least("adding_sequences", "length", length, 2)
    half, each = length // 2, np.arange(num_sequences)
    numbers = rng.random((length, num_sequences), np.float32)
    first = rng.integers(0, half, num_sequences)
    second = rng.integers(half, length, num_sequences)
    marks = np.zeros_like(numbers)
    marks[first, each] = marks[second, each] = 1.0
    sums = numbers[first, each] + numbers[second, each]
    return AddingSequences(np.stack([numbers, marks], axis=-1), sums)
