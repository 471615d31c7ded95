"""A job of a Slurm cluster: a call that can be stopped, and goes on when it is made again."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from lab.running.processes import Outcome, called
from lab.running.signals import exit_code

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

#: Seconds until a request to stop that was not taken is repeated.
RETRY_SECONDS = 0.5

#: Seconds that a job which was asked to stop waits, saved, for what Slurm does with it.
LINGER_SECONDS = 600.0


class ResumableCall:
    """A call as a job of Slurm, of a function that goes on where it was when called again.

    Slurm says only by its next signal what SIGTERM was for. After the time limit's or preemption's
    signal (SIGUSR2) the job is queued again once its function has saved; submitit's own handler
    does that. After SIGTERM alone the job, saved, waits to be killed, as it is when cancelled:
    one that ends by itself would not be queued again by a Slurm that preempts.

    Args:
        function: of a module; on a request to stop (:class:`lab.running.signals.StopRequest`) it
            saves and raises KeyboardInterrupt.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Outcome:
        """Make the call.

        Raises:
            SystemExit: if it was stopped, so that submitit writes no answer.
        """
        with _Requests() as requests:
            try:
                return called(self._logged, arguments)
            except KeyboardInterrupt as interruption:
                if requests.requeue_wanted_within(LINGER_SECONDS):
                    return called(requests.requeue, ())
                sys.exit(exit_code(interruption))

    def _logged(self, *arguments: Any) -> Any:
        try:
            return self.function(*arguments)
        except Exception:
            traceback.print_exc()  # into the job's log; the answer has one line of it
            raise

    def checkpoint(self, *arguments: Any) -> DelayedSubmission:
        """The call of a restarted job: the same one, as everything that counts is on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


class _Requests:
    """Has Slurm's signals ask for a stop, whenever they come and however often.

    A SIGTERM can come before anybody listens, and again while a run saves, where it would mean to
    stop at once. So one that meets no listener changes nothing and is made again a little later.
    """

    def __init__(self) -> None:
        from submitit import JobEnvironment

        self._requeue_wanted = False
        self._user_signal: int = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
        self._before: dict[int, Any] = {}

    def requeue_wanted_within(self, seconds: float) -> bool:
        """Wait for the signal that asks to be queued again, if it has not come."""
        deadline = time.monotonic() + seconds
        while not self._requeue_wanted and time.monotonic() < deadline:
            time.sleep(0.1)
        return self._requeue_wanted

    def requeue(self) -> None:
        """Do what submitit does on its signal, and end.

        Raises:
            SystemExit: when the job is queued again.
            RuntimeError: if it is not, because it ran into its time limit too often.
        """
        self._before[self._user_signal](self._user_signal, None)

    def _note_requeue(self, number: int, frame: FrameType | None) -> None:
        self._requeue_wanted = True
        self._ask(number, frame)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)

    def _ask_later(self, _number: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)

    def __enter__(self) -> Self:
        for number, handler in (
            (signal.SIGALRM, self._ask),
            (signal.SIGTERM, self._ask_later),
            (self._user_signal, self._note_requeue),
        ):
            self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
