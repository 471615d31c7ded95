"""Predicted against true frames of bouncing balls, as one picture or as an animation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from experiments.fit import judging
from experiments.tasks.bouncing_balls import BouncingBallsExperiment, video_label
from lab.disk.output import whole_file

#: Frames after the last true one that a picture shows.
AHEAD = (1, 2, 3, 5, 8, 12, 20, 30, 50)

_CELL, _GAP, _LABELS, _HEAD = 80, 6, 104, 22  # pixels
_BACK, _TEXT, _CURTAIN = (255, 255, 255), (34, 34, 34), (90, 110, 150)
_PREDICTED = (213, 94, 0)  # around what is predicted from predictions
_FRAMES_PER_SECOND = 8
_LAST_FRAME_MILLISECONDS = 1200


class Shown(NamedTuple):
    """A true video, and each core's prediction of it."""

    label: str
    curtain: NDArray[np.bool_]  # (Y, X)
    frames: dict[str, NDArray[np.uint8]]  # by "true" or core: (T, Y, X), of the same moments


def write_rollouts(
    trained: Mapping[str, tuple[BouncingBallsExperiment, nn.Module]], path: Path
) -> None:
    """Draw a test video of each number of balls, and one behind a curtain, with each core's.

    Args:
        trained: the tasks and models by the name of their core.
        path: ends in ``.gif``: the frames one after the other; or ``.png``: some side by side.
    """
    first, _ = next(iter(trained.values()))
    context, videos = first.config.context, _videos(trained)
    if path.suffix.lower() == ".gif":
        steps = range(len(videos[0].frames["true"]))
        _write_gif(path, [draw_moment(videos, step, context) for step in steps])
    else:
        with whole_file(path) as temporary:
            draw_strips(videos, context).save(temporary, format="PNG")


def _videos(trained: Mapping[str, tuple[BouncingBallsExperiment, nn.Module]]) -> list[Shown]:
    first, _ = next(iter(trained.values()))
    kinds = [(balls, False) for balls in first.config.counts] + [(first.config.balls, True)]
    found = []
    for balls, curtain in kinds:
        seen, curtains = first.test_videos(balls, curtain=curtain)
        frames = {"true": seen[0, 1:]}
        for core, (experiment, model) in trained.items():
            with judging(model, experiment.config.seed, experiment.device):
                predicted = experiment.roll_out(model, experiment.as_input(seen[:1]))
            values = predicted[:, 0].reshape(frames["true"].shape).cpu().numpy()
            frames[core] = (255 * values).round().astype(np.uint8)
        found.append(Shown(video_label(balls, curtain), curtains[0], frames))
    return found


def draw_moment(videos: Sequence[Shown], step: int, context: int) -> Image.Image:
    """All videos at one moment, a row each, with the true frame and the cores' in columns.

    Args:
        videos: with the same cores.
        step: of the frames, the first of which is the second of the video.
        context: true frames that were seen before the roll-out.
    """
    names = list(videos[0].frames)
    ahead = step + 1 - (context - 1)  # 1: the first frame of the roll-out
    told = f"{ahead} ahead" if ahead > 0 else "next frame"
    heads = ["true", *names[1:]]
    rows = [
        (
            video.label.replace(", ", ",\n"),
            [
                _cell(frames[step], video.curtain, name != "true" and ahead > 0)
                for name, frames in video.frames.items()
            ],
        )
        for video in videos
    ]
    return _sheet(heads, rows, corner=told)


def draw_strips(videos: Sequence[Shown], context: int) -> Image.Image:
    """The true frames and the cores' below each other, moments of the roll-out in columns.

    Args:
        videos: with the same cores.
        context: true frames that were seen before the roll-out.
    """
    total = len(videos[0].frames["true"]) - (context - 1)
    ahead = [n for n in AHEAD if n <= total]
    rows = []
    for video in videos:
        for name, frames in video.frames.items():
            cells = [_cell(frames[context - 2 + n], video.curtain, False) for n in ahead]
            rows.append((video.label if name == "true" else name, cells))
    return _sheet([f"+{n}" for n in ahead], rows, corner="ahead", group=len(videos[0].frames))


def _cell(frame: NDArray[np.uint8], curtain: NDArray[np.bool_], framed: bool) -> NDArray[np.uint8]:
    """A frame in colour and enlarged, with the curtain's edge drawn, and an edge if asked."""
    scale = max(1, _CELL // len(frame))
    large = frame.repeat(scale, 0).repeat(scale, 1)
    cell = np.repeat(large[..., None], 3, axis=2)
    hidden = curtain.repeat(scale, 0).repeat(scale, 1)
    if hidden.any():
        y, x = np.nonzero(hidden)
        top, bottom, left, right = y.min(), y.max(), x.min(), x.max()
        cell[[top, bottom], left : right + 1] = _CURTAIN
        cell[top : bottom + 1, [left, right]] = _CURTAIN
    if framed:
        cell[[0, 1, -2, -1]] = _PREDICTED
        cell[:, [0, 1, -2, -1]] = _PREDICTED
    return cell


def _sheet(
    heads: Sequence[str],
    rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]],
    *,
    corner: str,
    group: int = 1,
) -> Image.Image:
    """Cells with labels above and on the left; more room behind every ``group`` rows."""
    side = len(rows[0][1][0])
    font = ImageFont.load_default(13)
    width = _LABELS + len(heads) * (side + _GAP)
    tops, y = [], _HEAD
    for number in range(len(rows)):
        tops.append(y)
        y += side + _GAP + (3 * _GAP if group > 1 and number % group == group - 1 else 0)
    sheet = Image.new("RGB", (width, y), _BACK)
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 3), corner, _TEXT, font)
    for column, head in enumerate(heads):
        x = _LABELS + column * (side + _GAP)
        draw.text((x + side / 2, 3), head, _TEXT, font, anchor="ma")
    for top, (label, cells) in zip(tops, rows, strict=True):
        draw.multiline_text((4, top + side / 2 - 8 * len(label.splitlines())), label, _TEXT, font)
        for column, cell in enumerate(cells):
            sheet.paste(Image.fromarray(cell), (_LABELS + column * (side + _GAP), top))
    return sheet


def _write_gif(path: Path, images: Sequence[Image.Image]) -> None:
    durations = [round(1000 / _FRAMES_PER_SECOND)] * len(images)
    durations[-1] = _LAST_FRAME_MILLISECONDS
    # Few colours besides grey: one palette for all, so that nothing flickers.
    palette = images[-1].quantize(128, dither=Image.Dither.NONE)
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    with whole_file(path) as temporary:
        indexed[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=indexed[1:],
            duration=durations,
            loop=0,
        )
