"""Live view of runs that train elsewhere, read from their folders."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agents.watching.charts import Chart, Sparkline
from agents.watching.display import (
    NOT_TOLD,
    seconds_left,
    success_text,
    training_line,
    training_picture,
)
from agents.watching.run_list import FoundRun, find_runs, read_run
from lab.disk.folder import PROGRESS_NAME
from lab.disk.lock import has_writer
from lab.reporting.display import Display, clock, number

#: Charts below the numbers of a run.
CHARTS = {
    "success_rate": "success rate, latest episodes",
    "episode_return_mean": "return, latest episodes",
}


class Seen(NamedTuple):
    """The state of a run at one moment."""

    run: FoundRun
    has_writer: bool

    @property
    def state(self) -> str:
        """The state of the run in a few words."""
        if self.run.is_complete:
            return "done"
        if not self.has_writer:
            return "stopped"
        if not self.run.row or not self.run.total_steps:
            return "training"
        return f"{clock(seconds_left(self.run.row, self.run.total_steps))} left"


class Watcher:
    """Looks at all runs in a place again and again; reads only what has changed.

    Args:
        place: a run folder, or a folder with run folders below it.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._known: dict[Path, tuple[tuple[int, ...], FoundRun]] = {}

    def look(self) -> list[Seen]:
        """Every run there is now. What cannot be read at the moment counts as not there."""
        try:
            folders = find_runs([self.place])
        except ValueError:  # none yet, or moved away just now
            return []
        looks = ((self._read(folder), self._has_writer(folder)) for folder in folders)
        return [Seen(run, held) for run, held in looks if run is not None]

    def is_under_way(self) -> bool:
        """Whether anything in the place is being trained."""
        return bool(has_writer(self.place)) or any(seen.has_writer for seen in self.look())

    def _read(self, folder: Path) -> FoundRun | None:
        try:
            status = (folder / PROGRESS_NAME).stat()
            version = (status.st_ino, status.st_size, status.st_mtime_ns)
            if folder not in self._known or self._known[folder][0] != version:
                self._known[folder] = version, read_run(folder)
        except (OSError, ValueError):  # it is being moved, or was damaged
            return None
        return self._known[folder][1]

    def _has_writer(self, folder: Path) -> bool:
        held = has_writer(folder)
        if held is None:  # another user's folder: believe in it until it is complete
            run = self._read(folder)
            return run is not None and not run.is_complete
        return held


def check_watchable(place: Path) -> None:
    """Refuse a folder that holds no run and in which no command has begun.

    Raises:
        ValueError: if the folder does not exist, holds no run that nobody is about to train, or a
            run that cannot be read.
    """
    try:
        folders = find_runs([place])
    except ValueError:
        if not has_writer(place):
            raise
        return
    for folder in folders:
        read_run(folder)


def watch_folder(place: Path, interval: float, console: Console | None = None) -> None:
    """Show what is trained in ``place`` until nothing is any more.

    Args:
        place: a run folder, or a folder with run folders below it.
        interval: seconds between two looks.
        console: output; default: standard output.
    """
    watcher = Watcher(place)
    printed: set[str] = set()
    with Display(console or Console(highlight=False, markup=False), plain_interval=0) as display:
        while True:
            # First: what is written before the lock is released is then seen below.
            under_way = watcher.is_under_way()
            seen = watcher.look()
            lines = lines_of(place, seen)
            display.show(picture_of(place, seen), [line for line in lines if line not in printed])
            printed = set(lines)
            if not under_way:
                break
            time.sleep(interval)
        display.console.print(ending_of(seen), soft_wrap=True)


def picture_of(place: Path, seen: Sequence[Seen]) -> RenderableType:
    """The picture for a terminal: one run in full, or a row for each of several."""
    if not seen:
        return Text(f"{place}: nothing is trained yet")
    if len(seen) == 1 and seen[0].run.folder == place:
        return _picture_of_run(seen[0])
    table = Table(box=None, header_style="cyan", padding=(0, 1, 0, 0))
    for column in ("run", "steps", "return", "success"):
        table.add_column(column, no_wrap=True, justify="left" if column == "run" else "right")
    for column in ("", "progress"):  # curve and bar give way where the terminal is narrow
        table.add_column(column, max_width=20)
    table.add_column("", no_wrap=True)
    for one in seen:
        run, row = one.run, one.run.row
        total = run.total_steps or max(run.env_steps, 1)
        table.add_row(
            _name(place, run),
            _steps(run),
            number(row.get("episode_return_mean", math.nan)),
            success_text(row),
            Sparkline(run.progress.get("env_steps", []), run.progress.get("success_rate", [])),
            ProgressBar(total=total, completed=min(run.env_steps, total)),
            one.state,
        )
    return table


def _picture_of_run(seen: Seen) -> RenderableType:
    run = seen.run
    title = f"{run.core} on {run.task}, seed {run.settings.get('seed', '?')}: {run.folder}"
    if not run.row:
        return Text(f"{title}\nwaiting for the first update")
    told = success_text(run.row) != NOT_TOLD
    charts = [
        Chart(label, run.progress["env_steps"], run.progress[name])
        for name, label in CHARTS.items()
        if name in run.progress and (told or name != "success_rate")
    ]
    return Group(training_picture(title, run.row, run.total_steps or run.env_steps), *charts)


def lines_of(place: Path, seen: Sequence[Seen]) -> list[str]:
    """Lines printed where output is not a terminal: one for each run that has a row."""
    lines = []
    for one in seen:
        if one.run.row:
            line = training_line(one.run.row, one.run.total_steps or one.run.env_steps)
            lines.append(line if one.run.folder == place else f"{_name(place, one.run)}: {line}")
    return lines


def ending_of(seen: Sequence[Seen]) -> str:
    """The message when no run trains any more."""
    complete = sum(one.run.is_complete for one in seen)
    if len(seen) == 1:
        if complete:
            return f"Training has ended after {_steps(seen[0].run)} steps."
        return f"Nothing is training here; this run stopped at {_steps(seen[0].run)} steps."
    return f"Nothing is training here any more; {complete} of {len(seen)} runs are complete."


def _name(place: Path, run: FoundRun) -> str:
    return str(run.folder.relative_to(place)) if run.folder != place else run.folder.name


def _steps(run: FoundRun) -> str:
    total = f"{run.total_steps:,}" if run.total_steps else "?"
    return f"{run.env_steps:,} of {total}"
