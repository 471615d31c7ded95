"""Running several runs at once, each in its own process, so that none can harm another."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from lab.words import plural

# Spawned, not forked: an environment pool made before a fork would hang.
_SPAWN = multiprocessing.get_context("spawn")

#: Characters of an error at most.
MAX_ERROR = 2000

#: Seconds between two calls of ``on_wait``.
POLL_SECONDS = 1.0

#: Processors that other work may take before a user is told.
_TOLERATED = 0.75

EXIT_INTERRUPTED = 130

#: Seconds that a process whose parent has died is given to save.
GRACE_SECONDS = 120.0

_OWN_GROUPS = hasattr(os, "setpgrp")  # of processes; not on Windows


class Outcome(NamedTuple):
    """The result or the error of one call."""

    result: Any = None
    error: str | None = None  # one line


class _Worker(NamedTuple):
    place: int  # of its call
    process: BaseProcess
    answers: Connection
    sender: Connection


def usable_processors() -> int:
    """Processors this process may use, which can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def jobs_of(jobs: int | None, threads: int, runs: int) -> int:
    """Runs to train at a time: as asked for, else as many as have processors of their own.

    Args:
        jobs: as asked for; ``None``: not.
        threads: of each run.
        runs: there are no more.
    """
    return min(jobs or max(1, usable_processors() // threads), runs)


def crowding(threads: int) -> str | None:
    """One line if that many threads would have to share processors; else ``None``."""
    have = usable_processors()
    if threads > have:
        of = plural(have, "usable processor")
        return f"{threads} threads share {of}; fewer threads or jobs are at least as fast."
    there = os.cpu_count() or have
    busy = min(os.getloadavg()[0], there) if hasattr(os, "getloadavg") else 0.0
    if busy + threads > there + _TOLERATED:
        return (
            f"other work keeps {busy:.1f} of {there} processors busy, beside the "
            f"{plural(threads, 'thread')} of this command; all take longer."
        )
    return None


def run_all(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    jobs: int,
    on_wait: Callable[[int], None] = lambda _: None,
    on_end: Callable[[int, Outcome], None] = lambda _place, _outcome: None,
) -> list[Outcome]:
    """Call ``function`` with each of ``calls``, ``jobs`` at a time, each in a fresh process.

    On Ctrl-C each process gets the signal too, once, also if it was sent to this process alone, and
    is waited for, so that it can save; a second Ctrl-C is passed on as well. They also get it when
    this process dies, of SIGKILL for instance.

    Args:
        function: of a module, as it has to be found again in the new process.
        calls: arguments, which are pickled. The next ones are asked for when a process is free, so
            that they may depend on what has ended.
        jobs: processes at a time.
        on_wait: called about every second with the number of calls that have just ended.
        on_end: called with the place and outcome of every call when it ends, before the next one
            is asked for.

    Returns:
        What became of each call, in their order.
    """
    waiting = enumerate(calls)
    running: list[_Worker] = []
    outcomes: dict[int, Outcome] = {}
    try:
        while True:
            for place, arguments in itertools.islice(waiting, jobs - len(running)):
                running.append(_worker(function, place, arguments))  # first: it may be interrupted
                running[-1].process.start()
                running[-1].sender.close()  # it has its own; with this one its end goes unnoticed
            if not running:
                break
            by_sentinel: dict[Any, _Worker] = {w.process.sentinel: w for w in running}
            ready = wait(list(by_sentinel), timeout=POLL_SECONDS)
            for ended in ready:
                worker = by_sentinel[ended]
                running.remove(worker)
                outcomes[worker.place] = _outcome(worker)
                on_end(worker.place, outcomes[worker.place])
            on_wait(len(ready))
    except KeyboardInterrupt:
        _interrupt(running)
        raise
    finally:
        _wait_for(running)
    return [outcomes[place] for place in sorted(outcomes)]


def _worker(function: Callable[..., Any], place: int, arguments: tuple[Any, ...]) -> _Worker:
    """A process that has not started yet."""
    answers, sender = _SPAWN.Pipe(duplex=False)
    # Pickled here, so that the process is ready for signals before it imports what it calls.
    work = pickle.dumps((function, arguments))
    process = _SPAWN.Process(target=_call, args=(work, sender))
    return _Worker(place, process, answers, sender)


def _interrupt(workers: Sequence[_Worker]) -> None:
    """Pass a Ctrl-C on to those that run."""
    for worker in workers if _OWN_GROUPS else ():  # else they have it from the terminal
        if worker.process.is_alive() and worker.process.pid is not None:
            os.kill(worker.process.pid, signal.SIGINT)


def _wait_for(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        while worker.process.is_alive():
            try:
                worker.process.join()
            except KeyboardInterrupt:  # once more
                _interrupt(workers)


def _call(work: bytes, sender: Connection) -> None:
    if _OWN_GROUPS:
        # Else Ctrl-C in a terminal would come twice, from there and from the parent, and a second
        # one means to stop without saving.
        os.setpgrp()
        # In the background of a script SIGINT is ignored, which is inherited. Here it only comes
        # from the parent, which passes on with it whatever asked itself to stop.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome = called(_call_pickled, (work,))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    sender.send(outcome)


def _call_pickled(work: bytes) -> Any:
    function, arguments = pickle.loads(work)
    return function(*arguments)


def called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    """Make a call, and tell what became of it.

    Raises:
        KeyboardInterrupt: if the call does.
    """
    try:
        return Outcome(result=function(*arguments))
    except Exception as error:  # whatever it is, the other calls go on
        # Cut, because what does not fit a pipe's buffer would never be sent.
        text = " ".join(str(error).split())[:MAX_ERROR] or type(error).__name__
        known = isinstance(error, ValueError | RuntimeError | OSError)
        return Outcome(error=text if known else f"{type(error).__name__}: {text}")


def _end_with_parent() -> None:
    """Save and end, as on Ctrl-C, when the parent has died."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GRACE_SECONDS)  # this thread goes when the process ends
    os._exit(EXIT_INTERRUPTED)


def _outcome(worker: _Worker) -> Outcome:
    """The outcome of a process that has ended."""
    worker.process.join()
    try:
        outcome = worker.answers.recv() if worker.answers.poll() else None
    except EOFError:  # it ended without an answer
        outcome = None
    worker.answers.close()
    if isinstance(outcome, Outcome):
        return outcome
    code = worker.process.exitcode or 0
    if code < 0:
        return Outcome(error=f"its process was killed ({signal.Signals(-code).name}).")
    if code == EXIT_INTERRUPTED:
        return Outcome(error="it was interrupted.")
    return Outcome(error=f"its process stopped with exit code {code}.")
