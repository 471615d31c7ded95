"""Kernels are compiled in one piece that needs no other; all else as Numba compiles it."""

# mypy: allow-untyped-decorators

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

numba: Any = pytest.importorskip("numba", reason="kernels need numba")

from rims.native import build, compiler  # noqa: E402

ENTRY = numba.types.void(numba.types.CPointer(numba.types.int64))
#: The function pointer that would be called from Python.
_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def kernels(factor: int = 2) -> tuple[Any, Any, Callable[[Any], None]]:
    """Two that are told apart by their names alone, and an entry that calls both."""

    @numba.njit
    def times(x: Any) -> Any:
        return factor * x

    @numba.njit
    def squared(x: Any) -> Any:
        return x * x

    def entry(numbers: Any) -> None:
        numbers[1] = times(numbers[0])
        numbers[2] = squared(numbers[0])

    return times, squared, entry


def outcome(code: bytes | None) -> Any:
    """What an object writes behind a 7."""
    assert code is not None
    engine, numbers = build._loaded(code), np.array([7, 0, 0])
    _Body(engine.get_function_address(compiler.ENTRY))(numbers.ctypes.data)
    return numbers.tolist()


def test_an_object_holds_all_it_needs() -> None:
    _, _, entry = kernels()
    code = compiler.object_code(ENTRY, entry)
    assert outcome(code) == [7, 14, 49]
    # Names of parts are private: of another object nothing can be linked to them.
    assert code is not None
    assert b"times" not in code
    assert b"squared" not in code


def test_an_object_does_not_depend_on_what_was_compiled_before() -> None:
    alone = compiler.object_code(ENTRY, kernels()[2])
    compiler.object_code(ENTRY, kernels(5)[2])
    assert compiler.object_code(ENTRY, kernels()[2]) == alone
    assert compiler.object_code(ENTRY, kernels(5)[2]) != alone  # as it would be for another kernel


def test_objects_with_parts_of_the_same_names_do_not_meet() -> None:
    codes = {factor: compiler.object_code(ENTRY, kernels(factor)[2]) for factor in (2, 3, 5)}
    for _ in range(2):
        for factor, code in codes.items():
            assert outcome(code) == [7, 7 * factor, 49]


def test_what_was_a_part_can_be_part_of_something_else() -> None:
    times, squared, entry = kernels()
    compiler.object_code(ENTRY, entry)

    @numba.njit
    def both(x: Any) -> Any:
        return times(x) + squared(x)

    assert both(5) == 35


def test_afterwards_and_after_an_error_numba_compiles_as_ever() -> None:
    times, squared, _ = kernels()

    def broken(numbers: Any) -> None:
        numbers.nothing_of_that_name()

    with pytest.raises(numba.TypingError):
        compiler.object_code(ENTRY, broken)
    assert times(5) + squared(5) == 35


def test_a_numba_of_another_make_compiles_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, entry = kernels()
    monkeypatch.setattr(compiler, "POSSIBLE", False)
    assert compiler.object_code(ENTRY, entry) is None


def test_what_needs_its_process_is_not_kept() -> None:
    """An exception is raised by functions of Python and data of this process."""

    def entry(numbers: Any) -> None:
        if numbers[0] > 100:
            raise ValueError("large")
        numbers[1] = 14

    assert compiler.object_code(ENTRY, entry) is None


def test_an_entry_inside_another_is_refused() -> None:
    with (
        compiler._in_parts(),
        pytest.raises(RuntimeError, match="another entry is being compiled"),
    ):
        compiler.object_code(ENTRY, kernels()[2])
    assert outcome(compiler.object_code(ENTRY, kernels()[2])) == [7, 14, 49]


def test_a_part_that_python_calls_raises() -> None:
    times, _, entry = kernels()
    compiler.object_code(ENTRY, entry)
    with pytest.raises(ValueError, match="not in list"):
        times(5)


def test_two_threads_leave_numbas_own_settings() -> None:
    before = str(numba.config.OPT), numba.config.LOOP_VECTORIZE
    codes: list[bytes | None] = []

    def work() -> None:
        codes.append(compiler.object_code(ENTRY, kernels()[2]))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [outcome(code) for code in codes] == [[7, 14, 49]] * 2
    assert (str(numba.config.OPT), numba.config.LOOP_VECTORIZE) == before
