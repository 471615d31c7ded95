"""Which of many cases `make test` runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

LONG = pytest.mark.long


def short(cases: Iterable[Any], *places: int) -> list[Any]:
    """All cases; those at other places than these are left to `make test-long`.

    Args:
        cases: of ``pytest.mark.parametrize``; a tuple holds the values of several arguments.
        places: of the short ones, from 0.
    """
    given = list(cases)
    chosen = {place % len(given) for place in places}
    return [_param(case, () if place in chosen else (LONG,)) for place, case in enumerate(given)]


def _param(case: Any, marks: tuple[Any, ...]) -> Any:
    if hasattr(case, "marks"):  # of pytest.param
        return pytest.param(*case.values, marks=(*case.marks, *marks), id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks)
