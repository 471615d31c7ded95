"""``rims evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from agents.commands.parsing import options
from agents.commands.parsing.errors import checking_input, say_notice
from agents.config import ActionMode
from envs import BackendChoice, get_suite, get_task
from lab.disk.folder import require_run_folder


@click.command()
@options.RUN
@options.CHECKPOINT
@options.SUITE
@options.ENVS
@options.BACKEND
@options.EPISODES
@options.SEED
@options.MODE
@options.JSON
def evaluate(
    run: Path,
    checkpoint: str | int,
    suite: str | None,
    envs: tuple[str, ...],
    backend: BackendChoice | None,
    episodes: int,
    seed: int,
    mode: ActionMode,
    as_json: bool,
) -> None:
    """Evaluate a trained agent.

    RUN is the run's folder. The task is the training task unless options name others. Every episode
    is a level of its own; no seed of a training level is used. Success is what the environment
    reports as is_success or success in its info; in MiniGrid's own tasks, an episode that ends with
    a reward above 0. Intervals are for this agent; agents of other seeds may differ by more.
    """
    with checking_input():
        named = [*(get_suite(suite).tasks if suite else ()), *map(get_task, envs)]
        require_run_folder(run)
    import torch

    from agents.judging.evaluate import check_task
    from agents.judging.evaluate import evaluate as run_evaluation
    from agents.learning import run_settings
    from agents.learning.checkpoint import load_checkpoint
    from agents.watching.display import print_evaluations
    from lab.reporting.display import show_progress

    with checking_input():
        loaded = load_checkpoint(run, checkpoint)
        say_notice(run_settings.notice(run, loaded.config))
        config = loaded.config
        torch.set_num_threads(config.threads)
        tasks = [config.wrapped(task) for task in named] or [config.task]
        backend = backend or config.backend
        policy = loaded.make_policy()
        for task in tasks:
            check_task(policy, task, backend)
    results = []
    with checking_input(), show_progress("episodes", len(tasks) * episodes) as advance:
        for task in tasks:
            results.append(
                run_evaluation(
                    policy,
                    task,
                    episodes=episodes,
                    seed=seed,
                    mode=mode,
                    backend=backend,
                    on_progress=advance,
                )
            )
    if as_json:
        about = {"run": str(run), "core": config.core, "env_steps": loaded.env_steps}
        about["trained_on"] = config.task.id
        about["actions"] = config.actions
        click.echo(json.dumps({**about, "tasks": [r.to_dict() for r in results]}, indent=2))
    else:
        by = " and ".join(sorted({result.backend for result in results}))
        # The table alone would not say why a task that needs other actions is never solved.
        some = config.actions != "all"
        chosen = f" from {config.actions.replace(',', ', ')}" if some else ""
        title = (
            f"{run}: {config.core}, actions by '{mode}'{chosen}, seed {seed}, environments by {by}"
        )
        print_evaluations(title, results, config.task)
