"""The training state of one process, and its way into a checkpoint and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.config import PPOConfig
from agents.learning.checkpoint import Checkpoint
from agents.learning.optimizer import load_optimizer, make_optimizer
from agents.learning.recent_episodes import RecentEpisodes
from agents.learning.rollout import Runner
from agents.model.cores import require_usable
from agents.model.footprint import require_fits
from agents.model.policy import RecurrentActorCritic, reads_mission
from agents.model.trainable import require_trainable
from envs import AnyView, BackendName, VectorEnv, level_seeds, make_vector_env
from lab.running.devices import usable_device
from lab.running.ranks import local_device
from lab.running.world import World
from lab.settings import ConfigError


@dataclass
class Progress:
    """The progress of a run."""

    env_steps: int = 0
    updates: int = 0
    seconds: float = 0.0  # of training, those before an interruption included


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a run: its settings, processes, device and environments."""

    config: PPOConfig
    world: World
    device: torch.device
    backend: BackendName
    view: AnyView | None  # of a resumed agent; None: the view of the environments

    @classmethod
    def checked(
        cls, config: PPOConfig, world: World, checkpoint: Checkpoint | None = None
    ) -> Place:
        """The place of a run, if it can be trained there.

        Args:
            config: settings of the run.
            world: the processes that train together.
            checkpoint: the checkpoint that the run resumes from.

        Raises:
            ValueError: in one line, if not.
        """
        # The meaning of "auto" depends on installed packages; the levels would change with it.
        asked = config.backend if checkpoint is None else checkpoint.backend
        view = None if checkpoint is None else checkpoint.view
        device = usable_device(local_device(config.device))
        backend = require_trainable(config, asked, view=view)
        require_usable(config)
        require_divisible(config, world.size)
        require_fits(config, world.size)
        return cls(config=config, world=world, device=device, backend=backend, view=view)

    def make_envs(self, restart: int) -> VectorEnv:
        """This process's part of the environments.

        Args:
            restart: how often they were made before; their levels differ from time to time.
        """
        config = self.config
        part = self.world.part(config.num_envs)
        seeds = level_seeds(config.seed, "train", config.num_envs, restart)[part]
        return make_vector_env(
            config.task, len(seeds), seeds, self.backend, config.threads, self.view
        )

    def make_policy(self, env: VectorEnv, weights: dict[str, Any] | None) -> RecurrentActorCritic:
        """The agent on its device.

        Args:
            env: the environments it acts in.
            weights: initial weights; None: drawn at random.
        """
        config = self.config
        policy = RecurrentActorCritic(
            config, env.actions, read_mission=reads_mission(config), view=self.view or env.view
        )
        if weights is not None:
            policy.load_state_dict(weights)
        return policy.to(self.device)

    def make_optimizer(self, policy: RecurrentActorCritic) -> torch.optim.Optimizer:
        """The optimizer of an agent, which is from here on the same in all processes."""
        optimizer = make_optimizer(policy, self.config)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self.world.same(parameter.data)
        return optimizer


@dataclass(frozen=True, kw_only=True)
class Session:
    """The objects a run trains with."""

    place: Place
    policy: RecurrentActorCritic
    optimizer: torch.optim.Optimizer
    runner: Runner  # with the environments
    recent: RecentEpisodes
    action_numbers: torch.Generator
    shuffle_numbers: torch.Generator
    progress: Progress

    @classmethod
    def of(
        cls,
        place: Place,
        env: VectorEnv,
        policy: RecurrentActorCritic,
        optimizer: torch.optim.Optimizer,
    ) -> Session:
        """A new session; the environments are reset."""
        config = place.config
        # On the CPU, whatever the device: a run can be resumed on another one.
        actions, shuffle = (torch.Generator().manual_seed(config.seed) for _ in range(2))
        return cls(
            place=place,
            policy=policy,
            optimizer=optimizer,
            runner=Runner(env, policy, actions, place.world),
            recent=RecentEpisodes(config.num_envs),
            action_numbers=actions,
            shuffle_numbers=shuffle,
            progress=Progress(),
        )

    def restart_envs(self) -> None:
        """Make the environments anew, with other levels.

        EnvPool's cannot be saved. So that those of a resumed run can be brought where they were by
        doing again what was done in them, there is never long since they began.
        """
        self.runner.env.close()
        every = self.place.config.restart_envs_every
        self.runner.restart(self.place.make_envs(self.progress.updates // every))

    def anneal(self) -> None:
        """Set the learning rate of the next update."""
        config = self.place.config
        if config.anneal_learning_rate:
            left = max(0.0, 1 - self.progress.env_steps / config.total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = config.learning_rate * left


def require_divisible(config: PPOConfig, processes: int) -> None:
    """Refuse settings that give processes different numbers of environments in a minibatch.

    Raises:
        ConfigError: in one line.
    """
    if config.num_envs % (processes * config.minibatches):
        rule = (
            f"must be a multiple of {processes} processes times {config.minibatches} minibatches; "
            f"got {config.num_envs}."
        )
        raise ConfigError("num_envs", rule)


def make_checkpoint(session: Session) -> Checkpoint:
    """A checkpoint of the agent and all other state; all processes call this together."""
    place, progress = session.place, session.progress
    config = place.config
    score = session.recent.statistics()["episode_return_mean"]
    # A checkpoint made at an interruption cannot be the best: an uninterrupted run has none.
    regular = progress.updates % config.checkpoint_every == 0
    done = progress.env_steps >= config.total_steps
    return Checkpoint(
        config=config,
        num_actions=session.runner.env.num_actions,
        action_space=session.policy.space,
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
    """The state of all processes, besides the agent, that decides the rest of the run."""
    place, runner = session.place, session.runner
    gather = place.world.gather
    random = {
        "actions": session.action_numbers.get_state(),
        "shuffle": session.shuffle_numbers.get_state(),
        "torch": torch.get_rng_state(),
    }
    if place.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(place.device)
    space = runner.env.actions
    shape = -1, runner.env.num_envs, *space.shape
    actions = np.array(runner.actions, dtype=space.dtype).reshape(shape)
    return {
        "seconds": session.progress.seconds,
        "core_state": [gather(part, 1) for part in runner.state],  # each (L, E, H)
        "actions": gather(torch.from_numpy(actions), 1),  # (t, E, ...) since the environments began
        "seen": {k: gather(v, 0) for k, v in runner.seen._asdict().items()},
        "recent_episodes": session.recent.to_tensor(),
        "random": random,
    }


def restore(session: Session, checkpoint: Checkpoint) -> None:
    """Put a new session into the state of a checkpoint.

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
        type(runner.seen)(**{name: value[part] for name, value in training["seen"].items()}),
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
