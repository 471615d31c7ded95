"""``rims record``: which file it writes, and what it refuses before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from agents.learning import checkpoint
from agents.watching import video
from command_line import Rims, assert_one_line, tree


@pytest.mark.parametrize("name", ["a.gif", "A.GIF"])
def test_gif(tmp_path: Path, rims: Rims, toy_run: Path, name: str) -> None:
    result = rims("record", str(toy_run), "--out", name, "--max-steps", "4", "--fps", "10")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"Stopped after 4 steps. 5 frames: {name}\n"
    with Image.open(tmp_path / "here" / name) as image:
        assert getattr(image, "n_frames", 1) == 5
        assert image.info["duration"] == 100


def test_mp4(tmp_path: Path, rims: Rims, toy_run: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    result = rims("record", str(toy_run), "--out", "a.mp4", "--max-steps", "3", "--mode", "greedy")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("4 frames: a.mp4\n")
    assert (tmp_path / "here" / "a.mp4").read_bytes()[4:8] == b"ftyp"
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["a.mp4"]


def test_mp4_without_ffmpeg_is_refused_before_any_work(
    tmp_path: Path, rims: Rims, toy_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: Path) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as if not installed
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(checkpoint, "load_checkpoint", load)
    line = assert_one_line(rims("record", str(toy_run), "--out", "a.mp4"))
    assert "pip install 'rims-toolkit[video]' or give a name ending in .gif" in line
    assert tree(tmp_path / "here") == {}


def test_file_that_cannot_be_written_in_the_end_is_one_line(
    tmp_path: Path, rims: Rims, toy_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(video, "save_gif", fail)
    result = rims("record", str(toy_run), "--out", "a.gif", "--max-steps", "1")
    assert (result.code, result.err) == (1, "Error: No space left on device.\n")
    assert tree(tmp_path / "here") == {}
