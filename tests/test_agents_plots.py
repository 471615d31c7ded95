"""Learning curves of run folders: which runs there are, which belong together, what is drawn."""

from __future__ import annotations

import io
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from agents.watching.plots import check_metrics, choose_looks, curve_of, plot_groups, save_curves
from agents.watching.run_list import Group, find_runs, group_runs, read_run, with_progress
from agents.watching.video import ENCODER, check_animation, find_ffmpeg
from lab.disk.folder import CONFIG_NAME, PROGRESS_NAME
from lab.reporting.figures import COLOURS
from run_cases import columns, make_run


def groups_of(*folders: Path) -> list[Group]:
    return group_runs([read_run(folder) for folder in folders])


def labels(*folders: Path) -> list[str]:
    return [group.label for group in groups_of(*folders)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# Finding runs -----------------------------------------------------------------------------------


def test_runs_below_a_folder_are_found_but_not_those_set_aside(tmp_path: Path) -> None:
    for name in ("b/lstm-seed0", "a", "b/lstm-seed0.interrupted-1", "c.interrupted-2/d"):
        make_run(tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    make_run(tmp_path / "a" / "below-a-run")
    assert find_runs([tmp_path]) == [tmp_path / "a", tmp_path / "b" / "lstm-seed0"]
    set_aside = tmp_path / "b" / "lstm-seed0.interrupted-1"
    assert find_runs([set_aside]) == [set_aside]


def test_run_given_twice_is_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (tmp_path / "link").symlink_to(run)
    assert find_runs([run, tmp_path, run, tmp_path / "link"]) == [run]


@pytest.mark.parametrize(
    ("name", "rule"), [("nowhere", "does not exist"), ("empty", "holds no run"), ("x", "not exist")]
)
def test_place_without_runs_is_refused_in_one_line(tmp_path: Path, name: str, rule: str) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x").touch()
    with pytest.raises(ValueError, match=rule) as caught:
        find_runs([tmp_path / "a", tmp_path / name])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_run_that_has_just_begun_is_left_out_unless_it_was_asked_for(tmp_path: Path) -> None:
    full, begun = make_run(tmp_path / "full"), make_run(tmp_path / "begun", {})
    runs = [read_run(full), read_run(begun)]
    assert with_progress(runs, [tmp_path]) == runs[:1]
    for found, named in ((runs, [full, begun]), (runs[1:], [tmp_path])):
        with pytest.raises(ValueError, match="begun' holds no progress yet"):
            with_progress(found, named)


@pytest.mark.parametrize(
    ("name", "content"), [(PROGRESS_NAME, "update\r\none\r\n"), (CONFIG_NAME, "core = lstm")]
)
def test_damaged_file_is_one_line(tmp_path: Path, name: str, content: str) -> None:
    run = make_run(tmp_path / "a")
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=name) as caught:
        read_run(run)
    assert "\n" not in str(caught.value)


def test_settings_of_another_version_are_no_obstacle(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", core="lstm")
    with (run / CONFIG_NAME).open("a") as file:
        file.write("some_new_setting = 3\n")
    assert (read_run(run).core, read_run(run).task) == ("lstm", "Empty-5x5")
    (run / CONFIG_NAME).write_text('suite = "doorkey"\n')
    assert read_run(run).task == "DoorKey-5x5"
    (run / CONFIG_NAME).write_text('suite = "mine"\n')
    assert read_run(run).task == "mine"
    (run / CONFIG_NAME).write_text('suite = "/home/someone/suites/lava.toml"\n')
    assert read_run(run).task == "lava"
    (run / CONFIG_NAME).unlink()
    assert read_run(run).settings == {}
    assert labels(run) == ["a"]


@pytest.mark.parametrize("value", ['"many"', "[]", "nan", "inf"])
def test_budget_that_is_no_number_is_unknown(tmp_path: Path, value: str) -> None:
    run = make_run(tmp_path / "a")
    (run / CONFIG_NAME).write_text(f"total_steps = {value}\n")
    found = read_run(run)
    assert (found.total_steps, found.is_complete) == (0, False)


# Groups -----------------------------------------------------------------------------------------


def test_seeds_of_the_same_settings_are_one_group(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{core}-{seed}", core=core, seed=seed, threads=seed + 1)
        for core in ("lstm", "gru")
        for seed in (0, 1)
    ]
    groups = groups_of(*runs)
    assert [(g.label, g.core, len(g.runs)) for g in groups] == [
        ("lstm", "lstm", 2),
        ("gru",) * 2 + (2,),
    ]


def test_tasks_are_named_where_they_differ(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", core="lstm")
    other = make_run(tmp_path / "b", core="lstm", env="", suite="doorkey")
    assert labels(one, other) == ["lstm on Empty-5x5", "lstm on DoorKey-5x5"]


def test_runs_their_core_does_not_tell_apart_are_named_for_their_folders(tmp_path: Path) -> None:
    other = make_run(tmp_path / "c", core="gru")
    slow = make_run(tmp_path / "slow", core="lstm", learning_rate=1e-4)
    fast = make_run(tmp_path / "fast", core="lstm", learning_rate=1e-2)
    assert labels(slow, fast, other) == ["slow", "fast", "gru"]
    first = make_run(tmp_path / "one" / "run", core="lstm", gamma=0.9)
    second = make_run(tmp_path / "two" / "run", core="lstm", gamma=0.8)
    assert labels(first, second) == ["one/run", "two/run"]


def test_groups_their_core_does_not_tell_apart_are_named_for_what_differs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{k}-{s}", k=k, seed=s) for k in (2, 3) for s in (0, 1)]
    assert labels(*runs) == ["rim_lstm, k=2", "rim_lstm, k=3"]


def test_experiment_made_twice_is_two_groups(tmp_path: Path) -> None:
    """Its seeds are no further seeds: a mean over all would pretend to more than there is."""
    runs = [make_run(tmp_path / root / f"{s}", seed=s) for root in ("x", "y") for s in (0, 1)]
    groups = groups_of(*runs)
    assert [g.label for g in groups] == ["rim_lstm, x", "rim_lstm, y"]
    assert [[run.folder for run in g.runs] for g in groups] == [runs[:2], runs[2:]]
    same_place = [make_run(tmp_path / name) for name in ("again-1", "again-2")]
    assert labels(*same_place) == ["again-1", "again-2"]


def test_run_of_an_earlier_version_is_a_seed_of_the_same_experiment(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{s}", seed=s) for s in (0, 1)]
    config = runs[0] / "config.toml"
    config.write_text(config.read_text().replace('actions = "all"\n', ""))
    assert "actions" not in config.read_text()
    assert len(groups_of(*runs)) == 1


def test_labels_that_settings_do_not_tell_apart_have_their_folder_added(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / root / f"{s}", seed=s, learning_rate=rate)
        for root, rate in (("x", 1e-3), ("y", 1e-3), ("z", 1e-4))
        for s in (0, 1)
    ]
    same = "rim_lstm, learning_rate=0.001"
    assert labels(*runs) == [f"{same}, x", f"{same}, y", "rim_lstm, learning_rate=0.0001"]


def test_groups_in_one_folder_that_differ_in_much_have_labels_of_their_own(tmp_path: Path) -> None:
    much: tuple[dict[str, Any], ...] = (
        {},
        {"gamma": 0.9, "epochs": 2, "learning_rate": 1e-4, "gae_lambda": 0.9},
    )
    runs = [
        make_run(tmp_path / "root" / f"{i}-{s}", seed=s, **settings)
        for i, settings in enumerate(much)
        for s in (0, 1)
    ]
    assert labels(*runs) == ["rim_lstm, root, 0-0", "rim_lstm, root, 1-0"]


def test_folder_called_as_another_core_is_told_from_it(tmp_path: Path) -> None:
    paths = (("gru", "lstm", 0.9), ("slow", "lstm", 0.8), ("third", "gru", 0.9))
    runs = [make_run(tmp_path / name, core=core, gamma=gamma) for name, core, gamma in paths]
    assert labels(*runs) == ["gru, gru", "slow", "gru, third"]


# Curves -----------------------------------------------------------------------------------------


def test_curve_leaves_out_what_is_not_known() -> None:
    curve = curve_of(columns(), "success_rate", "seconds")
    assert curve.x.tolist() == [4.0, 6.0, 8.0, 10.0]
    np.testing.assert_allclose(curve.y, [0.2, 0.4, 0.6, 0.8])
    assert len(curve_of(columns(), "no such metric", "seconds").x) == 0


def test_panels_show_single_runs_as_they_are(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / core, core=core) for core in ("rim_lstm", "lstm")]
    figure = plot_groups(groups_of(*runs), ["success_rate", "entropy", "update"], "seconds")
    assert [panel.get_ylabel() for panel in figure.axes] == [
        "success rate, latest episodes",
        "entropy",
        "update",
    ]
    assert {panel.get_xlabel() for panel in figure.axes} == {"seconds"}
    line, other = figure.axes[0].lines
    assert line.get_color() == COLOURS["rim_lstm"]
    assert other.get_color() == COLOURS["lstm"]
    assert np.asarray(line.get_xdata()).tolist() == [4.0, 6.0, 8.0, 10.0]
    assert legend(figure) == ["rim_lstm", "lstm"]
    assert "Empty-5x5" in figure.get_suptitle()
    assert "mean" not in figure.get_suptitle()


def test_seeds_are_a_mean_with_a_band_as_far_as_all_of_them_go(tmp_path: Path) -> None:
    nan = math.nan
    short = columns(4, [nan, 0.2, 0.2, 0.2])
    long = columns(5, [0.4, 0.4, 0.4, 0.4, 0.4])
    runs = [make_run(tmp_path / f"{s}", t, seed=s) for s, t in enumerate((short, long))]
    figure = plot_groups(groups_of(*runs), ["success_rate"], "env_steps")
    (panel,) = figure.axes
    mean = panel.lines[-1]
    assert legend(figure) == ["rim_lstm (2 seeds)"]
    assert np.asarray(mean.get_xdata())[[0, -1]].tolist() == [200.0, 400.0]
    np.testing.assert_allclose(np.asarray(mean.get_ydata()), 0.3)
    edges = np.asarray(panel.collections[0].get_paths()[0].vertices)[:, 1]
    assert (edges.min(), edges.max()) == (0.2, 0.4)
    assert [len(np.asarray(line.get_xdata())) for line in panel.lines[:-1]] == [3, 5]
    assert "band" in figure.get_suptitle()


def test_seeds_that_never_overlap_have_no_mean(tmp_path: Path) -> None:
    nan = math.nan
    tables = columns(4, [0.1, 0.1, nan, nan]), columns(4, [nan, nan, 0.1, 0.1])
    runs = [make_run(tmp_path / f"{s}", t, seed=s) for s, t in enumerate(tables)]
    (panel,) = plot_groups(groups_of(*runs), ["success_rate"], "env_steps").axes
    assert [len(np.asarray(line.get_xdata())) for line in panel.lines] == [2, 2, 0]


def test_nothing_known_yet_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", columns(1, [math.nan]))
    panel, other = plot_groups(groups_of(run), ["success_rate", "entropy"], "env_steps").axes
    assert [text.get_text() for text in panel.texts] == ["no values yet"]
    assert not other.texts
    assert other.lines[0].get_marker() == "o"  # a line of one point would not be seen
    assert panel.get_xlim() == (0, 1)


def test_seeds_of_one_value_each_are_dots(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{s}", columns(1, [0.5]), seed=s) for s in range(4)]
    (panel,) = plot_groups(groups_of(*runs), ["success_rate"], "env_steps").axes
    assert [line.get_marker() for line in panel.lines[:-1]] == ["o"] * 4
    assert panel.get_xlim()[1] > 1.02 * np.asarray(panel.lines[0].get_xdata())[0]  # no half dots
    assert not panel.texts


def test_group_without_values_is_named_so(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", core="lstm"),
        make_run(tmp_path / "b", columns(1, [math.nan]), core="gru"),
    ]
    figure = plot_groups(groups_of(*runs), ["success_rate"], "env_steps")
    assert legend(figure) == ["lstm", "gru: no values"]
    figure = plot_groups(groups_of(*runs), ["success_rate", "entropy"], "env_steps")
    assert legend(figure) == ["lstm", "gru"]  # in one of the panels it has one


def test_fractions_of_a_second_are_not_in_milliseconds(tmp_path: Path) -> None:
    # EngFormatter's 500m looks like 500 million.
    (panel,) = plot_groups(groups_of(make_run(tmp_path / "a")), ["entropy"], "seconds").axes
    write = panel.xaxis.get_major_formatter()
    assert [write(x, 0) for x in (0, 0.5, 2, 2000, 3e6)] == ["0", "0.5", "2", "2k", "3M"]


def test_groups_of_one_core_look_different(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{i}", gamma=0.5 + i / 100) for i in range(10)]
    looks = choose_looks(groups_of(*runs))
    assert len(set(looks.values())) == 10


def test_unknown_metric_names_the_closest_and_all(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / "a"))]
    check_metrics(runs, ["entropy"])
    with pytest.raises(ValueError, match="'sucess_rate'; did you mean 'success_rate'") as caught:
        check_metrics(runs, ["entropy", "sucess_rate"])
    for name in columns():
        assert name in str(caught.value)


def test_metric_that_only_some_runs_have_is_drawn_for_those(tmp_path: Path) -> None:
    old = {name: column for name, column in columns().items() if name != "entropy"}
    runs = [make_run(tmp_path / "a", core="lstm"), make_run(tmp_path / "b", old, core="gru")]
    check_metrics([read_run(run) for run in runs], ["entropy"])
    figure = plot_groups(groups_of(*runs), ["entropy"], "env_steps")
    assert [len(np.asarray(line.get_xdata())) for line in figure.axes[0].lines] == [5, 0]


@pytest.mark.parametrize(
    ("kind", "start"),
    [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")],
)
def test_file_is_of_its_kind_and_the_same_each_time(
    tmp_path: Path, kind: str, start: bytes
) -> None:
    run = read_run(make_run(tmp_path / "a"))
    out = tmp_path / "out"
    out.mkdir()
    for name in ("first", "second"):
        save_curves([run], ["success_rate"], "update", out / f"{name}.{kind}")
    first, second = (out / f"{name}.{kind}" for name in ("first", "second"))
    assert first.read_bytes().startswith(start)
    assert first.read_bytes() == second.read_bytes()
    assert b"CreationDate" not in first.read_bytes()
    assert len(list(out.iterdir())) == 2


def test_failure_leaves_an_earlier_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(make_run(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a.png").write_text("earlier")

    def fail(self: Figure, file: io.BytesIO, **_: object) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space"):
        save_curves([run], ["success_rate"], "update", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 1


# Animations -------------------------------------------------------------------------------------


def test_ffmpeg_that_cannot_be_run_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, text = tmp_path / "good", tmp_path / "text"
    good.write_text(f"#!{sys.executable}\nprint({ENCODER!r})\n")
    good.chmod(0o755)
    text.write_text("not to be executed")
    bad = [str(tmp_path / "missing"), str(text), str(tmp_path)]
    monkeypatch.setattr("agents.watching.video._ffmpegs", lambda: iter([*bad, str(good)]))
    assert find_ffmpeg() == str(good)
    monkeypatch.setattr("agents.watching.video._ffmpegs", lambda: iter(bad))
    with pytest.raises(ValueError, match="writing MP4 needs ffmpeg") as caught:
        check_animation(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)
