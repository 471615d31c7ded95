"""One round of our PPO: environment steps, and the seconds they took."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from agents.config import PPOConfig
from agents.learning.optimizer import make_optimizer
from agents.learning.ppo import update
from agents.learning.rollout import Runner, collect
from agents.model.policy import RecurrentActorCritic, reads_mission
from envs import level_seeds, make_vector_env


class Round(NamedTuple):
    """The measurement of one contender in one round."""

    env_steps: int
    collecting: float  # seconds
    updating: float  # seconds

    @property
    def per_second(self) -> float:
        """Environment steps per second of training."""
        return self.env_steps / (self.collecting + self.updating)


def measure_ours(config: PPOConfig, updates: int) -> Round:
    """Train from the start and time ``updates`` updates after a first one that does not count.

    Steps that only reset an environment are not counted, though they take their time.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    shuffle = torch.Generator().manual_seed(config.seed)
    seeds = level_seeds(config.seed, "train", config.num_envs)
    rounds = []
    env = make_vector_env(config.task, config.num_envs, seeds, config.backend, config.threads)
    with env:
        read_mission = reads_mission(config)
        policy = RecurrentActorCritic(config, env.actions, read_mission=read_mission, view=env.view)
        optimizer = make_optimizer(policy, config)
        runner = Runner(env, policy, generator)
        for _ in range(1 + updates):
            start = time.perf_counter()
            rollout, _ = collect(runner, config.rollout_steps_per_env)
            collected = time.perf_counter()
            update(policy, optimizer, rollout, config, shuffle)
            end = time.perf_counter()
            rounds.append(Round(int(rollout.valid.sum()), collected - start, end - collected))
    return total(rounds[1:])


def total(rounds: list[Round]) -> Round:
    """The rounds added up.

    >>> total([Round(10, 1.0, 2.0), Round(20, 1.0, 1.0)])
    Round(env_steps=30, collecting=2.0, updating=3.0)
    """
    steps, collecting, updating = zip(*rounds, strict=True)
    return Round(sum(steps), sum(collecting), sum(updating))
