"""Recordings: one row per step, one frame more, and an animation that holds them all."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from agents.config import PPOConfig
from agents.learning.checkpoint import load_checkpoint
from agents.model.policy import RecurrentActorCritic
from agents.watching.overlay import Overlay, draw_view
from agents.watching.record import Recording, mission_text, record_episode
from agents.watching.video import (
    ENDINGS,
    LAST_FRAME_MILLISECONDS,
    check_animation,
    common_palette,
    find_ffmpeg,
    save_animation,
    save_gif,
    save_mp4,
    to_indexed,
)
from envs import ACTIONS, encode_mission, get_task, level_seeds, make_drawable_env
from lab.disk.output import check_output, whole_file
from tolerances import rounding

TASK = get_task("MiniGrid-Empty-Random-5x5-v0")


def make_policy(core: str, actions: str = "all") -> RecurrentActorCritic:
    torch.manual_seed(0)
    config = PPOConfig(env=TASK.id, core=core, hidden_size=16, num_rims=4, k=2, actions=actions)
    return RecurrentActorCritic(config, 7, read_mission=False)


def record(core: str = "rim_lstm", **changes: Any) -> Recording:
    settings: dict[str, Any] = {"seed": 0, "max_steps": 12, **changes}
    return record_episode(make_policy(core), TASK, core, **settings)


def gif_frames(path: Path) -> tuple[int, list[int]]:
    with Image.open(path) as image:
        assert image.format == "GIF"
        count = int(getattr(image, "n_frames", 1))
        durations = []
        for index in range(count):
            image.seek(index)
            durations.append(int(image.info["duration"]))
    return count, durations


@pytest.mark.parametrize("core", ["rim_lstm", "rim_gru", "lstm", "gru", "none"])
def test_one_frame_more_than_steps(core: str) -> None:
    recording = record(core)
    steps = len(recording.actions)
    assert 1 <= steps <= 12
    assert len(recording.frames) == steps + 1
    assert recording.probabilities.shape == (steps, 7)
    bound = rounding(torch.float32, 7)
    np.testing.assert_allclose(recording.probabilities.sum(-1), 1, rtol=0, atol=bound)
    assert len(recording.values) == steps
    assert all(frame.shape == (160, 160, 3) for frame in recording.frames)


@pytest.mark.parametrize("core", ["rim_lstm", "rim_gru"])
def test_exactly_k_mechanisms_are_active_at_each_step(core: str) -> None:
    recording = record(core)
    assert recording.active is not None
    assert recording.active.shape == (len(recording.actions), 4)
    assert recording.active.sum(-1).tolist() == [2] * len(recording.actions)


@pytest.mark.parametrize("core", ["lstm", "none"])
def test_cores_without_mechanisms_have_no_raster(core: str) -> None:
    assert record(core).active is None


def test_frames_are_those_of_the_actions() -> None:
    recording = record()
    with make_drawable_env(TASK, level_seeds(0, "eval", 1)[0]) as env:
        env.reset()
        assert np.array_equal(env.frame(), recording.frames[0])
        for action, frame in zip(recording.actions, recording.frames[1:], strict=True):
            env.step(np.array([action]))
            assert np.array_equal(env.frame(), frame)


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_views_are_the_observations_of_the_actions(steps: int) -> None:
    recording = record(max_steps=steps)
    with make_drawable_env(TASK, level_seeds(0, "eval", 1)[0]) as env:
        assert np.array_equal(env.reset().image[0], recording.views[0])
        for action, view in zip(recording.actions, recording.views[1:], strict=True):
            assert np.array_equal(env.step(np.array([action])).observation.image[0], view)


def test_mission_is_recorded_where_it_varies() -> None:
    assert record().mission == ""
    task = get_task("BabyAI-GoToObj-v0")
    recording = record_episode(make_policy("lstm"), task, "lstm", seed=0, max_steps=2)
    assert re.fullmatch(r"go to (a|the) \w+ \w+", recording.mission)


def test_mission_text_undoes_the_encoding() -> None:
    mission = "put the red ball next to the blue key, then open a door"
    assert mission_text(torch.from_numpy(encode_mission(mission).copy())) == mission


def test_episode_is_recorded_to_its_end() -> None:
    recording = record(max_steps=500)
    assert recording.episode is not None
    assert recording.episode.length == len(recording.actions)
    word = "success" if recording.episode.success else "failure"
    assert recording.outcome.startswith(f"{word} after {len(recording.actions)} steps")


def test_recording_stops_at_its_limit() -> None:
    recording = record(max_steps=1)
    assert (len(recording.actions), recording.episode) == (1, None)
    assert recording.outcome == "Stopped after 1 step"


def test_same_seed_same_recording_and_another_differs() -> None:
    first, second, other = record(), record(), record(seed=1)
    assert first.actions == second.actions
    assert first.values == second.values
    assert first.actions != other.actions


def test_greedy_takes_the_most_probable_actions() -> None:
    recording = record(mode="greedy")
    assert recording.actions == recording.probabilities.argmax(-1).tolist()


def test_recording_twice_is_recording_anew(toy_run: Path) -> None:
    policy = load_checkpoint(toy_run).make_policy()
    first, second = (
        record_episode(policy, TASK, "rim_lstm", seed=0, max_steps=5) for _ in range(2)
    )
    assert first.active is not None
    assert second.active is not None
    assert np.array_equal(first.active, second.active)


# Pictures ---------------------------------------------------------------------------------------


def test_view_is_what_minigrid_draws_of_it() -> None:
    """Where the agent sees, MiniGrid's own picture of its view; elsewhere one dark colour."""
    with make_drawable_env(get_task("MiniGrid-DoorKey-6x6-v0"), 3) as env:
        image = env.reset().image[0]
        expected = env._envs.envs[0].unwrapped.get_frame(agent_pov=True, tile_size=32)  # type: ignore[attr-defined]
    seen = (image[..., 0] != 0).T.repeat(32, axis=0).repeat(32, axis=1)
    drawn = draw_view(image)
    assert 0 < seen.sum() < seen.size
    assert np.array_equal(drawn[seen], expected[seen])
    assert len(np.unique(drawn[~seen], axis=0)) == 1


@pytest.mark.parametrize("core", ["rim_lstm", "rim_gru"])
def test_raster_shows_exactly_k_mechanisms_of_every_step_so_far(core: str) -> None:
    recording = record(core, max_steps=5)
    overlay = Overlay(recording)
    assert recording.active is not None
    for t in range(len(recording.frames)):
        overlay.draw(t)
        shown = np.asarray(overlay.cells.get_array().filled(np.nan))  # type: ignore[union-attr]
        past = min(t + 1, 5)
        assert np.array_equal(shown[:, :past], recording.active[:past].T)
        assert (shown[:, :past] == 1).sum(axis=0).tolist() == [2] * past
        assert np.isnan(shown[:, past:]).all()


def test_picture_shows_the_action_taken_and_the_values_so_far() -> None:
    recording = record("lstm", max_steps=4)
    overlay = Overlay(recording)
    for t in range(4):
        overlay.draw(t)
        widths = [bar.get_width() for bar in overlay.bars]
        np.testing.assert_allclose(widths, recording.probabilities[t])
        coloured = [i for i, bar in enumerate(overlay.bars) if bar.get_facecolor()[0] < 0.5]
        assert coloured == [recording.actions[t]]
        assert np.asarray(overlay.line.get_ydata()).tolist() == recording.values[: t + 1]
    overlay.draw(4)
    assert overlay.title.get_text().endswith("Stopped after 4 steps")


def test_picture_names_the_actions_the_agent_has() -> None:
    def shown(recording: Recording) -> list[str]:
        return [label.get_text() for label in Overlay(recording).policy.get_yticklabels()]

    assert shown(record("lstm", max_steps=1)) == list(ACTIONS)
    policy = make_policy("lstm", "forward,right")
    recording = record_episode(policy, TASK, "lstm", seed=0, max_steps=2)
    assert shown(recording) == recording.action_names == ["right", "forward"]


def test_frames_differ_only_where_something_changed() -> None:
    """Frames are drawn over a background that is drawn once: no trace of the frame before stays."""
    recording = record(max_steps=6)
    overlay = Overlay(recording)
    forth = [np.asarray(overlay.draw(t)) for t in range(7)]
    back = [np.asarray(overlay.draw(t)) for t in reversed(range(7))]
    for first, second in zip(forth, reversed(back), strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(forth[0], forth[1])


@pytest.mark.parametrize("core", ["rim_lstm", "lstm"])
def test_no_text_is_cut_off(core: str) -> None:
    mission = " ".join(["put the yellow ball next to the purple box behind you, then"] * 4)
    overlay = Overlay(replace(record(core, max_steps=2), mission=mission))
    picture = np.asarray(overlay.draw(0))
    edges = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
    assert all((edge == 255).all() for edge in edges)


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", ["rim_lstm", "lstm"])
def test_gif_holds_every_frame_for_its_time(tmp_path: Path, core: str) -> None:
    recording = record(core)
    path = tmp_path / "episode.gif"
    assert save_gif(recording, path, 5.0) == len(recording.frames)
    count, durations = gif_frames(path)
    assert count == len(recording.frames)
    assert durations == [200] * (count - 1) + [LAST_FRAME_MILLISECONDS]
    assert [p.name for p in tmp_path.iterdir()] == ["episode.gif"]


def test_colour_of_a_single_frame_is_kept() -> None:
    images = [Image.new("RGB", (8, 8), colour) for colour in ("white", "grey", "red", "#FCFDFE")]
    palette = common_palette(images[:3])
    for image in images[:3]:
        shown = to_indexed(image, palette).convert("RGB")
        assert np.array_equal(np.asarray(shown), np.asarray(image))
    assert to_indexed(images[3], palette).convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_white_stays_white_beside_what_is_nearly_white() -> None:
    white, nearly = (Image.new("RGB", (8, 8), colour) for colour in ("white", (251, 252, 253)))
    palette = common_palette([white, nearly])
    assert to_indexed(white, palette).convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_colours_of_a_gif_are_those_drawn(tmp_path: Path) -> None:
    recording = record(max_steps=3)
    save_gif(recording, tmp_path / "a.gif", 5.0)
    drawn = np.asarray(Overlay(recording).draw(0), dtype=int)
    with Image.open(tmp_path / "a.gif") as image:
        shown = np.asarray(image.convert("RGB"), dtype=int)
    exact = (shown == drawn).all(axis=-1).mean()
    assert exact > 0.97  # the rest are smoothed edges of letters


def test_failure_leaves_an_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "episode.gif"
    path.write_bytes(b"earlier")

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_gif(record("lstm", max_steps=1), path, 5.0)
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["episode.gif"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_whole_file_is_there_whole_or_not_at_all(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.png"
    with whole_file(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(error), whole_file(path) as temporary:
        raise error(temporary.write_text("half"))
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.fixture
def ffmpeg() -> str:
    pytest.importorskip("imageio_ffmpeg")
    return find_ffmpeg()


@pytest.mark.parametrize("core", ["rim_lstm", "lstm"])
def test_mp4_holds_every_frame_for_browsers(tmp_path: Path, ffmpeg: str, core: str) -> None:
    recording = record(core, max_steps=6)
    path = tmp_path / "episode.mp4"
    assert save_animation(recording, path, 5.0) == 7
    assert [p.name for p in tmp_path.iterdir()] == ["episode.mp4"]
    about = subprocess.run([ffmpeg, "-i", str(path)], capture_output=True, text=True, check=False)
    stream = next(line for line in about.stderr.splitlines() if "Video:" in line)
    assert "h264" in stream
    assert "yuv420p" in stream
    assert "5 fps" in stream
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # it plays before all of it is there
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    frames = subprocess.run([ffmpeg, "-v", "error", "-i", path, *raw], capture_output=True).stdout
    drawn = np.asarray(Overlay(recording).draw(6), dtype=int)
    decoded = np.frombuffer(frames, dtype=np.uint8).reshape(7, *drawn.shape)
    assert np.abs(decoded[6] - drawn).mean() < 3  # compressed, and with half as many colours


def test_failing_ffmpeg_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / "ffmpeg"
    broken.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('first\\nno space')\n")
    broken.chmod(0o755)
    monkeypatch.setattr("agents.watching.video.find_ffmpeg", lambda: str(broken))
    with pytest.raises(OSError, match=r"ffmpeg could not write .*a\.mp4': no space$"):
        save_mp4(record("lstm", max_steps=3), tmp_path / "a.mp4", 5.0)
    assert [p.name for p in tmp_path.iterdir()] == ["bin"]


def test_interrupted_mp4_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ffmpeg: str
) -> None:
    draw = Overlay.draw

    def interrupt(self: Overlay, t: int) -> Image.Image:
        if t == 2:
            raise KeyboardInterrupt
        return draw(self, t)

    monkeypatch.setattr(Overlay, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_mp4(record("lstm", max_steps=3), tmp_path / "a.mp4", 5.0)
    assert list(tmp_path.iterdir()) == []


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, encoders: str) -> Path:
    """A system ffmpeg that has these encoders."""
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nprint({encoders!r})\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return program


def test_system_ffmpeg_serves_if_it_can_encode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as if not installed
    program = put_on_path(tmp_path, monkeypatch, " V..... libx264  H.264")
    assert find_ffmpeg() == str(program)
    put_on_path(tmp_path, monkeypatch, " V..... mpeg4  MPEG-4 part 2")
    with pytest.raises(ValueError, match="needs ffmpeg"):
        find_ffmpeg()


def test_mp4_without_ffmpeg_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"pip install 'rims-toolkit\[video\]' or .* in \.gif\.$"):
        check_animation(tmp_path / "a.mp4")
    check_animation(tmp_path / "a.gif")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("episode.avi", "must end in .gif or .mp4"),
        ("episode", "must end in .gif or .mp4"),
        ("nowhere/episode.gif", "does not exist"),
        ("file/episode.gif", "does not exist"),
    ],
)
def test_output_that_cannot_be_written_is_refused(tmp_path: Path, name: str, rule: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rule) as caught:
        check_output(tmp_path / name, ENDINGS)
    assert "\n" not in str(caught.value)


def test_output_that_can_be_written_is_fine(tmp_path: Path) -> None:
    check_output(tmp_path / "episode.GIF", ENDINGS)
    assert list(tmp_path.iterdir()) == []
