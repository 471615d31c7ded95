"""``rims record``."""

from __future__ import annotations

from pathlib import Path

import click

from agents.commands import options
from agents.commands.options import checking_input
from agents.config import ActionMode
from envs import get_task


@click.command()
@options.RUN
@options.ENV
@options.OUT
@options.SEED
@options.MODE
@options.FPS
@options.MAX_STEPS
def record(
    run: Path,
    env: str | None,
    out: Path,
    seed: int,
    mode: ActionMode,
    fps: float,
    max_steps: int,
) -> None:
    """Record one episode as an animated GIF.

    RUN is the folder of the agent. Beside the grid: which mechanisms are active at each step, and
    the action probabilities.
    """
    import torch

    from agents.checkpoint import load_checkpoint
    from agents.evaluate import check_task
    from agents.record import check_output, record_episode, save_gif

    with checking_input():
        check_output(out)
        checkpoint = load_checkpoint(run)
        torch.set_num_threads(checkpoint.config.threads)
        task = get_task(env) if env else checkpoint.config.task
        policy = checkpoint.make_policy()
        check_task(policy, task, "gymnasium")
    core = checkpoint.config.core
    recording = record_episode(policy, task, core, seed=seed, mode=mode, max_steps=max_steps)
    frames = save_gif(recording, out, fps)
    click.echo(f"{recording.outcome}. {frames} frames: {out}")
