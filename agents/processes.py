"""Running several runs at once, each in a process of its own, so that none can harm another."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

# Spawned, not forked: an environment pool made before a fork would hang.
_SPAWN = multiprocessing.get_context("spawn")

#: Characters of an error at most.
MAX_ERROR = 2000

#: Seconds between two calls of ``on_wait``.
POLL_SECONDS = 1.0

EXIT_INTERRUPTED = 130


class Outcome(NamedTuple):
    """What became of one call."""

    result: Any = None
    error: str | None = None  # one line


class _Worker(NamedTuple):
    place: int  # of its call
    process: BaseProcess
    answers: Connection


def usable_processors() -> int:
    """Processors this process may use, which can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    jobs: int,
    on_wait: Callable[[int], None] = lambda _: None,
    on_end: Callable[[int, Outcome], None] = lambda _place, _outcome: None,
) -> list[Outcome]:
    """Call ``function`` with each of ``calls``, ``jobs`` at a time, each in a fresh process.

    On Ctrl-C the processes get the signal too: they are waited for, so that they can save.

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
    running: dict[Any, _Worker] = {}  # by what becomes ready when the process has ended
    outcomes: dict[int, Outcome] = {}
    try:
        while True:
            for place, arguments in itertools.islice(waiting, jobs - len(running)):
                worker = _start(function, place, arguments)
                running[worker.process.sentinel] = worker
            if not running:
                break
            ready = wait(list(running), timeout=POLL_SECONDS)
            for ended in ready:
                worker = running.pop(ended)
                outcomes[worker.place] = _outcome(worker)
                on_end(worker.place, outcomes[worker.place])
            on_wait(len(ready))
    finally:
        for worker in running.values():
            worker.process.join()
    return [outcomes[place] for place in sorted(outcomes)]


def _start(function: Callable[..., Any], place: int, arguments: tuple[Any, ...]) -> _Worker:
    answers, sender = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_call, args=(function, arguments, sender))
    process.start()
    sender.close()  # the process has its own; with this one open its end would go unnoticed
    return _Worker(place, process, answers)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], sender: Connection) -> None:
    try:
        outcome = Outcome(result=function(*arguments))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:  # whatever it is, the other calls go on
        # Cut, because what does not fit the pipe's buffer would never be sent.
        text = " ".join(str(error).split())[:MAX_ERROR] or type(error).__name__
        known = isinstance(error, ValueError | RuntimeError | OSError)
        outcome = Outcome(error=text if known else f"{type(error).__name__}: {text}")
    sender.send(outcome)


def _outcome(worker: _Worker) -> Outcome:
    """Of a process that has ended."""
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
