"""``rims record``."""

from __future__ import annotations

from pathlib import Path

import click

from agents.commands.parsing import options
from agents.commands.parsing.errors import checking_input, say_notice
from agents.config import ActionMode
from envs import get_task
from lab.disk.folder import require_run_folder
from lab.disk.output import ANIMATION_ENDINGS, check_output


@click.command()
@options.RUN
@options.CHECKPOINT
@options.ENV
@options.OUT
@options.SEED
@options.MODE
@options.FPS
@options.MAX_STEPS
def record(
    run: Path,
    checkpoint: str | int,
    env: str | None,
    out: Path,
    seed: int,
    mode: ActionMode,
    fps: float,
    max_steps: int,
) -> None:
    """Record one episode as GIF or MP4.

    RUN is the folder of the agent. Beside the grid: what the agent itself sees of it, the action
    probabilities, which mechanisms are active at each step, and the value.
    """
    with checking_input():
        check_output(out, ANIMATION_ENDINGS)
        require_run_folder(run)
    import torch

    from agents.judging.evaluate import check_task
    from agents.learning import run_settings
    from agents.learning.checkpoint import load_checkpoint
    from agents.watching.record import record_episode
    from agents.watching.video import check_animation, save_animation

    with checking_input():
        check_animation(out)
        loaded = load_checkpoint(run, checkpoint)
        say_notice(run_settings.notice(run, loaded.config))
        torch.set_num_threads(loaded.config.threads)
        task = loaded.config.wrapped(get_task(env)) if env else loaded.config.task
        policy = loaded.make_policy()
        check_task(policy, task, "gymnasium")
    core = loaded.config.core
    with checking_input():
        recording = record_episode(policy, task, core, seed=seed, mode=mode, max_steps=max_steps)
    frames = save_animation(recording, out, fps)
    click.echo(f"{recording.outcome}. {frames} frames: {out}")
