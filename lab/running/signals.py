"""Requests to stop from outside: Ctrl-C, SIGTERM of a scheduler, SIGHUP of a lost terminal."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

#: Signals that ask a process to stop. Windows has no SIGHUP.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

#: Seconds in which a signal that is repeated is no second request. A terminal that closes sends
#: SIGHUP twice, and Ctrl-C reaches a process from the terminal and from torchrun.
SAME_REQUEST = 1.0

#: Exit code of a process that a signal ended, less the signal's number.
_EXIT_BASE = 128


class Stopped(KeyboardInterrupt):
    """A signal asked for the end of the work. Whoever handles Ctrl-C handles it the same way."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(interruption: BaseException | None) -> int:
    """130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.

    Example:
        >>> exit_code(KeyboardInterrupt()), exit_code(Stopped(signal.SIGTERM))
        (130, 143)
    """
    number = interruption.number if isinstance(interruption, Stopped) else signal.SIGINT
    return _EXIT_BASE + number


def raise_when_stopped() -> None:
    """Have SIGTERM and SIGHUP raise :class:`Stopped`, as Ctrl-C raises KeyboardInterrupt.

    For the main thread of a command. A signal that is ignored, as nohup has it, stays so.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    for number in STOPPING:
        if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)


class StopRequest:
    """Takes note of the first signal to stop, so that a step can be finished.

    A second one, :data:`SAME_REQUEST` later, stops at once. Use as a context manager. The handler
    does nothing but take note: saving in it could find anything half-done.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._noted = 0.0
        self._before: dict[int, Any] = {}

    @property
    def wanted(self) -> bool:
        """Whether there was one."""
        return self.number is not None

    def obey(self) -> None:
        """Raise what the signal would have raised.

        Raises:
            Stopped: if there was one.
        """
        if self.number is not None:
            raise Stopped(self.number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._noted = number, time.monotonic()
        elif time.monotonic() - self._noted >= SAME_REQUEST:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there can they be had
            for number in STOPPING:
                handler = signal.getsignal(number)
                # Ignored, as nohup has it; or, None, taken by something that is not Python.
                if handler not in (signal.SIG_IGN, None):
                    self._before[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
