"""What threads ask for at once is made once."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from rims.native.once import once


def in_threads(work: Any, *given: tuple[Any, ...]) -> list[Any]:
    """What ``work`` returns in as many threads as there are arguments, begun together."""
    found: list[Any] = [None] * len(given)
    together = threading.Barrier(len(given))

    def one(place: int) -> None:
        together.wait(timeout=20)
        found[place] = work(*given[place])

    workers = [threading.Thread(target=one, args=(place,)) for place in range(len(given))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=20)
    return found


def test_threads_get_the_same_object() -> None:
    asked: list[str] = []

    @once
    def made(name: str) -> object:
        asked.append(name)
        time.sleep(0.1)
        return object()

    first, second, other = in_threads(made, ("a",), ("a",), ("b",))
    assert first is second is made("a")
    assert other is made("b") is not first
    assert sorted(asked) == ["a", "b"]


def test_what_is_there_does_not_wait_for_what_is_made() -> None:
    goes_on = threading.Event()

    @once
    def made(waits: bool) -> bool:
        return not waits or goes_on.wait(20)

    made(False)
    maker = threading.Thread(target=made, args=(True,))
    maker.start()
    (found,) = in_threads(made, (False,))
    assert found
    assert maker.is_alive()
    goes_on.set()
    maker.join(timeout=20)


def test_one_thing_may_take_another_and_an_error_is_not_kept() -> None:
    fails = [True]

    @once
    def inner() -> int:
        if fails.pop():
            raise OSError("no room")
        return 2

    @once
    def outer() -> int:
        return inner() + 1

    with pytest.raises(OSError, match="no room"):
        outer()
    fails.append(False)
    assert outer() == 3


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("rims.scan.native.build", "code"),
        ("rims.scan.paths", "native_fault"),
        ("nfm.native.build", "code"),
        ("nfm.fast", "native_fault"),
        ("rims.jax.native.handler", "parts"),
        ("rims.jax.native.calls", "_target"),
        ("rims.jax.native", "fault"),
    ],
)
def test_machine_code_is_made_once(module: str, name: str) -> None:
    made = getattr(pytest.importorskip(module), name)
    assert made.__code__ is once(lambda: None).__code__
