"""Kernels are compiled at once with what they call; all else as Numba compiles it."""

# mypy: allow-untyped-decorators

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

numba: Any = pytest.importorskip("numba", reason="kernels need numba")

from rims.native import linking  # noqa: E402

ARRAY = numba.types.CPointer(numba.types.int64)


@pytest.fixture
def machine_code(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what machine code is made of, from here on."""
    made: list[str] = []
    plain = linking._Library._finalize_specific

    def noted(self: Any) -> None:
        made.append(self.name)
        plain(self)

    monkeypatch.setattr(linking._Library, "_finalize_specific", noted)
    return made


def kernels() -> tuple[Any, Any, Callable[[Any], None]]:
    """Two that are told apart by their names alone, and an entry that calls both."""

    @numba.njit
    def twice(x: Any) -> Any:
        return 2 * x

    @numba.njit
    def squared(x: Any) -> Any:
        return x * x

    def entry(numbers: Any) -> None:
        numbers[1] = twice(numbers[0])
        numbers[2] = squared(numbers[0])

    return twice, squared, entry


def outcome(entry: Any) -> Any:
    """What the machine code of an entry writes behind a 7."""
    numbers = np.array([7, 0, 0])
    entry.ctypes(ctypes.cast(numbers.ctypes.data, entry.ctypes.argtypes[0]))
    return numbers.tolist()


def test_only_the_entry_gets_machine_code(machine_code: list[str]) -> None:
    _, _, entry = kernels()
    with linking.at_once(entry.__qualname__):
        compiled = numba.cfunc(numba.types.void(ARRAY))(entry)
    assert outcome(compiled) == [7, 14, 49]
    assert machine_code == [entry.__qualname__]


def test_what_was_a_part_can_be_part_of_something_else(machine_code: list[str]) -> None:
    twice, squared, entry = kernels()
    with linking.at_once(entry.__qualname__):
        numba.cfunc(numba.types.void(ARRAY))(entry)

    @numba.njit
    def both(x: Any) -> Any:
        return twice(x) + squared(x)

    assert both(5) == 35
    assert len(machine_code) == 2


def test_afterwards_and_after_an_error_numba_compiles_as_ever(machine_code: list[str]) -> None:
    twice, squared, entry = kernels()
    with pytest.raises(ZeroDivisionError), linking.at_once(entry.__qualname__):
        raise ZeroDivisionError
    assert twice(5) + squared(5) == 35
    assert len(machine_code) == 2


def test_a_numba_of_another_make_compiles_as_ever(
    machine_code: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, entry = kernels()
    monkeypatch.setattr(linking, "POSSIBLE", False)
    with linking.at_once(entry.__qualname__):
        compiled = numba.cfunc(numba.types.void(ARRAY))(entry)
    assert outcome(compiled) == [7, 14, 49]
    assert len(machine_code) == 3


def test_an_entry_inside_another_is_refused() -> None:
    _, _, entry = kernels()
    with (
        linking.at_once("another"),
        pytest.raises(RuntimeError, match="another entry is being compiled"),
        linking.at_once(entry.__qualname__),
    ):
        pass
    with linking.at_once(entry.__qualname__):
        compiled = numba.cfunc(numba.types.void(ARRAY))(entry)
    assert outcome(compiled) == [7, 14, 49]


def test_a_part_that_python_calls_raises() -> None:
    twice, _, entry = kernels()
    with linking.at_once(entry.__qualname__):
        numba.cfunc(numba.types.void(ARRAY))(entry)
    with pytest.raises(ValueError, match="not in list"):
        twice(5)
