"""Progress on screen: a live table, or plain lines without a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table

#: Seconds between two plain lines.
PLAIN_INTERVAL = 5.0


class _Console(Console):
    """A console whose reader may be gone."""

    def on_broken_pipe(self) -> None:
        """Be silent from now on; rich ends the process, and with it the work that is shown."""
        self.quiet = True


class Display:
    """Shows a renderable that changes; prints lines instead where output is not a terminal.

    Args:
        console: output; default: standard error, so that results on standard output can be piped.
        plain_interval: seconds between two lines where output is not a terminal.
    """

    def __init__(
        self, console: Console | None = None, plain_interval: float = PLAIN_INTERVAL
    ) -> None:
        self.console = console or _Console(stderr=True, highlight=False)
        self._plain_interval = plain_interval
        self._live = Live(console=self.console, auto_refresh=False)
        self._last_line = -math.inf

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the terminal may be gone
            self._live.stop()

    def show(self, picture: RenderableType, lines: Sequence[str], *, final: bool = False) -> bool:
        """Show ``picture`` on a terminal, elsewhere at intervals ``lines`` (always if final).

        Returns:
            Whether ``lines`` were printed.
        """
        if self.console.is_terminal:
            self._live.update(picture, refresh=True)
            return False
        if not final and time.monotonic() - self._last_line <= self._plain_interval:
            return False
        self._last_line = time.monotonic()
        for line in lines:
            self.console.print(line, soft_wrap=True)
        return True


class RunLine(NamedTuple):
    """The progress of one of several runs."""

    name: str
    done: int
    total: int
    score: float | str  # a text says itself what it is


class ProgressTable(Display):
    """Progress of several runs; as plain lines, only of those that went on since the last.

    Args:
        unit: name of the things counted.
        score: name of the number shown beside it.
        short: both, as they are called in plain lines.
    """

    def __init__(self, unit: str, score: str, short: tuple[str, str]) -> None:
        super().__init__()
        self._columns = ("run", "progress", unit, score)
        self._short = short
        self._printed: dict[str, str] = {}

    def show_runs(self, runs: Iterable[RunLine]) -> None:
        """Show every run's newest numbers."""
        table = Table(box=None, header_style="cyan")
        for column in self._columns:
            table.add_column(column)
        unit, score = self._short
        lines = {}
        for run in runs:
            count = f"{run.done:,}/{run.total:,}"
            bar = ProgressBar(total=run.total, completed=min(run.done, run.total), width=30)
            told = isinstance(run.score, str)
            value = run.score if isinstance(run.score, str) else number(run.score)
            table.add_row(run.name, bar, count, value)
            if run.done:
                named = value if told else f"{score} {value}"
                lines[run.name] = f"{run.name}: {count} {unit}, {named}"
        news = [line for name, line in lines.items() if self._printed.get(name) != line]
        if self.show(table, news):
            self._printed = lines


def number(value: float) -> str:
    """A value in a table; a dash for NaN.

    >>> number(0.12345), number(12345.6), number(math.nan)
    ('0.123', '12,346', '-')
    """
    return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """A time in minutes, or hours if it is longer.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def show_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, nothing elsewhere; yields a function to advance it."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.advance(task, done)
