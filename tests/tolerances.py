"""How far rounding may bring apart what is equal.

Bits are asked for only where the same operation is done on the same shapes with the same number of
threads: processors, shapes and threads share out sums differently. Everything else is compared to
within what follows from its type and the number of terms, here or beside the test.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

#: In double precision, numbers about one. Sums of a thousand products err by 1e-14 of their size,
#: and a few dozen steps in a row hand that on, each to several sums: below 1e-11. What a fault
#: changes, a term left out or a wrong row, is above 1e-6.
assert_near = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def rounding(dtype: torch.dtype, terms: int, *, times: int = 1) -> float:
    """Largest difference between two ways of summing, as a part of the largest result.

    Errors of n roundings add up like a random walk, to sqrt(n) eps / 2 (Higham and Mary 2019, "A
    new approach to probabilistic rounding error analysis"). Eight times that holds for the worst of
    many thousand sums.

    Args:
        dtype: in which they are made.
        terms: n, numbers in a sum.
        times: sums that follow one another, each of the results of the one before.

    Raises:
        ValueError: where a sum that leaves out one term could not be told from a rounded one.

    >>> f"{rounding(torch.float32, 100):.1e}"
    '4.8e-06'
    """
    result = 4 * times * math.sqrt(terms) * torch.finfo(dtype).eps
    if result > 1 / terms:
        raise ValueError(f"{terms} terms of {dtype}, {times} times: one more or less would pass")
    return result


#: How far from 1 the probability ratio of a step computed again may be: in single precision, a
#: view's 147 ones times their weights, then a dozen steps of a core. A wrong state makes it more
#: than 1e-3, see test_ratio_error_notices_a_wrong_state.
RATIO_ERROR = rounding(torch.float32, 147, times=12)


def assert_rounds(got: Tensor, expected: Tensor, terms: int, *, times: int = 1) -> None:
    """Equal up to :func:`rounding` in the narrower of the two types."""
    dtype = min(got.dtype, expected.dtype, key=lambda dtype: dtype.itemsize)
    bound = rounding(dtype, terms, times=times) * float(expected.detach().abs().max())
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=bound)
