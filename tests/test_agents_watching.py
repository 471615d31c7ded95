"""Watching: what is shown of runs on disk, and when there is nothing more to wait for."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from agents.watching import live as watching
from agents.watching.charts import ASCII_BLOCKS, Chart, bars, resample
from agents.watching.live import (
    Watcher,
    check_watchable,
    ending_of,
    lines_of,
    picture_of,
    watch_folder,
)
from agents.watching.run_list import FoundRun, read_run
from lab.disk.folder import PROGRESS_NAME
from lab.disk.lock import LOCK_NAME, has_writer, lock_folder
from run_cases import columns, make_run


@contextmanager
def writer(folder: Path) -> Iterator[None]:
    """As if a command were at work in ``folder``."""
    lock = lock_folder(folder)
    try:
        yield
    finally:
        lock.release()


def shown(place: Path, width: int = 110, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width)
    console.print(picture_of(place, Watcher(place).look()))
    file.seek(0)
    return file.read()


def states(place: Path) -> dict[str, str]:
    return {seen.run.folder.name: seen.state for seen in Watcher(place).look()}


# Charts -----------------------------------------------------------------------------------------


def test_resampling_keeps_means_and_gaps() -> None:
    nan = math.nan
    values = resample([10, 20, 30, 100], [nan, 1.0, 0.0, 0.5], 5)
    assert math.isnan(values[0]) is False
    assert values == [1.0, 0.0, 0.0, 0.0, 0.5]
    assert all(math.isnan(v) for v in resample([], [], 3))
    assert math.isnan(resample([1, 2], [nan, 1.0], 2)[0])


def test_bars_stand_on_each_other() -> None:
    assert bars([0.0, 0.25, 0.5, 0.75, 1.0, math.nan], 2, 0.0, 1.0) == ["   ▄█ ", "▁▄███ "]
    assert bars([-1.0, 1.0], 1, -1.0, 1.0) == ["▁█"]


def test_chart_fits_the_terminal_and_what_it_can_show() -> None:
    for encoding, letters in (("utf-8", "█"), ("ascii", ASCII_BLOCKS[-1])):
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        chart = Chart("return", [1, 2000], [0.5, 2.0])
        Console(file=file, width=40).print(chart)
        file.seek(0)
        lines = file.read().splitlines()
        assert letters in lines[1]
        assert lines[0] == "return: 2"
        assert lines[1].split()[0] == "2"
        assert lines[-1].endswith("2,000 steps")
        assert max(map(len, lines)) == 40


# Pictures ---------------------------------------------------------------------------------------


def test_one_run_is_shown_with_its_numbers_and_curves(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", core="lstm", total_steps=1000, seed=7)
    text = shown(run)
    assert f"lstm on Empty-5x5, seed 7: {run}" in text.replace("\n", "")
    assert "500 of 1,000" in text
    assert "0:10, 0:10 left" in text
    assert "success rate, latest episodes: 0.8" in text
    assert "return, latest episodes: 0.72" in text


def test_several_runs_are_a_row_each(tmp_path: Path) -> None:
    done = make_run(tmp_path / "lstm-seed0", core="lstm")
    make_run(tmp_path / "lstm-seed1", columns(3), core="lstm")
    make_run(tmp_path / "lstm-seed2", {}, core="lstm")
    make_run(tmp_path / "lstm-seed1.interrupted-1")
    with writer(tmp_path / "lstm-seed1"), writer(tmp_path / "lstm-seed2"):
        assert states(tmp_path) == {
            "lstm-seed0": "done",
            "lstm-seed1": "0:04 left",
            "lstm-seed2": "training",
        }
        for width in (110, 80):
            rows = shown(tmp_path, width).splitlines()
            assert len(rows) == 4
            assert rows[1].startswith(f"{done.name}")
            assert "500 of 500" in rows[1]
            assert rows[1].rstrip().endswith("done")
            assert "300 of 500" in rows[2]
            assert "0.4" in rows[2]
            assert "0 of 500" in rows[3]
    assert states(tmp_path)["lstm-seed1"] == "stopped"


def test_run_that_has_just_begun_is_waited_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {})
    assert "waiting for the first update" in shown(run)
    assert lines_of(run, Watcher(run).look()) == []
    assert "nothing is trained yet" in shown(tmp_path / "nowhere")


def test_only_what_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", columns(3))
    watcher = Watcher(run)
    calls = []

    def read(folder: Path) -> FoundRun:
        calls.append(folder)
        return read_run(folder)

    monkeypatch.setattr(watching, "read_run", read)
    assert [watcher.look()[0].run.env_steps for _ in range(3)] == [300] * 3
    assert len(calls) == 1
    with (run / PROGRESS_NAME).open("a") as file:
        file.write("4,400,8,50,0.5,0.5,1.5\r\n5,50")
    assert watcher.look()[0].run.env_steps == 400
    assert len(calls) == 2


def test_run_that_vanishes_between_looks_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_run(tmp_path / "other")
    watcher = Watcher(tmp_path)
    assert len(watcher.look()) == 2
    run.rename(tmp_path / "run.interrupted-1")
    assert [seen.run.folder.name for seen in watcher.look()] == ["other"]
    (tmp_path / "other" / PROGRESS_NAME).write_text("update\r\nx\r\n")  # damaged meanwhile
    assert watcher.look() == []


# The end ----------------------------------------------------------------------------------------


def test_writer_is_seen_by_its_lock_and_not_disturbed(tmp_path: Path) -> None:
    assert has_writer(tmp_path) is False
    assert list(tmp_path.iterdir()) == []
    with writer(tmp_path):
        assert has_writer(tmp_path) is True
        assert has_writer(tmp_path) is True
    assert has_writer(tmp_path) is False
    lock_folder(tmp_path).release()


def test_lock_of_another_user_counts_as_held_until_the_run_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name, rows in (("half", 3), ("whole", 5)):
        make_run(tmp_path / name, columns(rows))
        (tmp_path / name / LOCK_NAME).touch()
    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert has_writer(tmp_path / "half") is None
    assert Watcher(tmp_path / "half").is_under_way()
    assert not Watcher(tmp_path / "whole").is_under_way()


def test_place_is_watchable_if_it_has_runs_or_a_writer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        check_watchable(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no run"):
        check_watchable(tmp_path)
    with writer(tmp_path):
        check_watchable(tmp_path)
    make_run(tmp_path / "run", {})
    check_watchable(tmp_path)
    (tmp_path / "run" / PROGRESS_NAME).write_text("update\r\nx\r\n")
    with pytest.raises(ValueError, match="not a table of numbers"):
        check_watchable(tmp_path)


def test_ending_says_how_far_it_came(tmp_path: Path) -> None:
    done = make_run(tmp_path / "done")
    assert ending_of(Watcher(done).look()) == "Training has ended after 500 of 500 steps."
    half = make_run(tmp_path / "half", columns(2))
    assert "stopped at 200 of 500 steps" in ending_of(Watcher(half).look())
    assert "1 of 2 runs are complete" in ending_of(Watcher(tmp_path).look())


def watched(place: Path, monkeypatch: pytest.MonkeyPatch, *happenings: object) -> list[str]:
    """Lines printed while between two looks something happens each time."""
    steps = iter(happenings)

    def sleep(seconds: float) -> None:
        assert seconds == 3.5
        next(steps)()  # type: ignore[operator]

    monkeypatch.setattr(time, "sleep", sleep)
    file = io.StringIO()
    watch_folder(place, 3.5, Console(file=file, width=200))
    assert next(steps, None) is None
    return file.getvalue().splitlines()


def append(run: Path, rows: int, table_rows: int) -> None:
    table = columns(table_rows)
    with (run / PROGRESS_NAME).open("a") as file:
        for i in range(table_rows - rows, table_rows):
            file.write(",".join(str(column[i]) for column in table.values()) + "\r\n")


def test_without_a_terminal_every_look_with_news_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", columns(2))
    lock = lock_folder(run)

    def finish() -> None:
        append(run, 2, 5)  # the last rows, and then at once the end
        lock.release()

    lines = watched(run, monkeypatch, lambda: None, lambda: append(run, 1, 3), finish)
    assert [line.split(" steps")[0] for line in lines[:-1]] == ["200/500", "300/500", "500/500"]
    assert lines[-1] == "Training has ended after 500 of 500 steps."


def test_what_was_written_just_before_the_end_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", columns(2))

    def end(_: Watcher) -> bool:
        append(run, 3, 5)
        return False

    monkeypatch.setattr(Watcher, "is_under_way", end)
    assert watched(run, monkeypatch)[0].startswith("500/500 steps")


def test_comparison_is_watched_to_the_end_of_its_own_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of its runs nothing is trained, and before the first there is no run."""
    lock = lock_folder(tmp_path)

    def finish() -> None:
        append(tmp_path / "b", 3, 5)
        lock.release()

    begin_a, begin_b = (
        lambda: make_run(tmp_path / "a"),
        lambda: make_run(tmp_path / "b", columns(2)),
    )
    lines = watched(tmp_path, monkeypatch, begin_a, begin_b, finish)
    assert [line.split(" steps")[0] for line in lines[:-1]] == [
        "a: 500/500",
        "b: 200/500",
        "b: 500/500",
    ]
    assert lines[-1].endswith("2 of 2 runs are complete.")
