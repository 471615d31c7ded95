"""What a person sees while something runs: a live table, plain lines without a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # they need torch, which is not needed to watch others train
    from agents.compare import RunProgress
    from agents.evaluate import Evaluation
    from agents.statistics import Estimate
    from envs import Task

#: Columns of a table that goes into a file or pipe, which has no width of its own.
PIPE_WIDTH = 120

#: In place of a success rate, where neither the environment nor the task says what success is.
NOT_TOLD = "not told"

#: Seconds between two plain lines.
PLAIN_INTERVAL = 5.0

_SHOWN = {
    "env_steps_per_second": "steps/s",
    "episode_return_mean": "return, latest episodes",
    "success_rate": "success rate, latest episodes",
    "episode_length_mean": "steps per episode",
    "policy_loss": "policy loss",
    "value_loss": "value loss",
    "entropy": "entropy",
    "approx_kl": "approximate KL",
}


class _Console(Console):
    """A console that nobody may be looking at any more."""

    def on_broken_pipe(self) -> None:
        """Be silent from now on; rich ends the process, and with it the work that is shown."""
        self.quiet = True


class Display:
    """Shows a renderable that changes; prints lines instead where output is not a terminal.

    Args:
        console: where to. Default: standard error, so that results on standard output can be piped.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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


class TrainingDisplay(Display):
    """Progress of one run."""

    def __init__(self, title: str, total_steps: int) -> None:
        super().__init__()
        self.title = title
        self.total_steps = total_steps

    def update(self, row: Mapping[str, float]) -> None:
        """Show the row of the newest update."""
        picture = training_picture(self.title, row, self.total_steps)
        line = training_line(row, self.total_steps)
        self.show(picture, [line], final=row["env_steps"] >= self.total_steps)


def training_picture(title: str, row: Mapping[str, float], total_steps: int) -> RenderableType:
    """The newest metrics of a run, a bar and the time left.

    Args:
        title: stands above.
        row: of the newest update.
        total_steps: environment steps to train for.
    """
    table = Table(show_header=False, box=None)
    table.add_column(style="cyan")
    table.add_column(justify="right")
    for name, label in _SHOWN.items():
        if name in row:
            value = success_text(row) if name == "success_rate" else number(row[name])
            table.add_row(label, value)
    steps = row["env_steps"]
    table.add_row("environment steps", f"{int(steps):,} of {total_steps:,}")
    table.add_row("time", f"{clock(row['seconds'])}, {clock(seconds_left(row, total_steps))} left")
    bar = ProgressBar(total=total_steps, completed=min(steps, total_steps), width=60)
    # A title of the table would be wrapped to its width, and a bar alone does not end its line.
    return Group(Text(title, style="italic"), table, Padding(bar, 0))


def training_line(row: Mapping[str, float], total_steps: int) -> str:
    """The newest metrics of a run as one line."""
    return (
        f"{int(row['env_steps']):,}/{total_steps:,} steps  "
        f"{row['env_steps_per_second']:.0f} steps/s  "
        f"return {number(row['episode_return_mean'])}  "
        f"success {success_text(row)}  "
        f"entropy {number(row['entropy'])}  {clock(seconds_left(row, total_steps))} left"
    )


def success_text(row: Mapping[str, float]) -> str:
    """The success rate of the latest episodes, or that the environment does not say.

    >>> nan = math.nan
    >>> success_text({"success_rate": 0.5, "episode_return_mean": 0.4})
    '0.5'
    >>> success_text({"success_rate": nan, "episode_return_mean": 0.4})
    'not told'
    >>> success_text({"success_rate": nan, "episode_return_mean": nan})  # of nothing yet
    '-'
    """
    rate = row.get("success_rate", math.nan)
    if math.isnan(rate) and math.isfinite(row.get("episode_return_mean", math.nan)):
        return NOT_TOLD
    return number(rate)


def seconds_left(row: Mapping[str, float], total_steps: int) -> float:
    """Time to the end of the training at its mean speed so far."""
    return row["seconds"] / row["env_steps"] * max(0.0, total_steps - row["env_steps"])


class RunLine(NamedTuple):
    """How far one of several runs is."""

    name: str
    done: int
    total: int
    score: float | str  # a text says itself what it is


class ProgressTable(Display):
    """Progress of several runs; as plain lines, only of those that went on since the last.

    Args:
        unit: what is counted.
        score: what is shown beside it.
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


class RunsDisplay(ProgressTable):
    """Progress of several agents."""

    def __init__(self) -> None:
        super().__init__("environment steps", "success rate", ("steps", "success"))

    def update(self, runs: Sequence[RunProgress]) -> None:
        """Show every run's newest numbers."""
        self.show_runs(
            RunLine(p.run.name, p.env_steps, p.run.config.total_steps, score_of(p.row))
            for p in runs
        )


def score_of(row: Mapping[str, float]) -> float | str:
    """The success rate of a run's newest row; its return, as a text, where there is none.

    >>> score_of({"success_rate": math.nan, "episode_return_mean": 2.5})
    'return 2.5'
    """
    rate, mean = (row.get(name, math.nan) for name in ("success_rate", "episode_return_mean"))
    return f"return {number(mean)}" if math.isnan(rate) and not math.isnan(mean) else rate


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


def print_evaluations(title: str, evaluations: Sequence[Evaluation], trained: Task) -> None:
    """Print one row per task, with 95 % intervals, to standard output.

    Args:
        title: stands above the table.
        evaluations: the rows.
        trained: the task trained on, which is marked.
    """
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = "95 % intervals over episodes of this one agent; none where all are equal"
    if any(e.success_rate is None for e in evaluations):
        table.caption += (
            "\nsuccess rate -: the environment does not say; it would by is_success or success in "
            "its info at every episode's end"
        )
    for name in ("task", "episodes", "success rate", "return", "steps"):
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for e in evaluations:
        table.add_row(
            e.task.name + (" (trained)" if e.task == trained else ""),
            str(len(e.episodes)),
            "-" if e.success_rate is None else _interval(e.success_rate, ".3f"),
            _interval(e.mean_return, ".3f"),
            _interval(e.mean_length, ".1f"),
        )
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(highlight=False, markup=False, width=width).print(table)


def _interval(estimate: Estimate, form: str) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.mean:{form}}"
    return f"{estimate.mean:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
