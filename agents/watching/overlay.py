"""A recording as pictures: the grid and, beside it, the state of the agent."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from agents.watching.record import Recording
from lab.cores import core_label
from lab.reporting.figures import colours

#: In inches and dots per inch; width and height in pixels are even, as H.264 wants them.
SIZE, DPI = (9.6, 5.4), 100

_GREY, _PALE = "#BBBBBB", "#E8E8E8"
_UNSEEN = (20, 20, 20)
_TILE = 32  # pixels of a cell of the agent's view

#: Objects that minigrid draws, and cells without one.
_OBJECTS = ("wall", "floor", "door", "key", "ball", "box", "goal", "lava")
_NOTHING = ("unseen", "empty", "agent")


def draw_view(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw an observation: what the policy gets to see, and nothing it does not.

    The agent stands at the bottom in the middle, looking up, unless it is in the picture itself; an
    object there is one it carries. Cells it cannot see are dark. An object that minigrid cannot
    draw is a tile of its colour.

    Args:
        image: (width, height, 3) category indices of object, colour and state; the first axis is x.

    Returns:
        Pixels (Y, X, 3).

    >>> draw_view(np.zeros((7, 7, 3), dtype=np.uint8)).shape
    (224, 224, 3)
    """
    from minigrid.core.constants import OBJECT_TO_IDX
    from minigrid.core.grid import Grid

    grid, seen = Grid.decode(_drawable(image))
    width, height = seen.shape
    place, facing = (width // 2, height - 1), 3
    for x, y in np.argwhere(image[..., 0] == OBJECT_TO_IDX["agent"])[:1]:
        place, facing = (int(x), int(y)), int(image[x, y, 2]) % 4
    picture: NDArray[np.uint8] = grid.render(
        _TILE, agent_pos=place, agent_dir=facing, highlight_mask=seen
    )
    unseen = ~seen.T.repeat(_TILE, axis=0).repeat(_TILE, axis=1)  # (Y, X)
    picture[unseen] = _UNSEEN  # without MiniGrid's lines, which make it look like empty floor
    return picture


def _drawable(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The view with a tile of its colour in place of each object that minigrid cannot decode."""
    from minigrid.core.constants import COLOR_TO_IDX, COLORS, IDX_TO_COLOR, OBJECT_TO_IDX

    known = [OBJECT_TO_IDX[name] for name in (*_OBJECTS, *_NOTHING)]
    colours = [index for index, name in IDX_TO_COLOR.items() if name in COLORS]
    image = image.copy()
    objects, shades = image[..., 0], image[..., 1]
    objects[~np.isin(objects, known)] = OBJECT_TO_IDX["floor"]
    shades[~np.isin(shades, colours)] = COLOR_TO_IDX["grey"]
    return image


def draw_seen(seen: NDArray[Any]) -> NDArray[np.uint8]:
    """Draw what :func:`agents.watching.record.seen_of` gives of an environment without a view.

    Args:
        seen: pixels (height, width, channels), of which three are shown or the last one; or numbers
            (V,), which become bars from the middle, those that are largest all the way.

    Returns:
        Pixels (Y, X, 3).

    >>> draw_seen(np.array([1.0, -0.5])).shape
    (32, 224, 3)
    """
    if seen.ndim == 3:
        shown = seen if seen.shape[2] == 3 else seen[..., -1:].repeat(3, axis=2)
        factor = max(1, -(-224 // max(shown.shape[:2])))
        return np.asarray(shown.repeat(factor, axis=0).repeat(factor, axis=1))
    middle, height = 112, 16 if len(seen) <= 64 else 2
    picture = np.full((len(seen), 2 * middle, 3), 235, dtype=np.uint8)
    # Between -1 and 1 as it is; larger numbers are pressed together, so that none sets the scale.
    ends = middle + (middle * np.clip(np.arcsinh(seen) / 5, -1, 1)).round().astype(int)
    for row, end in enumerate(ends):
        picture[row, min(middle, end) : max(middle, end) + 1] = (90, 90, 90)
    return picture.repeat(height, axis=0)


class Overlay:
    """Draws frame after frame of a recording into one figure.

    Args:
        recording: the episode to draw.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.steps = recording.steps
        self.continuous = not recording.taken[0]
        self.core = core_label(recording.core)
        self.colour = colours([recording.core])[recording.core]
        self.figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        self.canvas = FigureCanvasAgg(self.figure)
        self.left, right = self.figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 1.25])[0]
        has_mechanisms = recording.active is not None
        heights = [1, 1.25 if has_mechanisms else 0.8]
        rows = right.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        self.scene = self.left.subplots()
        self.view, self.policy = rows[0].subplots(1, 2, width_ratios=[1, 1.1])
        below = rows[1].subplots(1 + has_mechanisms, 1, sharex=True, squeeze=False)[:, 0]
        self.raster: Axes | None = below[0] if has_mechanisms else None
        self.value: Axes = below[-1]
        # A title of the subfigure: titles of axes that keep their aspect get no room.
        self.title = self.left.suptitle("", fontsize=11)
        self._prepare_pictures()
        self._prepare_policy()
        self._prepare_raster()
        self._prepare_value()
        self._freeze()

    def _prepare_pictures(self) -> None:
        recording = self.recording
        self.scene_image = self.scene.imshow(recording.frames[0])
        self.view_image = self.view.imshow(self._seen(0))
        self.view.set_title("what the agent sees", fontsize=10)
        for axes in (self.scene, self.view):
            axes.axis("off")
        if recording.mission:  # below the grid there is room: BabyAI's can be several lines long
            text = textwrap.fill(f"mission: {recording.mission}", 58)
            self.left.supxlabel(text, fontsize=9)

    def _seen(self, t: int) -> NDArray[np.uint8]:
        seen = self.recording.views[t]
        return draw_view(seen) if self.recording.symbolic else draw_seen(seen)

    def _prepare_policy(self) -> None:
        names = self.recording.action_names
        self.bars = self.policy.barh(names, self.recording.probabilities[0], color=_GREY)
        self.policy.invert_yaxis()
        self.policy.set_xlim(0, 1)
        title = "actions, between their bounds" if self.continuous else "action probabilities"
        self.policy.set_title(title, fontsize=10)
        if not self.continuous:
            self.policy.set_xlabel("coloured: taken", fontsize=9)
        self.policy.tick_params(labelsize=8)
        self.policy.spines[["top", "right"]].set_visible(False)

    def _prepare_raster(self) -> None:
        if self.raster is None or self.recording.active is None:
            return
        num_rims = self.recording.active.shape[1]
        self.cells = self.raster.imshow(
            self.mechanisms(0),
            aspect="auto",
            cmap=ListedColormap([_PALE, self.colour]),
            vmin=0,
            vmax=1,
            interpolation="nearest",
            extent=(-0.5, self.steps - 0.5, num_rims + 0.5, 0.5),
        )
        between = np.arange(1, num_rims) + 0.5
        self.lines = self.raster.hlines(between, -0.5, self.steps - 0.5, color="white", linewidth=1)
        self.raster.set_title("active mechanisms (coloured)", fontsize=10)
        self.raster.set_yticks(range(1, num_rims + 1))
        self.raster.tick_params(labelsize=8)
        self.raster.spines[:].set_visible(False)

    def _prepare_value(self) -> None:
        values = self.recording.values
        (self.line,) = self.value.plot([], [], color=self.colour, linewidth=1.5)
        (self.now,) = self.value.plot([], [], "o", color=self.colour, markersize=5)
        low, high = min(0.0, *values), max(0.0, *values)
        margin = 0.08 * (high - low) or 0.1
        self.value.set_ylim(low - margin, high + margin)
        self.value.set_xlim(-0.5, max(self.steps, 2) - 0.5)
        self.value.set_title("value: discounted reward the agent expects", fontsize=10)
        self.value.set_xlabel("step", fontsize=9)
        self.value.xaxis.set_major_locator(MaxNLocator(integer=True))
        self.value.tick_params(labelsize=8)
        self.value.grid(axis="y", alpha=0.3)
        self.value.spines[["top", "right"]].set_visible(False)

    def _freeze(self) -> None:
        """Lay out and draw what stays, once: nothing moves, and a frame is far quicker."""
        self._set_title(self.recording.outcome)  # the longest
        self.changing: list[Artist] = [
            *(self.scene_image, self.view_image, *self.bars),
            *([] if self.raster is None else [self.cells, self.lines]),
            *(self.line, self.now, self.title),
        ]
        for artist in self.changing:
            artist.set_animated(True)
        self.canvas.draw()  # type: ignore[no-untyped-call]
        self.figure.set_layout_engine("none")
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)  # type: ignore[no-untyped-call]

    def _set_title(self, headline: str) -> None:
        self.title.set_text(f"{self.core} on {self.recording.task.name}\n{headline}")

    def mechanisms(self, t: int) -> NDArray[np.float64]:
        """Values of the raster (N, steps) in frame ``t``: 1 active, 0 not, NaN yet to come.

        Raises:
            ValueError: if the core has no mechanisms.
        """
        if self.recording.active is None:
            raise ValueError(f"core {self.recording.core!r} has no mechanisms.")
        shown = self.recording.active.T.astype(np.float64)
        shown[:, t + 1 :] = np.nan
        return shown

    def draw(self, t: int) -> Image.Image:
        """The frame before action ``t``, or after the last one."""
        recording = self.recording
        self.scene_image.set_data(recording.frames[t])
        self.view_image.set_data(self._seen(t))
        last = min(t, self.steps - 1)  # after the last action, the panels show what led there
        for action, bar in enumerate(self.bars):
            bar.set_width(float(recording.probabilities[last, action]))
            taken = self.continuous or action in recording.taken[last]
            bar.set_color(self.colour if taken else _GREY)
        if self.raster is not None:
            self.cells.set_data(self.mechanisms(last))
        self.line.set_data(range(last + 1), recording.values[: last + 1])
        self.now.set_data([last], [recording.values[last]])
        running = f"step {t}   value {recording.values[last]:+.2f}"
        self._set_title(running if t < self.steps else recording.outcome)
        self.canvas.restore_region(self.background)  # type: ignore[no-untyped-call]
        for artist in self.changing:
            self.figure.draw_artist(artist)
        pixels = np.asarray(self.canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        return Image.fromarray(pixels[..., :3])
