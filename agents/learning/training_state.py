"""From a session to a checkpoint, and back."""

from __future__ import annotations

import math

import numpy as np
import torch

from agents.learning.checkpoint import Checkpoint
from agents.learning.optimizer import load_optimizer
from agents.learning.session import Session
from agents.model.encoder import Observations
from agents.model.policy import reads_mission


def make_checkpoint(session: Session) -> Checkpoint:
    """The agent, and what the rest of the run follows from; all processes call this together."""
    place, progress = session.place, session.progress
    config = place.config
    score = session.recent.statistics()["episode_return_mean"]
    # Those of an interruption do not compete to be the best: a run without it has none.
    regular = progress.updates % config.checkpoint_every == 0
    done = progress.env_steps >= config.total_steps
    return Checkpoint(
        config=config,
        num_actions=session.runner.env.num_actions,
        read_mission=reads_mission(config),
        view=session.policy.view,
        backend=place.backend,
        env_steps=progress.env_steps,
        updates=progress.updates,
        policy=session.policy.state_dict(),
        optimizer=session.optimizer.state_dict(),
        training=_training_state(session),
        score=score if math.isfinite(score) and (regular or done) else None,
    )


def _training_state(session: Session) -> dict[str, object]:
    """What, besides the agent, the rest of the run follows from; of all processes."""
    place, runner = session.place, session.runner
    gather = place.world.gather
    random = {
        "actions": session.action_numbers.get_state(),
        "shuffle": session.shuffle_numbers.get_state(),
        "torch": torch.get_rng_state(),
    }
    if place.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(place.device)
    actions = np.array(runner.actions, dtype=np.uint8).reshape(-1, runner.env.num_envs)
    return {
        "seconds": session.progress.seconds,
        "core_state": [gather(part, 1) for part in runner.state],  # each (L, E, H)
        "actions": gather(torch.from_numpy(actions), 1),  # (t, E) since the environments began
        "seen": {k: gather(v, 0) for k, v in runner.seen._asdict().items()},
        "recent_episodes": session.recent.to_tensor(),
        "random": random,
    }


def restore(session: Session, checkpoint: Checkpoint) -> None:
    """Bring a new session where it was when the checkpoint was made.

    Raises:
        RunStopped: in one line, if its environments do not lead where they led before.
        Exception: of many kinds, if the checkpoint holds an agent and nothing else that is right.
    """
    training, runner, place = checkpoint.training, session.runner, session.place
    part = place.world.part(place.config.num_envs)
    progress = session.progress
    progress.env_steps, progress.updates = checkpoint.env_steps, checkpoint.updates
    progress.seconds = training["seconds"]
    session.policy.load_state_dict(checkpoint.policy)
    load_optimizer(session.optimizer, checkpoint.optimizer)
    session.recent.add_rows(training["recent_episodes"])
    if progress.updates >= place.config.restart_envs_every:
        session.restart_envs()
    runner.replay(
        training["actions"][:, part].numpy(),
        Observations(**{name: value[part] for name, value in training["seen"].items()}),
    )
    state = tuple(x[:, part].to(place.device) for x in training["core_state"])
    if [(x.shape, x.dtype) for x in state] != [(x.shape, x.dtype) for x in runner.state]:
        raise ValueError("the state of another core")
    runner.state = state
    random = training["random"]
    session.action_numbers.set_state(random["actions"])
    session.shuffle_numbers.set_state(random["shuffle"])
    torch.set_rng_state(random["torch"])
    if "cuda" in random and place.device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"], place.device)
