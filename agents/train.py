"""The training loop: collect, update, log, save."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from agents.checkpoint import CHECKPOINT_NAME, Checkpoint, save_checkpoint
from agents.config import PPOConfig
from agents.cores import require_usable
from agents.optimizer import make_optimizer
from agents.policy import RecurrentActorCritic, reads_mission
from agents.ppo import UPDATE_METRICS, update
from agents.rollout import Episode, Runner, collect
from agents.run_folder import LOCK_NAME, RunLog, claim_run_folder
from envs import VectorEnv, level_seeds, make_vector_env, require_makeable

#: Called after every update with the row that was logged.
OnUpdate = Callable[[Mapping[str, float]], None]

#: Episode statistics are means over at least this many recent episodes.
EPISODE_WINDOW = 100


class TrainingError(RuntimeError):
    """A number that has to be finite is not; the update it happened in is not saved."""

    def __init__(self, name: str, update: int) -> None:
        super().__init__(
            f"training stopped in update {update}: {name} is no longer finite. "
            "A smaller learning rate may help."
        )


class Trainer:
    """One training run, from a configuration to a checkpoint.

    The folder is locked from construction to the end of :meth:`run`.

    Args:
        config: what to train.
        folder: the run folder; must be absent or empty.

    Raises:
        ValueError: before any work, for a task the backend cannot run, an unusable device, a core
            given by import path that cannot be used, or a folder that is not empty or in use.
    """

    def __init__(self, config: PPOConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.device = usable_device(config.device)
        self.backend = require_makeable(config.task, config.backend)
        require_usable(config)
        self._made_folder = not folder.exists()
        self._lock = claim_run_folder(folder)
        self.env_steps = 0
        self.updates = 0
        self._has_agent = False

    @property
    def saved(self) -> bool:
        """Whether the run folder holds a checkpoint."""
        return (self.folder / CHECKPOINT_NAME).is_file()

    def run(self, on_update: OnUpdate | None = None) -> Checkpoint:
        """Train to the end and save.

        An interruption (Ctrl-C) saves the agent too, then goes on raising; before there is an
        agent, it leaves nothing behind. Any other failure leaves the last checkpoint as it is.

        Args:
            on_update: called after every update.

        Returns:
            The trained agent.

        Raises:
            TrainingError: if a number that has to be finite is not.
        """
        try:
            with RunLog(self.folder, self.config) as log:
                self._train(log, on_update)
            return self.save()
        except KeyboardInterrupt:
            # A broken agent, as an unfinished update can leave, never replaces a good one.
            if self._has_agent and self._broken_parameter() is None:
                self.save()
            elif not self.saved:
                self._remove_traces()
            raise
        finally:
            self._lock.release()

    def _train(self, log: RunLog, on_update: OnUpdate | None) -> None:
        config = self.config
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        generator = torch.Generator(self.device).manual_seed(config.seed)
        shuffle = torch.Generator().manual_seed(config.seed)
        seeds = level_seeds(config.seed, "train", config.num_envs)
        with make_vector_env(config.task, config.num_envs, seeds, self.backend) as env:
            self._make_agent(env)
            runner = Runner(env, self.policy, generator)
            recent = RecentEpisodes(config.num_envs)
            started = time.perf_counter()
            while self.env_steps < config.total_steps:
                row = self._update(runner, shuffle, recent, started)
                log.write(row)
                self._require_finite(row)
                if self.updates % config.checkpoint_every == 0:
                    self.save()
                if on_update is not None:
                    on_update(row)

    def _update(
        self, runner: Runner, shuffle: torch.Generator, recent: RecentEpisodes, started: float
    ) -> dict[str, float]:
        """Collect, learn, and return the row to log."""
        lap = time.perf_counter()
        self._anneal()
        rollout, episodes = collect(runner, self.config.rollout_steps_per_env)
        metrics = update(self.policy, self.optimizer, rollout, self.config, shuffle)
        steps = int(rollout.valid.sum())
        self.env_steps += steps
        self.updates += 1
        recent.add(episodes)
        now = time.perf_counter()
        return {
            "update": self.updates,
            "env_steps": self.env_steps,
            "seconds": now - started,
            "env_steps_per_second": steps / (now - lap),
            **recent.statistics(),
            **metrics,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def _require_finite(self, row: Mapping[str, float]) -> None:
        for name in UPDATE_METRICS:
            # Where all returns are equal there is no variance to explain.
            if name != "explained_variance" and not math.isfinite(row[name]):
                raise TrainingError(name, self.updates)
        name_or_none = self._broken_parameter()
        if name_or_none is not None:
            raise TrainingError(f"parameter {name_or_none}", self.updates)

    def _broken_parameter(self) -> str | None:
        """Name of the first parameter that is not finite."""
        for name, parameter in self.policy.named_parameters():
            if not bool(parameter.isfinite().all()):
                return name
        return None

    def _remove_traces(self) -> None:
        """Undo what the run made in its folder, which was empty before."""
        for path in self.folder.iterdir():
            if path.is_file() and path.name != LOCK_NAME:
                path.unlink()
        self._lock.release()
        (self.folder / LOCK_NAME).unlink(missing_ok=True)
        if self._made_folder:
            with contextlib.suppress(OSError):  # something of another's is in it
                self.folder.rmdir()

    def save(self) -> Checkpoint:
        """Write the checkpoint."""
        checkpoint = Checkpoint(
            config=self.config,
            num_actions=self.num_actions,
            read_mission=self.read_mission,
            backend=self.backend,
            env_steps=self.env_steps,
            updates=self.updates,
            policy=self.policy.state_dict(),
            optimizer=self.optimizer.state_dict(),
        )
        save_checkpoint(self.folder, checkpoint)
        return checkpoint

    def _make_agent(self, env: VectorEnv) -> None:
        config = self.config
        self.num_actions = env.num_actions
        self.read_mission = reads_mission(config)
        policy = RecurrentActorCritic(config, self.num_actions, read_mission=self.read_mission)
        self.policy = policy.to(self.device)
        self.optimizer = make_optimizer(self.policy, config)
        self._has_agent = True

    def _anneal(self) -> None:
        if self.config.anneal_learning_rate:
            left = max(0.0, 1 - self.env_steps / self.config.total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * left


def usable_device(name: str) -> torch.device:
    """The torch device called ``name``.

    Raises:
        ValueError: if there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        torch.Generator(device)  # actions are sampled there
    except (RuntimeError, AssertionError):  # torch asserts when built without CUDA
        raise ValueError(f"device {name!r} cannot be used here; 'cpu' always can.") from None
    return device


class RecentEpisodes:
    """The latest episodes of every environment, with the same weight for each environment.

    The last 100 episodes to finish would favour short ones, which in MiniGrid are the successful
    ones: at the start of training nothing else has finished. For the same reason there are no
    statistics before every environment has finished an episode.
    """

    def __init__(self, num_envs: int) -> None:
        per_env = math.ceil(EPISODE_WINDOW / num_envs)
        self._episodes: list[deque[Episode]] = [deque(maxlen=per_env) for _ in range(num_envs)]

    def add(self, episodes: Iterable[Episode]) -> None:
        """Take in newly finished episodes."""
        for episode in episodes:
            self._episodes[episode.env].append(episode)

    def statistics(self) -> dict[str, float]:
        """Means over environments; NaN until every one of them has finished an episode."""
        known = all(self._episodes)

        def mean(value: Callable[[Episode], float]) -> float:
            # Over environments of the mean of each: no environment counts more for being quick.
            if not known:
                return float("nan")
            return float(np.mean([np.mean([value(e) for e in own]) for own in self._episodes]))

        return {
            "episode_return_mean": mean(lambda e: e.reward),
            "episode_length_mean": mean(lambda e: e.length),
            "success_rate": mean(lambda e: e.success),
        }
