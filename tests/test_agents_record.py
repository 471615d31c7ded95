"""Recordings: one row per step, one frame more, and a GIF that holds them all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from agents.checkpoint import load_checkpoint
from agents.config import PPOConfig
from agents.policy import RecurrentActorCritic
from agents.record import (
    LAST_FRAME_MILLISECONDS,
    Recording,
    _common_palette,
    check_output,
    record_episode,
    save_gif,
)
from envs import get_task, level_seeds, make_drawable_env

TASK = get_task("MiniGrid-Empty-Random-5x5-v0")


def make_policy(core: str) -> RecurrentActorCritic:
    torch.manual_seed(0)
    config = PPOConfig(env=TASK.id, core=core, hidden_size=16, num_rims=4, k=2)  # type: ignore[arg-type]
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
    np.testing.assert_allclose(recording.probabilities.sum(-1), 1, atol=1e-6)  # float32
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


def test_episode_is_recorded_to_its_end() -> None:
    recording = record(max_steps=500)
    assert recording.episode is not None
    assert recording.episode.length == len(recording.actions)
    word = "success" if recording.episode.success else "failure"
    assert recording.outcome.startswith(f"{word} after {len(recording.actions)} steps")


def test_recording_stops_at_its_limit() -> None:
    recording = record(max_steps=1)
    assert (len(recording.actions), recording.episode) == (1, None)
    assert recording.outcome == "Stopped after 1 steps"


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
    images = [Image.new("RGB", (8, 8), colour) for colour in ("white", "grey", "red")]
    palette = _common_palette(images)
    shown = [i.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB") for i in images]
    for image, wanted in zip(shown, images, strict=True):
        difference = np.abs(np.asarray(image, dtype=int) - np.asarray(wanted, dtype=int))
        assert difference.max() <= 8  # a palette is a few bits per channel


def test_equal_frames_last_as_long_as_they_should(tmp_path: Path) -> None:
    """Where nothing changes, not even a number, frames may be one, shown for their joint time."""
    one = record("lstm", max_steps=1)
    still = replace(
        one,
        frames=[one.frames[0]] * 4,
        actions=one.actions * 3,
        values=[0.0] * 3,
        probabilities=np.repeat(one.probabilities, 3, axis=0),
    )
    save_gif(still, tmp_path / "still.gif", 10.0)
    _, durations = gif_frames(tmp_path / "still.gif")
    assert sum(durations) == 3 * 100 + LAST_FRAME_MILLISECONDS


def test_failure_leaves_an_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "episode.gif"
    path.write_bytes(b"earlier")

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_gif(record("lstm", max_steps=1), path, 5.0)
    assert path.read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("episode.mp4", "must end in .gif"),
        ("episode", "must end in .gif"),
        ("nowhere/episode.gif", "does not exist"),
        ("file/episode.gif", "does not exist"),
    ],
)
def test_output_that_cannot_be_written_is_refused(tmp_path: Path, name: str, rule: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rule) as caught:
        check_output(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_output_that_can_be_written_is_fine(tmp_path: Path) -> None:
    check_output(tmp_path / "episode.GIF")
    assert list(tmp_path.iterdir()) == []
