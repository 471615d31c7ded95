"""One episode as an animation: the grid and, beside it, what goes on inside the agent."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

import rims
from agents.config import ActionMode
from agents.policy import RecurrentActorCritic
from agents.report import COLOURS
from agents.rollout import Episode, Runner
from envs import Task, level_seeds, make_drawable_env

ACTION_NAMES = ("left", "right", "forward", "pick up", "drop", "toggle", "done")
LAST_FRAME_MILLISECONDS = 1500


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What happened in one episode; row t is the moment before action t."""

    task: Task
    core: str
    frames: list[NDArray[np.uint8]]  # steps + 1, each (Y, X, 3)
    actions: list[int]
    probabilities: NDArray[np.float32]  # (steps, actions)
    values: list[float]
    active: NDArray[np.bool_] | None  # (steps, N), for cores with mechanisms
    episode: Episode | None  # None if cut by max_steps

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.episode is None:
            return f"Stopped after {len(self.actions)} steps"
        result = "success" if self.episode.success else "failure"
        return f"{result} after {self.episode.length} steps, return {self.episode.reward:.2f}"


def check_output(path: Path) -> None:
    """See that an animation can be written to ``path``.

    Raises:
        ValueError: if the name does not end in .gif, or the folder is missing or not writable.
    """
    if path.suffix.lower() != ".gif":
        raise ValueError(f"--out must end in .gif; got {str(path)!r}.")
    if not path.parent.is_dir():
        raise ValueError(f"--out: folder {str(path.parent)!r} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--out: folder {str(path.parent)!r} cannot be written.")


def record_episode(
    policy: RecurrentActorCritic,
    task: Task,
    core: str,
    *,
    seed: int,
    mode: ActionMode = "sample",
    max_steps: int = 500,
) -> Recording:
    """Run one episode on gymnasium, which can draw it, and keep what the agent thought.

    Args:
        policy: the agent.
        task: what to run.
        core: name of the agent's core, for the title.
        seed: decides level and sampled actions.
        mode: draw actions from the policy, or take the most probable.
        max_steps: stop after this many.
    """
    generator = torch.Generator().manual_seed(seed) if mode == "sample" else None
    frames: list[NDArray[np.uint8]] = []
    actions: list[int] = []
    probabilities: list[NDArray[np.float32]] = []
    values: list[float] = []
    episode: Episode | None = None
    with (
        make_drawable_env(task, level_seeds(seed, "eval", 1)[0]) as env,
        rims.trace(policy) as trace,
    ):
        runner = Runner(env, policy, generator)
        frames.append(env.frame())
        while episode is None and len(actions) < max_steps:
            step = runner.step()
            frames.append(env.frame())
            actions.append(int(step.action[0]))
            probabilities.append(step.output.log_probs[0, 0].exp().numpy())
            values.append(float(step.output.values[0, 0]))
            episode = step.episodes[0] if step.episodes else None
    active = [cell[:, 0].numpy() for cell in trace.active.values()]
    return Recording(
        task=task,
        core=core,
        frames=frames,
        actions=actions,
        probabilities=np.stack(probabilities),
        values=values,
        active=np.concatenate(active, axis=1) if active else None,
        episode=episode,
    )


def save_gif(recording: Recording, path: Path, frames_per_second: float) -> int:
    """Draw and write the animation; return the number of frames."""
    view = _View(recording)
    images = [view.draw(t) for t in range(len(recording.frames))]
    durations = [round(1000 / frames_per_second)] * len(images)
    durations[-1] = max(durations[-1], LAST_FRAME_MILLISECONDS)
    temporary = path.with_name(path.name + ".tmp")
    palette = _common_palette(images)
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    indexed[0].save(
        temporary,
        format="GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=durations,
        loop=0,
    )
    temporary.replace(path)
    return len(images)


def _common_palette(images: list[Image.Image]) -> Image.Image:
    """One palette for all frames, which keeps colours still and the file small.

    It is that of the first, middle and last frame side by side: one of them alone can lack a
    colour, such as that of a key picked up, or of an action never taken before.
    """
    chosen = [images[0], images[len(images) // 2], images[-1]]
    width, height = images[0].size
    strip = Image.new("RGB", (width * len(chosen), height))
    for place, image in enumerate(chosen):
        strip.paste(image, (place * width, 0))
    return strip.quantize(256)


class _View:
    """Draws frame after frame into one figure."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.colour = COLOURS.get(recording.core, "black")
        self.figure = Figure(figsize=(8.4, 4.2), dpi=80, layout="constrained")
        self.canvas = FigureCanvasAgg(self.figure)
        grid = self.figure.add_gridspec(2, 2, width_ratios=[1, 1.15])
        self.scene = self.figure.add_subplot(grid[:, 0])
        self.scene.axis("off")
        self.image = self.scene.imshow(recording.frames[0])
        has_raster = recording.active is not None
        self.raster = self.figure.add_subplot(grid[0, 1]) if has_raster else None
        self.policy = self.figure.add_subplot(grid[1, 1] if has_raster else grid[:, 1])
        self._prepare_raster()
        self._prepare_policy()

    def _prepare_raster(self) -> None:
        if self.raster is None or self.recording.active is None:
            return
        steps, num_rims = self.recording.active.shape
        self.shown = np.zeros((num_rims, steps))
        self.cells = self.raster.imshow(
            self.shown, aspect="auto", cmap="Oranges", vmin=0, vmax=1.4, interpolation="nearest"
        )
        self.now = self.raster.axvline(0, color="#222222", linewidth=1)
        self.raster.set_title("active mechanisms", fontsize=10)
        self.raster.set_yticks(range(num_rims), [str(m + 1) for m in range(num_rims)])
        self.raster.set_ylabel("mechanism")
        self.raster.set_xlabel("step")
        self.raster.xaxis.set_major_locator(MaxNLocator(integer=True))

    def _prepare_policy(self) -> None:
        names = ACTION_NAMES[: self.recording.probabilities.shape[1]]
        self.bars = self.policy.barh(names, self.recording.probabilities[0], color="#BBBBBB")
        self.policy.invert_yaxis()
        self.policy.set_xlim(0, 1)
        self.policy.set_xlabel("probability of the action (coloured: taken)")
        self.policy.spines[["top", "right"]].set_visible(False)

    def draw(self, t: int) -> Image.Image:
        """The frame before action ``t``, or after the last one."""
        recording = self.recording
        steps = len(recording.actions)
        self.image.set_data(recording.frames[t])
        if t < steps:
            headline = f"step {t}   value {recording.values[t]:+.2f}"
            for action, bar in enumerate(self.bars):
                bar.set_width(float(recording.probabilities[t, action]))
                bar.set_color(self.colour if action == recording.actions[t] else "#BBBBBB")
            if self.raster is not None and recording.active is not None:
                self.shown[:, t] = recording.active[t]
                self.cells.set_data(self.shown)
                self.now.set_xdata([t + 0.5, t + 0.5])
        else:
            headline = recording.outcome
        self.scene.set_title(f"{recording.core} on {recording.task.name}\n{headline}", fontsize=10)
        self.canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(self.canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        return Image.fromarray(pixels[..., :3])
